"""The combined loss: triplet margin on similarity embeddings plus the pair classifier's two cross-entropies.

    loss = w_t * triplet(point, counter, negative) + w_c * (CE(point, counter → 1) + CE(point, negative → 0))

Computed in fp32 whatever the encoder's precision. B: triplets.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from biencoder.config import LossConfig
from biencoder.model import Scores


class LossParts(NamedTuple):
    """Means over the batch, scalars; `total` carries the graph of all."""

    total: torch.Tensor
    triplet: torch.Tensor
    ce_positive: torch.Tensor
    ce_negative: torch.Tensor
    active_triplets: torch.Tensor
    """Share of triplets that the margin still separates too little, i.e. whose triplet loss is above 0."""

    def detached(self) -> torch.Tensor:
        """All five as one vector without graph, in the order of the fields."""
        return torch.stack([part.detach() for part in self])


def combined_loss(scores: Scores, config: LossConfig) -> LossParts:
    """The weighted sum and its parts (Shi, Cao, Nguyen 2023; triplet loss of Schroff et al. 2015, Euclidean)."""
    point_BD, counter_BD, negative_BD = (scores.point_BD.float(), scores.counter_BD.float(), scores.negative_BD.float())
    # pairwise_distance adds 1e-6 to the difference: the gradient at distance 0 is finite.
    gap_B = F.pairwise_distance(point_BD, counter_BD) - F.pairwise_distance(point_BD, negative_BD)
    triplet_B = (gap_B + config.margin).clamp_min(0)
    triplet = triplet_B.mean()
    ones_B = torch.ones(len(triplet_B), dtype=torch.long, device=triplet_B.device)
    ce_positive = F.cross_entropy(scores.counter_logits_B2.float(), ones_B)
    ce_negative = F.cross_entropy(scores.negative_logits_B2.float(), torch.zeros_like(ones_B))
    total = config.triplet_weight * triplet + config.classification_weight * (ce_positive + ce_negative)
    return LossParts(total, triplet, ce_positive, ce_negative, (triplet_B > 0).float().mean())
