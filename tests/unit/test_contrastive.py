"""The contrastive loss: what counts as a wrong answer, its value, and its gradient by way of the embeddings."""

import tracemalloc
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from biencoder.config.schema import LossConfig
from biencoder.data import Forbidden, Split
from biencoder.distributed.world import World
from biencoder.model.bi_encoder import Scores
from biencoder.model.truncation import FULL, Truncation
from biencoder.training import contrastive
from biencoder.training.contrastive import contrast, cross_entropy, targets
from biencoder.training.loss import combined_loss
from tests.peak import peak_growth

# Point 0 stands in two pairs, with counters 2 and 3; text 1 is a point, 2 also its counter; 4 is answered by 5.
SPLIT = Split("training", (), np.array([0, 0, 1, 4]), np.array([2, 3, 2, 5]))
NEGATIVES = np.array([[5], [1], [3], [3]])


def table(left_out_2X: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The pairs as a table that is True where there is one."""
    found = torch.zeros(rows, columns, dtype=torch.bool)
    found[*left_out_2X] = True
    return found


def dense(
    query_SD: torch.Tensor, candidate_CD: torch.Tensor, own_S: torch.Tensor, left_out_2X: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The loss in one piece, its gradient by autograd."""
    logits_SC = (query_SD @ candidate_CD.T - candidate_CD.square().sum(1) / 2) / temperature
    return F.cross_entropy(logits_SC.masked_fill(table(left_out_2X, *logits_SC.shape), -torch.inf), own_S)


@pytest.mark.parametrize("rank", [0, 1])
def test_texts_that_are_no_wrong_answers_are_left_out(rank: int) -> None:
    samples_RS = np.array([[0, 2], [3, 1]])
    found = targets(samples_RS, SPLIT, NEGATIVES, Forbidden.of(SPLIT, 6), rank=rank)
    # Rank by rank: counters, negatives, points.
    candidates = [*(2, 2, 5, 3, 0, 1), *(5, 3, 3, 1, 4, 0)]
    for i, sample in enumerate(samples_RS[rank]):
        own = 6 * rank + i
        assert found.own_S[i] == own
        assert candidates[own] == SPLIT.counter_text_P[sample]
        point = SPLIT.point_text_P[sample]
        right = {point, *SPLIT.counter_text_P[SPLIT.point_text_P == point]}
        expected = [text in right and column != own for column, text in enumerate(candidates)]
        assert table(found.left_out_2X, 2, 12)[i].tolist() == expected
        points = SPLIT.point_text_P[samples_RS.ravel()]
        answered = [SPLIT.counter_text_P[sample] in {p, *SPLIT.counter_text_P[SPLIT.point_text_P == p]} for p in points]
        own_point = 2 * rank + i
        assert found.own_point_S[i] == own_point
        assert table(found.left_out_2Y, 2, 4)[i].tolist() == [yes and j != own_point for j, yes in enumerate(answered)]


def test_the_loss_is_a_softmax_over_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    query, candidate = torch.randn(3, 5, generator=generator), torch.randn(7, 5, generator=generator)
    left_out = torch.tensor([[0, 2], [4, 0]])
    logits = -torch.cdist(query, candidate).square() / (2 * 0.3)
    expected, wrong = [], torch.zeros(7)
    for i, own in enumerate((1, 2, 6)):
        kept = [column for column in range(7) if (i, column) not in ((0, 4), (2, 0))]
        log_probability = logits[i, kept].log_softmax(0)
        expected.append(-log_probability[kept.index(own)])
        wrong[kept] += log_probability.exp()
        wrong[own] -= log_probability[kept.index(own)].exp()
    found = cross_entropy(query, candidate, torch.tensor([1, 2, 6]), left_out, 0.3)
    torch.testing.assert_close(found.loss, torch.stack(expected).mean())
    torch.testing.assert_close(found.wrong_C, wrong / 3)


def test_mined_negatives_have_a_part_of_the_probability_of_wrong_candidates() -> None:
    far = torch.full((2, 1), 1.0)
    point, counter, negative = torch.zeros(2, 1), 10 * far, torch.tensor([[[1.0], [50.0]], [[1.0], [50.0]]])
    chunk = Scores(point, counter, negative, far, far, 50 * far)  # of each point only the two near negatives count
    split = Split("training", (None,) * 2, np.array([0, 1]), np.array([2, 3]))  # type: ignore[arg-type]
    wanted = targets(np.array([[0, 1]]), split, np.array([[4, 5], [6, 7]]), Forbidden.of(split, 8), rank=0)
    config = LossConfig(contrastive_weight=1.0, temperature=1.0)

    def parts(scores: Scores) -> tuple[float, float]:
        found = contrast([scores], wanted, config, World.alone())[0]
        return float(found.wrong), float(found.mined)

    assert parts(chunk) == pytest.approx((1, 1))
    assert parts(chunk._replace(rival_BD=0.5 * far, negative_BKD=negative + 40)) == pytest.approx((1, 0), abs=1e-6)
    # Of the 7 others, all as far, the own point is left out; one is the other's counter, one its point, four are mined.
    alike = chunk._replace(rival_BD=far, negative_BKD=torch.ones(2, 2, 1), counter_BD=far)
    assert parts(alike) == pytest.approx((6 / 7, 4 / 7))


def scores(B: int, K: int, *, seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    return Scores(leaf(B, 6), leaf(B, 6), leaf(B, K, 6), leaf(B, 2), leaf(B, K, 2), leaf(B, 6))


@pytest.mark.parametrize("truncation", [FULL, Truncation((4, 2), normalize=True), Truncation((3,))], ids=str)
@pytest.mark.parametrize("block_rows", [1, 2, 50])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("negatives", [0, 1, 2])
def test_chunks_get_the_gradient_of_the_whole_loss(
    symmetric: bool, negatives: int, block_rows: int, truncation: Truncation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive, "_BLOCK_BYTES", block_rows * 4 * (8 + 4 * negatives))
    config: Any = LossConfig(
        contrastive_weight=0.7,
        temperature=0.5,
        symmetric=symmetric,
        triplet_weight=float(negatives > 0),
        classification_weight=float(negatives > 0),
    )
    negative_text = np.array([[5, 1], [1, 4], [3, 4], [3, 1]])[:, :negatives]
    chunks = [scores(2, negatives, seed=0), scores(2, negatives, seed=1)]
    wanted = targets(np.arange(4)[None], SPLIT, negative_text, Forbidden.of(SPLIT, 6), rank=0)
    cached = contrast(chunks, wanted, config, World.alone(), truncation=truncation)
    parts = [
        combined_loss(chunk, config, part, num_chunks=2, truncation=truncation)
        for chunk, part in zip(chunks, cached, strict=True)
    ]
    (sum(part.total for part in parts) / 2).backward()  # type: ignore[union-attr]  # an engine averages over the chunks
    leaves: list[Any] = [part for chunk in chunks for part in chunk]
    found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone() for leaf in leaves]

    for leaf in leaves:
        leaf.grad = None
    point, counter, negative, _, _, rival = (torch.cat(pair) for pair in cast(Any, zip(*chunks, strict=True)))
    logits = [torch.cat([cast(Any, chunk[i]) for chunk in chunks]) for i in (3, 4)]
    plain = combined_loss(Scores(*cast(Any, [point, counter, negative, *logits, None])), config)
    candidate = torch.cat([counter, negative.flatten(0, 1), rival])
    loss, triplet = torch.zeros(()), torch.zeros(())
    for size in (6, *truncation.sizes):
        p, c, n, x = (part[..., :size] for part in (point, counter, negative, candidate))
        if size < 6 and truncation.normalize:
            p, c, n, x = (part / part.norm(dim=-1, keepdim=True) for part in (p, c, n, x))
        there = dense(p, x, wanted.own_S, wanted.left_out_2X, 0.5)
        back = dense(c, p, wanted.own_point_S, wanted.left_out_2Y, 0.5)
        loss = loss + ((there + back) / 2 if symmetric else there)
        if size < 6 and negatives:
            p, c, n = (part.flatten(0, 1) for part in (p[:, None].expand_as(n), c[:, None].expand_as(n), n))
            triplet = triplet + F.triplet_margin_loss(p, c, n, margin=config.margin)
    total = plain.total + triplet + 0.7 * loss
    total.backward()
    torch.testing.assert_close((parts[0].total + parts[1].total) / 2, total)
    torch.testing.assert_close(parts[0].contrastive, loss)
    for leaf, gradient in zip(leaves, found, strict=True):
        torch.testing.assert_close(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, gradient)


@pytest.mark.parametrize("block_bytes", [1, 4 * 400 * 7, 2**26])
@pytest.mark.parametrize("length", [1.0, 30.0])
def test_blocks_give_the_loss_and_gradient_of_the_whole(
    block_bytes: int, length: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive, "_BLOCK_BYTES", block_bytes)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    query, candidate = (length * F.normalize(torch.randn(n, 32, generator=generator), dim=1) for n in (100, 400))
    own = torch.arange(100) + 50
    pairs = {(int(i), int(j)) for i, j in rng.integers(0, (100, 400), (900, 2)) if j != i + 50 and i % 10}
    results = []
    for loss_of, dtype in ((dense, torch.float64), (dense, torch.float32), (cross_entropy, torch.float32)):
        leaves: list[Any] = [part.to(dtype).requires_grad_() for part in (query, candidate)]
        result = cast(Any, loss_of)(*leaves, own, torch.tensor(sorted(pairs)).T, 0.05)
        loss = result if loss_of is dense else result.loss
        (3 * loss).backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    exact, plain, blocks = results
    for true, reference, found in zip(exact, plain, blocks, strict=True):
        error = (found.double() - true).norm() / true.norm()
        assert error <= max(1e-6, 2 * (reference.double() - true).norm() / true.norm())


def many_pairs(size: int) -> tuple[Split, np.ndarray[Any, Any], Forbidden]:
    """Pairs of texts of their own but for the first hundred points, which are one text."""
    points = np.maximum(0, np.arange(size) - 99)
    split = Split("training", (), points, np.arange(size, 2 * size))
    return split, np.roll(split.counter_text_P, 1)[:, None], Forbidden.of(split, 2 * size)


def test_targets_of_a_large_batch_take_memory_for_the_batch_and_not_for_its_square() -> None:
    split, negatives, forbidden = many_pairs(4096)
    tracemalloc.start()
    try:
        found = targets(np.arange(4096)[None], split, negatives, forbidden, rank=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20  # one byte for each point and candidate would be 48 MiB
    assert found.left_out_2X.shape[1] > 100 * 99


def test_the_loss_of_a_large_batch_takes_memory_for_a_block() -> None:
    def scores_of(size: int) -> list[Scores]:
        row = torch.nn.functional.normalize(torch.randn(size, 16), dim=1)
        return [Scores(row, row, row[:, None], torch.empty(0), torch.empty(0), row)]

    def loss(size: int) -> None:
        split, negatives, forbidden = many_pairs(size)
        wanted = targets(np.arange(size)[None], split, negatives, forbidden, rank=0)
        contrast(scores_of(size), wanted, LossConfig(contrastive_weight=1, symmetric=True), World.alone())

    loss(64)
    assert peak_growth(lambda: loss(4096)) < 128 * 2**20  # all logits are 192 MiB


def test_what_is_denied_is_found_pair_by_pair() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        split = Split("training", (), rng.integers(0, 12, 30), rng.integers(6, 20, 30))
        forbidden = Forbidden.of(split, 20, same_N=np.minimum(np.arange(20), rng.integers(0, 20, 20)))
        points, texts = rng.choice(split.point_text_P, 15), rng.integers(0, 20, 40)
        expected = np.nonzero(~forbidden.allows(points[:, None], texts))
        found = forbidden.pairs(points, texts)
        assert found[0].tolist() == expected[0].tolist()
        assert sorted(zip(*found, strict=True)) == list(zip(*expected, strict=True))
