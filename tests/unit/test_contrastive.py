"""The contrastive loss: what counts as a wrong answer, its value, and its gradient by way of the embeddings."""

from typing import Any

import numpy as np
import pytest
import torch

from biencoder.config import LossConfig
from biencoder.contrastive import contrast, cross_entropy, targets
from biencoder.data import Forbidden, Split
from biencoder.distributed import World
from biencoder.loss import combined_loss
from biencoder.model import Scores

# Point 0 stands in two pairs, with counters 2 and 3; text 1 is a point, 2 also its counter; 4 is answered by 5.
SPLIT = Split("training", (), np.array([0, 0, 1, 4]), np.array([2, 3, 2, 5]))
NEGATIVES = np.array([[5], [1], [3], [3]])


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
        assert found.left_out_SC[i].tolist() == expected
        points = SPLIT.point_text_P[samples_RS.ravel()]
        answered = [SPLIT.counter_text_P[sample] in {p, *SPLIT.counter_text_P[SPLIT.point_text_P == p]} for p in points]
        own_point = 2 * rank + i
        assert found.own_point_S[i] == own_point
        assert found.left_out_SP[i].tolist() == [yes and j != own_point for j, yes in enumerate(answered)]


def test_the_loss_is_a_softmax_over_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    query, candidate = torch.randn(3, 5, generator=generator), torch.randn(7, 5, generator=generator)
    left_out = torch.zeros(3, 7, dtype=torch.bool)
    left_out[0, 4] = left_out[2, 0] = True
    logits = -torch.cdist(query, candidate).square() / (2 * 0.3)
    expected = []
    for i, own in enumerate((1, 2, 6)):
        kept = [column for column in range(7) if not left_out[i, column]]
        expected.append(-logits[i, kept].log_softmax(0)[kept.index(own)])
    found = cross_entropy(query, candidate, torch.tensor([1, 2, 6]), left_out, 0.3)
    torch.testing.assert_close(found, torch.stack(expected).mean())


def scores(B: int, K: int, *, seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    return Scores(leaf(B, 6), leaf(B, 6), leaf(B, K, 6), leaf(B, 2), leaf(B, K, 2), leaf(B, 6))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("negatives", [0, 1, 2])
def test_chunks_get_the_gradient_of_the_whole_loss(symmetric: bool, negatives: int) -> None:
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
    pulls = contrast(chunks, wanted, config, World.alone())
    parts = [combined_loss(chunk, config, pull, num_chunks=2) for chunk, pull in zip(chunks, pulls, strict=True)]
    (sum(part.total for part in parts) / 2).backward()  # type: ignore[union-attr]  # an engine averages over the chunks
    leaves = [part for chunk in chunks for part in chunk]
    found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone() for leaf in leaves]

    for leaf in leaves:
        leaf.grad = None
    point, counter, negative, _, _, rival = (
        torch.cat(pair)
        for pair in zip(*chunks, strict=True)  # type: ignore[arg-type]
    )
    plain = combined_loss(
        Scores(point, counter, negative, *(torch.cat([c[i] for c in chunks]) for i in (3, 4)), None), config
    )
    candidate = torch.cat([counter, negative.flatten(0, 1), rival])
    loss = cross_entropy(point, candidate, wanted.own_S, wanted.left_out_SC, 0.5)
    if symmetric:
        loss = (loss + cross_entropy(counter, point, wanted.own_point_S, wanted.left_out_SP, 0.5)) / 2
    total = plain.total + 0.7 * loss
    total.backward()
    torch.testing.assert_close((parts[0].total + parts[1].total) / 2, total)
    torch.testing.assert_close(parts[0].contrastive, loss)
    for leaf, gradient in zip(leaves, found, strict=True):
        torch.testing.assert_close(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, gradient)
