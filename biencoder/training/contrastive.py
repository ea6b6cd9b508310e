"""In-batch contrastive learning (InfoNCE): each point should find its own counter among all texts of the global batch.

    loss = mean over points of cross-entropy(-|point - candidate|^2 / (2 temperature) -> own counter)

For embeddings of length 1 the logit is the cosine over the temperature (van den Oord, Li, Vinyals 2018; Karpukhin et al.
2020). For other embeddings it follows the distance that mining and ranking use. The candidates are the counters of all
ranks, their mined negatives, and, as rivals, their points, because retrieval ranks counters among all arguments. A
candidate that is no wrong answer is masked: another counter of the same point, or a text identical to one.

The loss does not depend on how ranks and micro-batches divide the global batch. Gradients at the embeddings are computed
first, without graph if there are several micro-batches. Each micro-batch then propagates its part to the weights
(GradCache: Gao, Zhang, Han, Callan 2021; see `objective.Objective`).

The matrix of points by candidates never exists as a whole. The mask is a list of pairs, and the loss processes the points
in blocks: each block adds its part of the gradient before the next one uses the same memory.

R: ranks, S: samples of one rank in a step, K: mined negatives of each, C: candidates of all ranks, P: points of all ranks,
X, Y: pairs that are left out of the loss, B: points of a block, D: dimension.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from biencoder.config.schema import LossConfig
from biencoder.data import Forbidden, Split
from biencoder.data.ids import Ids
from biencoder.distributed.world import World
from biencoder.model.bi_encoder import Scores
from biencoder.model.truncation import FULL, Truncation

_BLOCK_BYTES = 64 * 2**20
"""Memory of one block's logits; enough for 512 points with 32,768 candidates."""


class Targets(NamedTuple):
    """The right answers to one rank's points among the candidates of all ranks, and the pairs that are left out.

    The last two fields are for the other direction, from counters to the points of all ranks.
    """

    own_S: torch.Tensor
    """Column of each point's own counter."""
    left_out_2X: torch.Tensor
    """(point, candidate), ordered by point, where the candidate is neither the point's own counter nor a wrong answer."""
    own_point_S: torch.Tensor
    """Column of each counter's own point."""
    left_out_2Y: torch.Tensor
    """(counter, point), ordered by counter, where the point is neither the counter's own nor a wrong answer."""
    rivals_S: torch.Tensor
    """This rank's points that are candidates of the others: all, or none for queries over a corpus."""

    def to(self, device: torch.device) -> "Targets":
        return Targets(*(part.to(device, non_blocking=True) for part in self))

    def pinned(self) -> "Targets":
        """In memory that a GPU copies from by itself."""
        return Targets(*(part.pin_memory() for part in self))


