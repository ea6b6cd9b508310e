"""The combined loss: triplet margin on similarity embeddings plus the pair classifier's two cross-entropies, plus, where it
has a weight, the in-batch contrastive loss (contrastive.py).

    loss = w_t * triplet(point, counter, negative)
         + w_c * (CE(point, counter → 1) + CE(point, negative → 0)), or w_c * CE(point → counter among its negatives)
         + w_i * InfoNCE(point → counter)

Triplet and contrastive loss are sums over the full embeddings and those of `loss.matryoshka_dims`, where there are such.
Computed in fp32 whatever the encoder's precision. B: triplets, K: negatives of each.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from biencoder.config.schema import LossConfig
from biencoder.model.bi_encoder import Scores
from biencoder.model.truncation import FULL, Truncation
from biencoder.training.contrastive import CachedGradients


class LossParts(NamedTuple):
    """Means over the batch, scalars; `total` carries the graph of all."""

    total: torch.Tensor
    triplet: torch.Tensor
    ce_positive: torch.Tensor
    ce_negative: torch.Tensor
    contrastive: torch.Tensor
    """0 where it has no weight."""
    active_triplets: torch.Tensor
    """Share of triplets that the margin still separates too little, i.e. whose triplet loss is above 0, at full size."""
    wrong: torch.Tensor
    """Probability that the contrastive loss sees in wrong candidates; 0 where it has no weight."""
    mined: torch.Tensor
    """The part of it that mined negatives have."""

    def detached(self) -> torch.Tensor:
        """All of them as one vector without graph, in the order of the fields."""
        return torch.stack([part.detach() for part in self])


def combined_loss(
    scores: Scores,
    config: LossConfig,
    cached: CachedGradients | None = None,
    *,
    num_chunks: int = 1,
    truncation: Truncation = FULL,
) -> LossParts:
    """The weighted sum and its parts (Shi, Cao, Nguyen 2023; triplet loss of Schroff et al. 2015, Euclidean).

    Args:
        cached: the contrastive loss's gradients at this micro-batch's embeddings; None where that loss has no weight.
        num_chunks: micro-batches of the rank in this step; the step's loss is the mean of theirs.
        truncation: the sizes at which the triplet loss is taken as well.
    """
    embeddings = (scores.point_BD.float(), scores.counter_BD.float(), scores.negative_BKD.float())
    triplet_BK = _triplets(*embeddings, config.margin)
    triplet = _mean(triplet_BK)
    for size in truncation.sizes:
        point_Bd, counter_Bd, negative_BKd = (truncation.cut(part, size) for part in embeddings)
        triplet = triplet + _mean(_triplets(point_Bd, counter_Bd, negative_BKd, config.margin))
    ce_positive, ce_negative = (_ranking if config.classification == "ranking" else _pairs)(scores)
    total = config.triplet_weight * triplet + config.classification_weight * (ce_positive + ce_negative)
    contrastive = wrong = mined = torch.zeros_like(triplet)
    if cached:
        wrong, mined = cached.wrong, cached.mined
        contrastive, surrogate = cached.step_loss, num_chunks * cached.surrogate(scores)
        # The sum has the surrogate's gradient and the contrastive loss's value.
        total = total + config.contrastive_weight * (surrogate - surrogate.detach() + contrastive)
    active = _mean((triplet_BK > 0).float())
    return LossParts(total, triplet, ce_positive, ce_negative, contrastive, active, wrong, mined)


def _triplets(point_BD: torch.Tensor, counter_BD: torch.Tensor, negative_BKD: torch.Tensor, margin: float) -> torch.Tensor:
    """The triplet loss (B, K) of each negative."""
    # pairwise_distance adds 1e-6 to the difference: the gradient at distance 0 is finite.
    pair_B1 = F.pairwise_distance(point_BD, counter_BD, keepdim=True)
    return (pair_B1 - F.pairwise_distance(point_BD[:, None], negative_BKD) + margin).clamp_min(0)


def _pairs(scores: Scores) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross-entropies of (point, counter) and of (point, negative), each pair on its own."""
    logits_B2, logits_BK2 = scores.counter_logits_B2.float(), scores.negative_logits_BK2.float()
    ones_B = torch.ones(len(logits_B2), dtype=torch.long, device=logits_B2.device)
    zeros_BK = torch.zeros(logits_BK2.shape[:2], dtype=torch.long, device=logits_B2.device)
    negative_BK = F.cross_entropy(logits_BK2.flatten(0, 1), zeros_BK.flatten(), reduction="none")
    return F.cross_entropy(logits_B2, ones_B), _mean(negative_BK)


def _ranking(scores: Scores) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross-entropy of the counter among itself and its negatives, by their log-odds; and 0."""
    logits_BC2 = torch.cat([scores.counter_logits_B2[:, None], scores.negative_logits_BK2], dim=1).float()
    odds_BC = logits_BC2[..., 1] - logits_BC2[..., 0]
    first_B = torch.zeros(len(odds_BC), dtype=torch.long, device=odds_BC.device)
    ranking = F.cross_entropy(odds_BC, first_B)
    return ranking, torch.zeros_like(ranking)


def _mean(values: torch.Tensor) -> torch.Tensor:
    """0 for no values."""
    return values.sum() / max(1, values.numel())
