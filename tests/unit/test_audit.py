"""The audit of mined negatives, on embeddings whose geometry is known."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from biencoder.data import Forbidden, Split
from biencoder.distributed.world import World
from biencoder.mining.audit import Audit, audit, fingerprint, geometry
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.embedding import EmbeddedTexts

ALONE = World.alone()


def embed(values: npt.ArrayLike) -> EmbeddedTexts:
    rows = torch.from_numpy(np.asarray(values, dtype=np.float32))
    vectors = Vectors(rows, rows)
    return EmbeddedTexts.whole(np.arange(len(rows)), vectors, vectors)


def audited(values: npt.ArrayLike, points: list[int], counters: list[int], negatives: list[int]) -> Audit:
    split = Split("training", (None,) * len(points), np.array(points), np.array(counters))  # type: ignore[arg-type]
    return audit(split, np.array(negatives)[:, None], Forbidden.of(split, len(np.asarray(values))), embed(values), ALONE)


def test_hardness_is_the_counter_s_distance_less_the_negative_s() -> None:
    # On a line: point 0 has its counter at 3 and its negative at 1; point 10 its counter at 11 and its negative at 14.
    found = audited([[0.0], [3.0], [1.0], [10.0], [11.0], [14.0]], [0, 3], [1, 4], [2, 5])
    assert found.figures.pair_distance == pytest.approx((3 + 1) / 2)
    assert found.figures.harder_share == 0.5
    assert (found.hardness_edges[0], found.hardness_edges[-1]) == pytest.approx((-3, 2))
    assert sum(found.hardness_counts) == 2
    nearest = found.closest[0]  # the negative at 1 is as far from its point as any negative gets
    assert (nearest.sample, nearest.negative_text) == (0, 2)
    assert (nearest.to_point, nearest.to_counter, nearest.counter_to_point) == pytest.approx((1, 2, 3))


def test_the_negatives_of_the_epoch_before_are_measured_again() -> None:
    split = Split("training", (None,) * 2, np.array([0, 3]), np.array([1, 4]))  # type: ignore[arg-type]
    embedded, forbidden = embed([[0.0], [3.0], [1.0], [10.0], [11.0], [14.0]]), Forbidden.of(split, 6)
    for before, expected in (([2, 5], 0.5), ([5, 2], 0.0), ([2, 2], 0.5)):
        found = audit(split, np.array([[5], [5]]), forbidden, embedded, ALONE, before_PK=np.array(before)[:, None])
        assert (found.figures.still_harder_share, found.figures.harder_share) == (expected, 0)
    assert math.isnan(audit(split, np.array([[5], [5]]), forbidden, embedded, ALONE).figures.still_harder_share)


def test_copies_of_point_or_counter_are_counted() -> None:
    values = np.random.default_rng(0).standard_normal((40, 8))
    points, counters, negatives = list(range(10)), list(range(10, 20)), list(range(20, 30))
    assert audited(values, points, counters, negatives).figures.near_copies == 0
    values[20], values[21] = values[0] + 0.01, values[11] + 0.01
    found = audited(values, points, counters, negatives)
    assert found.figures.near_copies == pytest.approx(0.2)
    assert {close.sample for close in found.closest[:2]} == {0, 1}


def test_a_large_corpus_is_audited_on_a_sample_and_checked_in_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(40.0)[:, None]  # on a line: every counter 10 from its point, every negative 20
    points, counters, negatives = list(range(10)), list(range(10, 20)), list(range(20, 30))
    negatives[1] = counters[1]  # forbidden, and between the sampled places
    whole = audited(values, points, counters, negatives)
    monkeypatch.setattr("biencoder.mining.audit.MOST_NEGATIVES", 4)
    sample = audited(values, points, counters, negatives)
    assert (sum(whole.hardness_counts), sum(sample.hardness_counts)) == (10, 4)
    assert (whole.figures.forbidden, sample.figures.forbidden) == (1, 1)
    assert {close.sample for close in sample.closest} == {0, 3, 6, 9}
    assert sample.figures.pair_distance == 10
    assert sample.closest[0].to_point == 20


def test_equal_embeddings_have_no_spread_and_no_copies() -> None:
    found = audited(np.full((30, 4), 0.7), list(range(10)), list(range(10, 20)), list(range(20, 30)))
    assert (found.figures.spread, found.figures.effective_rank, found.figures.near_copies) == (0, 0, 0)


@pytest.mark.parametrize(("directions", "offset"), [(1, 0.0), (3, 5.0), (16, 100.0)])
def test_effective_rank_is_the_number_of_directions(directions: int, offset: float) -> None:
    values = np.zeros((2 * directions, 16))
    for i in range(directions):
        values[2 * i, i], values[2 * i + 1, i] = 1, -1
    spread, rank = geometry(embed(values + offset), ALONE)
    assert rank == pytest.approx(directions, rel=1e-4)
    assert spread == pytest.approx(1, rel=1e-4)


def test_two_random_texts_are_sqrt_2_spreads_apart() -> None:
    values = np.random.default_rng(1).standard_normal((500, 32))
    spread, _ = geometry(embed(values), ALONE)
    apart = np.linalg.norm(values[:250] - values[250:], axis=1)
    assert math.sqrt((apart**2).mean()) == pytest.approx(math.sqrt(2) * spread, rel=0.05)


def test_the_fingerprint_tells_embeddings_apart() -> None:
    values = np.random.default_rng(2).standard_normal((50, 8)).astype(np.float32)
    moved, swapped = values.copy(), values[np.r_[1, 0, 2:50]]
    moved[7, 3] = np.nextafter(moved[7, 3], np.float32(9))  # the last bit of one coordinate
    found = [fingerprint(embed(some), ALONE) for some in (values, values.copy(), moved, swapped)]
    assert found[0] == found[1]
    assert len(set(found)) == 3