def targets(samples_RS: Ids, split: Split, negative_text_PK: Ids, forbidden: Forbidden, *, rank: int) -> Targets:
    """The targets of this rank's samples.

    Args:
        samples_RS: the samples of every rank, in the order of its micro-batches.
        negative_text_PK: for each pair of the split the text ids of its mined negatives.
    """
    R, S = samples_RS.shape
    mine_S = samples_RS[rank]
    point_RS, counter_RS = split.point_text_P[samples_RS], split.counter_text_P[samples_RS]
    rivals_S = np.arange(0 if split.judgements else S)
    candidate_C = np.concatenate(
        [counter_RS, negative_text_PK[samples_RS].reshape(R, -1), point_RS[:, rivals_S]], axis=1
    ).ravel()
    own_S = rank * (len(candidate_C) // R) + np.arange(S)
    own_point_S = rank * S + np.arange(S)
    mine_X, candidate_X = forbidden.pairs(split.point_text_P[mine_S], candidate_C)
    point_Y, mine_Y = forbidden.pairs(point_RS.ravel(), split.counter_text_P[mine_S])
    order_Y = np.argsort(mine_Y, kind="stable")
    left_out_2X = _without_own(mine_X, candidate_X, own_S)
    left_out_2Y = _without_own(mine_Y[order_Y], point_Y[order_Y], own_point_S)
    return Targets(*(torch.from_numpy(part) for part in (own_S, left_out_2X, own_point_S, left_out_2Y, rivals_S)))


def _without_own(query_X: Ids, candidate_X: Ids, own_S: Ids) -> Ids:
    return np.stack([query_X, candidate_X])[:, candidate_X != own_S[query_X]]


class CachedGradients(NamedTuple):
    """The contrastive loss's gradients at the embeddings of one micro-batch."""

    step_loss: torch.Tensor
    """The loss of the whole step, the same for all micro-batches of a rank."""
    wrong: torch.Tensor
    """Probability that the rank's points give to wrong candidates, their mean: what the loss pushes away."""
    mined: torch.Tensor
    """The part of it that mined negatives have."""
    at_embeddings: list[torch.Tensor]
    """The gradient of the rank's loss at each of the micro-batch's embeddings, in the order of `_embeddings`."""

    def surrogate(self, scores: Scores) -> torch.Tensor:
        """A scalar that has the loss's gradient at the embeddings."""
        parts = zip(_embeddings(scores), self.at_embeddings, strict=True)
        return torch.stack([(part.float() * gradient).sum() for part, gradient in parts]).sum()


def contrast(
    chunks: Sequence[Scores], targets: Targets, config: LossConfig, world: World, *, truncation: Truncation = FULL
) -> list[CachedGradients]:
    """The contrastive loss of a step and its gradients at the embeddings of each micro-batch. Every rank takes part.

    Args:
        chunks: the scores of this rank's micro-batches, with or without graph.
        truncation: the sizes at which the loss is taken as well.
    """
    leaves = [[part.detach().float().requires_grad_() for part in _embeddings(chunk)] for chunk in chunks]
    point_SD, counter_SD, negative_XD, rival_SD = (torch.cat(parts) for parts in zip(*leaves, strict=True))
    candidate_CD = world.all_gather(torch.cat([counter_SD, negative_XD, rival_SD[targets.rivals_S]]))
    points_PD = world.all_gather(point_SD) if config.symmetric else None

    def at(cut: Callable[[torch.Tensor], torch.Tensor]) -> CrossEntropy:
        found = cross_entropy(cut(point_SD), cut(candidate_CD), targets.own_S, targets.left_out_2X, config.temperature)
        if points_PD is None:
            return found
        own, left_out = targets.own_point_S, targets.left_out_2Y
        back = cross_entropy(cut(counter_SD), cut(points_PD), own, left_out, config.temperature)
        return found._replace(loss=(found.loss + back.loss) / 2)

    loss, wrong_C = at(lambda whole: whole)
    for size in truncation.sizes:
        loss = loss + at(partial(truncation.cut, size=size)).loss
    loss.backward()  # type: ignore[no-untyped-call]
    first, end = len(counter_SD), len(counter_SD) + len(negative_XD)
    wrong, mined = wrong_C.sum(), wrong_C.view(world.size, -1)[:, first:end].sum()
    return [
        CachedGradients(loss.detach(), wrong, mined, [leaf.grad for leaf in chunk if leaf.grad is not None])
        for chunk in leaves
    ]


class CrossEntropy(NamedTuple):
    loss: torch.Tensor
    """Mean over queries of the negative log-probability of each one's own candidate."""
    wrong_C: torch.Tensor
    """Each candidate's probability as a wrong answer, its mean over queries; without graph."""


def cross_entropy(
    query_SD: torch.Tensor, candidate_CD: torch.Tensor, own_S: torch.Tensor, left_out_2X: torch.Tensor, temperature: float
) -> CrossEntropy:
    """The loss of queries among candidates, as a softmax over their distances gives it.

    Takes the memory of one block of logits, and as much as queries and candidates themselves.

    Args:
        query_SD, candidate_CD: fp32.
        left_out_2X: (query, candidate), ordered by query, of the pairs to mask.
    """
    return CrossEntropy(*_CrossEntropy.apply(query_SD, candidate_CD, own_S, left_out_2X, temperature))  # type: ignore[no-untyped-call]


class _CrossEntropy(torch.autograd.Function):
    """Computes each block's part of the gradient in the forward pass, so that no logits are kept or computed twice."""

    @staticmethod
    def forward(
        ctx: Any,
        query_SD: torch.Tensor,
        candidate_CD: torch.Tensor,
        own_S: torch.Tensor,
        left_out_2X: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        S, C = len(query_SD), len(candidate_CD)
        # -|q - c|^2 / 2 = q.c - |c|^2 / 2 - |q|^2 / 2, and |q|^2 drops out of the softmax.
        bias_C = candidate_CD.square().sum(1) / (-2 * temperature)
        loss, mass_C, missing_S = query_SD.new_zeros(()), query_SD.new_zeros(C), query_SD.new_empty(S)
        to_query_SD, to_candidate_CD = torch.empty_like(query_SD), torch.zeros_like(candidate_CD)
        starts = range(0, S, max(1, min(S, _BLOCK_BYTES // (4 * C))))
        block_BC = query_SD.new_empty(starts.step, C)
        for start, (row_x, column_x) in zip(starts, _by_block(left_out_2X, starts), strict=True):
            query_BD, own_B1 = query_SD[start : start + starts.step], own_S[start : start + starts.step, None]
            logits_BC = block_BC[: len(query_BD)]
            torch.addmm(bias_C, query_BD, candidate_CD.T, alpha=1 / temperature, out=logits_BC)
            logits_BC[row_x - start, column_x] = -torch.inf
            most_B1 = logits_BC.amax(1, keepdim=True)
            own_logit_B1 = logits_BC.gather(1, own_B1) - most_B1
            weight_BC = logits_BC.sub_(most_B1).exp_()
            sum_B1 = weight_BC.sum(1, keepdim=True)
            loss += (sum_B1.log() - own_logit_B1).sum()
            # d loss / d logit = (weight / sum - [is own]) / S. The division by sum is cheap later, in `scale_B1`.
            weight_BC.scatter_add_(1, own_B1, -sum_B1)
            scale_B1 = 1 / (sum_B1 * (S * temperature))
            torch.mm(weight_BC, candidate_CD, out=to_query_SD[start : start + starts.step]).mul_(scale_B1)
            to_candidate_CD.addmm_(weight_BC.T, query_BD * scale_B1)
            mass_C += weight_BC.T @ scale_B1[:, 0]
            missing_S[start : start + starts.step] = (weight_BC.gather(1, own_B1) * -scale_B1)[:, 0]
        ctx.save_for_backward(to_query_SD, to_candidate_CD.addcmul_(candidate_CD, mass_C[:, None], value=-1))
        # The mass has in it what the own candidates lack, below 0.
        wrong_C = mass_C.index_add(0, own_S, missing_S) * temperature
        ctx.mark_non_differentiable(wrong_C)
        return loss / S, wrong_C

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        to_query_SD, to_candidate_CD = ctx.saved_tensors
        return gradients[0] * to_query_SD, gradients[0] * to_candidate_CD, None, None, None


def _by_block(left_out_2X: torch.Tensor, starts: range) -> Sequence[torch.Tensor]:
    """The pairs to mask in each block of queries."""
    if len(starts) == 1:
        return [left_out_2X]
    edges = torch.searchsorted(left_out_2X[0].contiguous(), torch.tensor(starts[1:], device=left_out_2X.device))
    return left_out_2X.tensor_split(edges.cpu(), dim=1)


def _embeddings(scores: Scores) -> list[torch.Tensor]:
    """The embeddings of points, counters and negatives (one row each), and of the points as candidates."""
    assert scores.rival_BD is not None
    return [scores.point_BD, scores.counter_BD, scores.negative_BKD.flatten(0, 1), scores.rival_BD]
