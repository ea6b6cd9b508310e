"""Selects each sample's negatives: random texts or near ones, as a function of (seed, epoch, sample).

P: samples (pairs of the training split), Q: a block of them, K: negatives of a sample, k: neighbours, N: candidate texts
held here, D: dimension, U: distinct points, n: allowed texts of each.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biencoder.config.schema import MiningConfig
from biencoder.data import Forbidden, Members, Split
from biencoder.data.ids import Ids, spread_over
from biencoder.distributed.world import World
from biencoder.errors import DataError
from biencoder.retrieval.build import reference_index
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.nearest import Distances, NegativeIndex, nearest_allowed, nearest_of_ranks
from biencoder.rng import permutation, uniforms

_MAX_DRAWS = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """The conditions that a near negative must meet."""

    forbidden: Forbidden
    members: Members | None = None
    """The negative must belong to the sample's group."""
    least_distance_P: Distances | None = None
    """The negative must be at least this far from the sample's point."""
    taken_PK: Ids | None = None
    """Texts that the samples have already (negative: none); the negative must be another."""

    @property
    def optional(self) -> bool:
        """Whether there are conditions that a random negative need not meet."""
        return any(limit is not None for limit in (self.members, self.least_distance_P, self.taken_PK))


def draws_random(*, seed: int, epoch: int, num_samples: int, count: int, random_rate: float) -> npt.NDArray[np.bool_]:
    """Which of the `count` negatives of each sample (P, K) are random in this epoch."""
    positions_P = np.arange(num_samples)
    drawn = [
        uniforms(seed=seed, purpose="random or nearest", epoch=epoch, positions_N=positions_P, draw=number) < random_rate
        for number in range(count)
    ]
    return np.stack(drawn, axis=1) if drawn else np.empty((num_samples, 0), dtype=bool)


def resting(*, seed: int, turn: int, num_samples: int, share: float) -> npt.NDArray[np.bool_]:
    """Which samples (P,) are not among the share that gets new negatives in this turn.

    The turns go round in one random order of the samples, so that each has its own after 1 / share turns at the latest.
    """
    count = math.ceil(share * num_samples)
    is_resting_P = np.ones(num_samples, dtype=np.bool_)
    order_P = permutation(seed=seed, purpose="turns of the samples", epoch=0, size=num_samples)
    is_resting_P[order_P[(turn * count + np.arange(count)) % num_samples]] = False
    return is_resting_P


def random_negatives(
    samples: Ids, taken_QK: Ids, split: Split, forbidden: Forbidden, *, seed: int, epoch: int, number: int = 0
) -> Ids:
    """For each of these samples a text drawn from all points and counters, or from the corpus of a split that has one,
    redrawn while it is forbidden or taken.

    Args:
        taken_QK: texts that the samples already have (negative: none). If no other text is allowed, these count as free.
        number: which of the sample's negatives this is; each has its own draws.

    Raises:
        DataError: a sample has no possible negative.
    """
    pool = split.negative_pool
    chosen = np.full(len(samples), -1, dtype=np.int64)
    for draw in range(_MAX_DRAWS):
        left = np.flatnonzero(chosen < 0)
        if not len(left):
            return chosen
        nth = number * _MAX_DRAWS + draw
        u = uniforms(seed=seed, purpose="random negative", epoch=epoch, positions_N=samples[left], draw=nth)
        texts = pool[(u * len(pool)).astype(np.int64)]
        good = forbidden.allows(split.point_text_P[samples[left]], texts) & (texts[:, None] != taken_QK[left]).all(1)
        chosen[left[good]] = texts[good]
    # In a tiny corpus, or if one text is nearly everywhere, take the first allowed text. It depends on the point alone.
    stubborn = np.flatnonzero(chosen < 0)
    point_U, which = np.unique(split.point_text_P[samples[stubborn]], return_inverse=True)
    first_Un = [np.unique(pool[forbidden.allows(point, pool)])[: taken_QK.shape[1] + 1] for point in point_U]
    for i, point in zip(stubborn, which, strict=True):
        if not len(allowed := first_Un[point]):
            raise no_negative(split, samples[i])
        free = allowed[~np.isin(allowed, taken_QK[i])]
        chosen[i] = (free if len(free) else allowed)[0]
    return chosen


