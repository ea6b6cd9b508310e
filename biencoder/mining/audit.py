"""The audit of mined negatives: how hard they are, which look like copies of their point or counter, and whether the
embeddings still distinguish texts.

Distances are measured on a sample of the negatives, evenly spread, so that the audit of a large corpus takes seconds. A
share among 50,000 negatives has a standard error of at most 0.22 %. Whether a negative is forbidden is checked for all.

P: samples, K: negatives of each, X: negatives whose distances are measured, N: texts held here, n: a block of them, D:
dimension.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from biencoder.data import Forbidden, Split
from biencoder.data.ids import Ids, spread_over
from biencoder.distributed.world import World
from biencoder.retrieval.embedding import EmbeddedTexts

NEAR_COPY = 0.2
"""A text is a near copy of another if their distance is below this share of the distance of two random texts."""
_MOST_BINS = 40
_LISTED = 10
_MOST_ROWS = 20_000
MOST_NEGATIVES = 50_000
"""The largest number of negatives whose distances are measured."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The audit's metrics; tracking/names.py describes them as `mine/...`."""

    forbidden: int
    pair_distance: float
    harder_share: float
    still_harder_share: float
    """NaN if there were no negatives before."""
    near_copies: float
    spread: float
    effective_rank: float
    audit_s: float


@dataclass(frozen=True, slots=True)
class CloseNegative:
    """A sample's negative that is close to its point or counter, and the distances between the three."""

    sample: int
    negative_text: int
    to_point: float
    to_counter: float
    counter_to_point: float


@dataclass(frozen=True, slots=True)
class Audit:
    figures: Figures
    hardness_edges: list[float]
    """Edges of the bins of the histogram of d(point, counter) - d(point, negative)."""
    hardness_counts: list[int]
    """Negatives in each bin."""
    closest: list[CloseNegative]
    """The negatives nearest to their sample's point or counter, nearest first."""
    fingerprint: str
    """A hash of the embeddings, and so of the weights, texts and settings that made them."""


def audit(
    split: Split,
    negative_text_PK: Ids,
    forbidden: Forbidden,
    embedded: EmbeddedTexts,
    world: World,
    *,
    before_PK: Ids | None = None,
) -> Audit:
    """Audit the negatives. Every rank of `world`, the holders of `embedded`, takes part and gets the same result.

    Args:
        before_PK: the negatives that the embeddings were trained on since the last audit, if there are such.
    """
    start = time.perf_counter()
    place_X = spread_over(negative_text_PK.size, MOST_NEGATIVES)
    sample_X, negative_X = place_X // negative_text_PK.shape[1], negative_text_PK.ravel()[place_X]
    point_X, counter_X = split.point_text_P[sample_X], split.counter_text_P[sample_X]
    samples, of_X = np.unique(sample_X, return_inverse=True)
    pairs = embedded.distances("query", split.point_text_P[samples], split.counter_text_P[samples], world)
    pair_X, negative_distance_X = pairs[of_X], embedded.distances("query", point_X, negative_X, world)
    if before_PK is not None:
        before_X = embedded.distances("query", point_X, before_PK.ravel()[place_X], world)
    # All as candidates: queries may have an encoder of their own, and so a geometry of their own.
    to_counter_X = embedded.distances("candidate", counter_X, negative_X, world)
    copied_X = np.minimum(embedded.distances("candidate", point_X, negative_X, world), to_counter_X)
    spread, effective_rank = geometry(embedded, world)
    hardness_X = pair_X - negative_distance_X
    counts, edges = np.histogram(hardness_X, bins=min(_MOST_BINS, 1 + math.isqrt(len(samples))))
    closest = np.argsort(copied_X, kind="stable")[:_LISTED]
    figures = Figures(
        forbidden=int((~forbidden.allows(split.point_text_P[:, None], negative_text_PK)).sum()),
        pair_distance=float(pairs.mean()),
        harder_share=float((hardness_X > 0).mean()),
        still_harder_share=math.nan if before_PK is None else float((pair_X > before_X).mean()),
        near_copies=float((copied_X < NEAR_COPY * math.sqrt(2) * spread).mean()),
        spread=spread,
        effective_rank=effective_rank,
        audit_s=time.perf_counter() - start,
    )
    listed = [
        CloseNegative(
            int(sample_X[i]), int(negative_X[i]), float(negative_distance_X[i]), float(to_counter_X[i]), float(pair_X[i])
        )
        for i in closest
    ]
    return Audit(figures, edges.tolist(), counts.tolist(), listed, fingerprint(embedded, world))


def churn(now_PK: Ids, before_PK: Ids | None) -> float:
    """Share of negatives that their sample did not have in the epoch before; NaN in the first epoch."""
    if before_PK is None:
        return math.nan
    return float((now_PK[:, :, None] != before_PK[:, None, :]).all(2).mean())


def fingerprint(embedded: EmbeddedTexts, world: World) -> str:
    """A hash of all embeddings, which does not depend on how ranks hold them. Every rank of `world` takes part.

    It is multilinear modulo 2^64 (Carter, Wegman 1979): each coordinate has a random odd factor, and each text another one.
    """
    digest, factor_N = 0, 2 * embedded.text_ids_N.astype(np.uint64) + 1
    for side, vectors in enumerate((embedded.query, embedded.candidate)):
        factor_D = np.random.default_rng(side).integers(2**63, size=vectors.embedding.shape[1], dtype=np.uint64) * 2 + 1
        for start in range(0, len(factor_N), _MOST_ROWS):
            block = slice(start, start + _MOST_ROWS)
            bits_nD = vectors.embedding[block].contiguous().numpy().view(np.uint32).astype(np.uint64)
            digest += int((factor_N[block] * (bits_nD @ factor_D)).sum())
    return f"{sum(world.all_gather_object(digest)) % 2**64:016x}"


def geometry(embedded: EmbeddedTexts, world: World) -> tuple[float, float]:
    """Spread and effective rank of the candidates' embeddings. Every rank of `world` takes part.

    The spread is the root mean square distance from the mean; two random texts are sqrt(2) times as far apart. The
    effective rank is the exponential of the entropy of the normalised singular values (Roy and Vetterli 2007). It is D if
    embeddings spread equally in all directions, and 1 on a line. Both are measured on up to 20,000 texts of each rank.
    """
    vectors_ND = embedded.candidate.embedding
    vectors_ND = vectors_ND[:: max(1, len(vectors_ND) // _MOST_ROWS)].double()
    moments = torch.cat([vectors_ND.T @ vectors_ND, vectors_ND.sum(0)[None]])
    count = torch.full((1, moments.shape[1]), float(len(vectors_ND)), dtype=moments.dtype)
    mean = (
        world.all_reduce_mean(torch.cat([moments, count]).to(world.device)).cpu()
        / world.all_reduce_mean(count.to(world.device)).cpu()[0, 0]
    )
    covariance_DD = mean[:-2] - torch.outer(mean[-2], mean[-2])
    variance_D = torch.linalg.eigvalsh(covariance_DD).clamp_min(0)
    # Rounding errors of the difference above are no variance: equal embeddings must have none.
    variance_D[variance_D < 1e-10 * mean[:-2].diagonal().sum()] = 0
    share_D = variance_D.sqrt() / variance_D.sqrt().sum().clamp_min(1e-300)
    entropy = -(share_D * share_D.clamp_min(1e-300).log()).sum()
    return float(variance_D.sum().sqrt()), float(entropy.exp()) if variance_D.any() else 0.0
