"""In-batch contrastive learning (InfoNCE): every point is to find its own counter among all texts of the global batch.

    loss = mean over points of cross-entropy(-|point - candidate|^2 / (2 temperature) -> own counter)

For embeddings of length 1 that is the cosine over the temperature (van den Oord, Li, Vinyals 2018; Karpukhin et al. 2020),
and for others it follows the distance that negatives are mined and candidates ranked by. The candidates are the counters of
all ranks, their mined negatives, and, as rivals, their points: whatever the ranking of all arguments has to tell apart. A
candidate that is no wrong answer (another counter of the same point, or a text identical to one) is left out.

The loss sees the whole global batch, whatever number of ranks and micro-batches it is spread over: gradients at the
embeddings come first, computed without graph where there are several micro-batches, and each micro-batch then passes its
own on to the weights (GradCache: Gao, Zhang, Han, Callan 2021). See `loop.train_step`.

R: ranks, S: samples of one rank in a step, K: mined negatives of each, C: candidates of all ranks, D: dimension.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from biencoder.config import LossConfig
from biencoder.data import Forbidden, Split
from biencoder.distributed import World
from biencoder.model import Scores

Ids = npt.NDArray[np.int64]


class Targets(NamedTuple):
    """What one rank's points are to find among the candidates of all ranks."""

    own_S: torch.Tensor
    """Column of each point's own counter."""
    left_out_SC: torch.Tensor
    """True where a candidate is neither the point's own counter nor a wrong answer."""
    own_point_S: torch.Tensor
    """For the other direction, from counters to points: column of each counter's own point,"""
    left_out_SP: torch.Tensor
    """and the points (of all ranks) that are neither it nor wrong."""

    def to(self, device: torch.device) -> "Targets":
        return Targets(*(part.to(device) for part in self))


def targets(samples_RS: Ids, split: Split, negative_text_PK: Ids, forbidden: Forbidden, *, rank: int) -> Targets:
    """Of this rank's samples, given those of every rank, each in the order of its micro-batches."""
    R, S = samples_RS.shape
    mine_S = samples_RS[rank]
    point_RS, counter_RS = split.point_text_P[samples_RS], split.counter_text_P[samples_RS]
    candidate_C = np.concatenate([counter_RS, negative_text_PK[samples_RS].reshape(R, -1), point_RS], axis=1).ravel()
    own_S = rank * (len(candidate_C) // R) + np.arange(S)
    left_out_SC = ~forbidden.allows(split.point_text_P[mine_S][:, None], candidate_C[None, :])
    left_out_SC[np.arange(S), own_S] = False
    own_point_S = rank * S + np.arange(S)
    left_out_SP = ~forbidden.allows(point_RS.ravel()[None, :], split.counter_text_P[mine_S][:, None])
    left_out_SP[np.arange(S), own_point_S] = False
    return Targets(*(torch.from_numpy(part) for part in (own_S, left_out_SC, own_point_S, left_out_SP)))


class Pull(NamedTuple):
    """What the contrastive loss wants of one micro-batch."""

    loss: torch.Tensor
    """Its value over the step, the same for all micro-batches of a rank."""
    gradients: list[torch.Tensor]
    """Of the rank's loss with respect to each of the micro-batch's embeddings, as `_embeddings` lists them."""

    def applied_to(self, scores: Scores) -> torch.Tensor:
        """A scalar whose gradient with respect to the embeddings is the loss's."""
        parts = zip(_embeddings(scores), self.gradients, strict=True)
        return torch.stack([(part.float() * gradient).sum() for part, gradient in parts]).sum()


def contrast(chunks: Sequence[Scores], wanted: Targets, config: LossConfig, world: World) -> list[Pull]:
    """The contrastive loss of a step and its gradient at the embeddings of each micro-batch. Every rank takes part.

    Args:
        chunks: the micro-batches of this rank, with or without graph.
    """
    leaves = [[part.detach().float().requires_grad_() for part in _embeddings(chunk)] for chunk in chunks]
    point_SD, counter_SD, negative_XD, rival_SD = (torch.cat(parts) for parts in zip(*leaves, strict=True))
    candidate_CD = world.all_rows(torch.cat([counter_SD, negative_XD, rival_SD]))
    loss = cross_entropy(point_SD, candidate_CD, wanted.own_S, wanted.left_out_SC, config.temperature)
    if config.symmetric:
        points_PD = world.all_rows(point_SD)
        back = cross_entropy(counter_SD, points_PD, wanted.own_point_S, wanted.left_out_SP, config.temperature)
        loss = (loss + back) / 2
    loss.backward()  # type: ignore[no-untyped-call]
    return [Pull(loss.detach(), [leaf.grad for leaf in chunk if leaf.grad is not None]) for chunk in leaves]


def cross_entropy(
    query_SD: torch.Tensor, candidate_CD: torch.Tensor, own_S: torch.Tensor, left_out_SC: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean over queries of the negative log-probability of each one's own candidate."""
    # -|q - c|^2 / 2 = q.c - |c|^2 / 2 - |q|^2 / 2, and |q|^2 drops out of the softmax.
    logits_SC = (query_SD @ candidate_CD.T - candidate_CD.square().sum(1) / 2) / temperature
    return F.cross_entropy(logits_SC.masked_fill(left_out_SC, -torch.inf), own_S)


def _embeddings(scores: Scores) -> list[torch.Tensor]:
    """Points, counters, negatives (one after the other), and the points as candidates."""
    assert scores.rival_BD is not None
    return [scores.point_BD, scores.counter_BD, scores.negative_BKD.flatten(0, 1), scores.rival_BD]
