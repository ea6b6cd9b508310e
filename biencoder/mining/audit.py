"""What the mined negatives are like: how hard, which look like copies of what they should differ from, and whether the
embeddings they were found with still tell texts apart.

P: samples, N: texts held here, D: dimension.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from biencoder.data import Split
from biencoder.distributed import World
from biencoder.embedding import EmbeddedTexts
from biencoder.model import Side

Ids = npt.NDArray[np.int64]
Distances = npt.NDArray[np.float64]

NEAR_COPY = 0.2
"""A text is nearly a copy of another if their distance is below this share of that of two texts drawn at random."""
_MOST_BINS = 40
_LISTED = 10
_MOST_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Figures:
    """See the `mine/` names in tracking/names.py."""

    pair_distance: float
    harder_share: float
    near_copies: float
    spread: float
    effective_rank: float
    audit_s: float


@dataclass(frozen=True, slots=True)
class CloseNegative:
    """A sample whose negative is close to a copy."""

    sample: int
    negative_text: int
    to_point: float
    to_counter: float
    counter_to_point: float


@dataclass(frozen=True, slots=True)
class Audit:
    figures: Figures
    hardness_edges: list[float]
    """Of the bins of the histogram of d(point, counter) - d(point, negative)."""
    hardness_counts: list[int]
    closest: list[CloseNegative]
    """The negatives nearest to their sample's point or counter, nearest first."""


def audit(split: Split, negative_text_P: Ids, embedded: EmbeddedTexts, world: World) -> Audit:
    """Every rank of `world`, the holders of `embedded`, takes part, and gets the same."""
    start = time.perf_counter()
    pair_P = distances("query", split.point_text_P, split.counter_text_P, embedded, world)
    negative_P = distances("query", split.point_text_P, negative_text_P, embedded, world)
    # As candidates, which share one geometry also where queries have an encoder of their own.
    copied_P = np.minimum(
        distances("candidate", split.point_text_P, negative_text_P, embedded, world),
        to_counter_P := distances("candidate", split.counter_text_P, negative_text_P, embedded, world),
    )
    spread, effective_rank = geometry(embedded, world)
    hardness_P = pair_P - negative_P
    counts, edges = np.histogram(hardness_P, bins=min(_MOST_BINS, 1 + math.isqrt(len(split))))
    closest = np.argsort(copied_P, kind="stable")[:_LISTED]
    figures = Figures(
        pair_distance=float(pair_P.mean()),
        harder_share=float((hardness_P > 0).mean()),
        near_copies=float((copied_P < NEAR_COPY * math.sqrt(2) * spread).mean()),
        spread=spread,
        effective_rank=effective_rank,
        audit_s=time.perf_counter() - start,
    )
    listed = [
        CloseNegative(int(i), int(negative_text_P[i]), float(negative_P[i]), float(to_counter_P[i]), float(pair_P[i]))
        for i in closest
    ]
    return Audit(figures, edges.tolist(), counts.tolist(), listed)


def distances(side: Side, text_P: Ids, candidate_text_P: Ids, embedded: EmbeddedTexts, world: World) -> Distances:
    """Euclidean distance (P,) of each text's vector of that side to the candidate's. Every rank of `world` takes part."""
    distance_P = np.empty(len(text_P))
    vectors_ND = embedded.candidate.embedding
    for block, mine in embedded.blocks(text_P, world, side=side, pooled=False):
        here = np.flatnonzero(np.isin(candidate_text_P[block], embedded.text_ids_N))
        rows = np.searchsorted(embedded.text_ids_N, candidate_text_P[block][here])
        distance_Q = np.full(len(block), np.inf)
        gap_QD = mine.embedding[torch.from_numpy(here)] - vectors_ND[torch.from_numpy(rows)]
        distance_Q[here] = torch.linalg.vector_norm(gap_QD, dim=1).double().numpy()
        _, distance_P[block] = world.nearest(np.zeros(len(block), dtype=np.int64), distance_Q)
    return distance_P


def geometry(embedded: EmbeddedTexts, world: World) -> tuple[float, float]:
    """Spread and effective rank of the candidates' embeddings. Every rank of `world` takes part.

    The spread is the root mean square distance from the mean; two texts drawn at random are sqrt(2) times as far apart. The
    effective rank is the exponential of the entropy of the singular values' shares (Roy and Vetterli 2007): D for
    embeddings that spread alike in all directions, 1 on a line. Measured on up to 20,000 texts a rank.
    """
    vectors_ND = embedded.candidate.embedding
    vectors_ND = vectors_ND[:: max(1, len(vectors_ND) // _MOST_ROWS)].double()
    moments = torch.cat([vectors_ND.T @ vectors_ND, vectors_ND.sum(0)[None]])
    count = torch.full((1, moments.shape[1]), float(len(vectors_ND)), dtype=moments.dtype)
    mean = world.mean(torch.cat([moments, count]).to(world.device)).cpu() / world.mean(count.to(world.device)).cpu()[0, 0]
    covariance_DD = mean[:-2] - torch.outer(mean[-2], mean[-2])
    variance_D = torch.linalg.eigvalsh(covariance_DD).clamp_min(0)
    # What rounding leaves of the difference above says nothing: equal embeddings have no direction at all.
    variance_D[variance_D < 1e-10 * mean[:-2].diagonal().sum()] = 0
    share_D = variance_D.sqrt() / variance_D.sqrt().sum().clamp_min(1e-300)
    entropy = -(share_D * share_D.clamp_min(1e-300).log()).sum()
    return float(variance_D.sum().sqrt()), float(entropy.exp()) if variance_D.any() else 0.0