def nearest_negatives(
    samples: Ids,
    split: Split,
    limits: Limits,
    embedded: EmbeddedTexts,
    index: NegativeIndex,
    world: World,
    *,
    count: int = 1,
) -> tuple[Ids, Distances]:
    """For each of these samples the nearest allowed texts, nearest first, and their distances; ties go to the lower id.

    Each rank of `world` searches the candidates that it holds, and the nearest answers of all ranks are kept. With exact
    indexes this equals a search of one index over all candidates. The reference system has an index of points and another
    of counters, and takes the nearer answer; one index over both gives the same. Every rank of `world` takes part.

    Args:
        index: the index of the candidates held here, in the order of `embedded.text_ids_N`.

    Returns:
        Text ids (len(samples), count), -1 where fewer are allowed, and distances, inf there.
    """
    mined = np.full((len(samples), count), -1, dtype=np.int64)
    distance = np.full(mined.shape, np.inf)
    vectors_ND = embedded.candidate.embedding.numpy()
    only_some = split.judgements is not None or split.given is not None
    is_candidate_N = split.is_candidate(limits.forbidden.num_texts) if only_some else None
    for block, queries, counts in embedded.blocks(split.point_text_P[samples], world, pooled=False):
        samples_Q = samples[block]

        def allowed(numbers: Ids, rows: Ids, samples_Q: Ids = samples_Q) -> npt.NDArray[np.bool_]:
            texts, samples_Q1 = embedded.text_ids_N[rows], samples_Q[numbers][:, None]
            good = limits.forbidden.allows(split.point_text_P[samples_Q1], texts)
            if is_candidate_N is not None:
                good &= is_candidate_N[texts]
            for taken_P in () if limits.taken_PK is None else limits.taken_PK.T:
                good &= texts != taken_P[samples_Q1]
            return good if limits.members is None else good & limits.members.include(samples_Q1, texts)

        least_Q = None if limits.least_distance_P is None else limits.least_distance_P[samples_Q]
        rows_Qk, distance_Qk = nearest_allowed(
            index, vectors_ND, queries.embedding.numpy(), allowed, count=count, least_distance_Q=least_Q
        )
        texts_Qk = np.where(rows_Qk >= 0, embedded.text_ids_N[rows_Qk] if len(embedded.text_ids_N) else -1, -1)
        mined[block], distance[block] = nearest_of_ranks(texts_Qk, distance_Qk, world, counts)
    return mined, distance


def chosen_ranks(samples: Ids, config: MiningConfig, *, seed: int, epoch: int) -> Ids:
    """The ranks (Q, K) of the nearest texts (0: the nearest) that these samples take, in order.

    The ranks from `range_min` on; with `range_max` a random choice of those in this range.
    """
    window = np.arange(config.range_min, config.num_neighbours)
    if not config.range_max:
        return np.broadcast_to(window, (len(samples), len(window)))
    keys = [
        uniforms(seed=seed, purpose="rank of a negative", epoch=epoch, positions_N=samples, draw=int(rank))
        for rank in window
    ]
    ranks: Ids = window[np.argsort(np.stack(keys, axis=1), axis=1, kind="stable")[:, : config.negatives]]
    return ranks


def least_distances(pair_distance_P: Distances, config: MiningConfig) -> Distances:
    """The least distance of a near negative from its point, given the distance of the point's own counter."""
    bounds = []
    if config.absolute_margin:
        bounds.append(pair_distance_P + config.absolute_margin)
    if config.relative_margin:
        bounds.append(pair_distance_P * (1 + config.relative_margin))
    if config.positive_share:  # cos = 1 - d^2 / 2 for vectors of length 1
        cosine_P = np.clip(1 - np.square(pair_distance_P) / 2, -1, 1)
        bounds.append(np.sqrt(2 * np.maximum(0, 1 - config.positive_share * cosine_P)))
    least_P: Distances = np.max(bounds, axis=0)
    return least_P


def no_negative(split: Split, sample: int) -> DataError:
    return DataError(f"{split.pairs[sample].point.source} has no possible negative: the corpus is too small")


def recall(
    found_Qk: Ids,
    samples: Ids,
    split: Split,
    limits: Limits,
    embedded: EmbeddedTexts,
    world: World,
    *,
    fp64: bool = False,
) -> float:
    """Share of the truly nearest allowed texts that are among `found_Qk`.

    It is measured on up to 500 of these samples by FAISS, or on 50 in fp64.
    """
    sample_n = spread_over(len(samples), 50 if fp64 else 500)
    index = reference_index(embedded.candidate.embedding.numpy(), fp64=fp64)
    truth_nk, _ = nearest_negatives(samples[sample_n], split, limits, embedded, index, world, count=found_Qk.shape[1])
    exists_nk = truth_nk >= 0
    is_found_nk = (truth_nk[:, :, None] == found_Qk[sample_n][:, None, :]).any(2)
    return float(is_found_nk[exists_nk].mean()) if exists_nk.any() else 1.0
