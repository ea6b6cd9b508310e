from typing import Any

import numpy as np
import pytest

from biencoder.retrieval.embedding import plan_batches
from biencoder.rng import permutation, stream_seed, uniforms
from biencoder.training.sampler import global_batches, shares


def test_an_epoch_uses_every_sample_at_most_once_and_drops_the_incomplete_batch() -> None:
    batches = global_batches(num_samples=101, global_batch_size=8, seed=0, epoch=0)
    assert batches.shape == (12, 8)
    assert len(np.unique(batches)) == 96
    assert batches.max() < 101


def test_order_differs_between_epochs_and_seeds_only() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        found: list[int] = global_batches(num_samples=64, global_batch_size=8, seed=seed, epoch=epoch).ravel().tolist()
        return found

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0))}) == 3


@pytest.mark.parametrize(("world_size", "micro"), [(1, 16), (2, 8), (4, 4), (4, 2), (2, 1), (1, 4)])
def test_ranks_share_a_global_batch_without_gap_or_overlap(world_size: int, micro: int) -> None:
    batch = np.arange(100, 116)
    lengths = np.random.default_rng(0).integers(10, 700, size=16)
    dealt = shares(batch, lengths, world_size=world_size, micro_batch_size=micro)
    assert dealt.shape == (world_size, 16 // (world_size * micro), micro)
    assert sorted(dealt.ravel()) == batch.tolist()
    sums = [lengths[share - 100].sum() for share in dealt]
    assert max(sums) - min(sums) <= lengths.max() - lengths.min()


def test_uniforms_are_uniform_and_independent_of_company() -> None:
    u = uniforms(seed=1, purpose="x", epoch=0, positions_N=np.arange(50_000))
    assert u.min() >= 0
    assert u.max() < 1
    histogram = np.histogram(u, bins=20, range=(0, 1))[0]
    chi2 = np.square(histogram - 2500).sum() / 2500
    assert chi2 < 45  # 19 degrees of freedom: exceeded once in 1500 seeds
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.02
    assert uniforms(seed=1, purpose="x", epoch=0, positions_N=np.array([31_000]))[0] == u[31_000]
    for other in ({"seed": 2}, {"purpose": "y"}, {"epoch": 1}, {"draw": 1}):
        name: dict[str, Any] = {"seed": 1, "purpose": "x", "epoch": 0} | other
        assert abs(np.corrcoef(u, uniforms(**name, positions_N=np.arange(50_000)))[0, 1]) < 0.02, other


def test_streams_differ_by_every_part_of_their_name() -> None:
    names: list[tuple[Any, ...]] = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", 0), (0, "a", 0, 0)]
    assert len({stream_seed(*name) for name in names}) == len(names)
    assert sorted(permutation(seed=0, purpose="p", epoch=0, size=9)) == list(range(9))


def test_embedding_plan_covers_each_text_once_longest_first_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(3, 200, size=101)
    batches = plan_batches(lengths, batch_tokens=1024, max_length=512)
    assert sorted(np.concatenate(batches)) == list(range(101))
    widths = [lengths[batch].max() for batch in batches]
    assert widths == sorted(widths, reverse=True)
    assert all(-(-width // 8) * 8 * len(batch) <= 1024 for width, batch in zip(widths, batches, strict=True))


def test_a_text_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    assert [len(batch) for batch in plan_batches(np.array([500, 500]), batch_tokens=64, max_length=512)] == [1, 1]


def test_batches_of_groups_divide_only_the_groups_at_their_ends() -> None:
    group_N = np.repeat(np.arange(12), [3, 5, 4, 6, 2, 4, 5, 3, 6, 4, 3, 5])  # 50 samples
    batches_SG = global_batches(num_samples=50, global_batch_size=8, seed=1, epoch=2, group_N=group_N)
    assert batches_SG.shape == (6, 8)
    assert len(np.unique(batches_SG)) == 48  # no sample twice
    divided = {group for group in range(12) if (np.isin(group_N[batches_SG], [group]).any(1)).sum() > 1}
    assert len(divided) <= 5  # the ends between six batches
    again = global_batches(num_samples=50, global_batch_size=8, seed=1, epoch=2, group_N=group_N)
    later = global_batches(num_samples=50, global_batch_size=8, seed=1, epoch=3, group_N=group_N)
    assert (batches_SG == again).all()
    assert (batches_SG != later).any()
