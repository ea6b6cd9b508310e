"""Which negative each sample gets: a random text or the nearest one, as a function of (seed, epoch, sample).

P: samples (pairs of the training split), Q: samples in a block, N: candidate texts held here, D: dimension.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biencoder.config import MiningConfig
from biencoder.data import Split
from biencoder.distributed import World
from biencoder.embedding import EmbeddedTexts
from biencoder.errors import DataError
from biencoder.mining.build import build_index
from biencoder.mining.index import NegativeIndex, nearest_allowed
from biencoder.rng import uniforms

Ids = npt.NDArray[np.int64]
_MAX_DRAWS = 64


@dataclass(frozen=True, slots=True)
class Forbidden:
    """For each text the texts that may not be its negative: itself and every counter it is paired with."""

    codes: Ids
    """point text * number of texts + forbidden text, sorted."""
    num_texts: int

    @classmethod
    def of(cls, split: Split, num_texts: int) -> "Forbidden":
        """Texts are compared, not samples: what stands under several themes is forbidden under all of them."""
        pairs = np.concatenate(
            [split.point_text_P * num_texts + other for other in (split.point_text_P, split.counter_text_P)]
        )
        return cls(np.unique(pairs), num_texts)

    def allows(self, points: Ids, texts: Ids) -> npt.NDArray[np.bool_]:
        """Elementwise (with broadcasting): may `texts` be negatives of the point texts `points`?"""
        return ~np.isin(points * self.num_texts + texts, self.codes)


def draws_random(*, seed: int, epoch: int, num_samples: int, random_rate: float) -> npt.NDArray[np.bool_]:
    """Which samples (P,) take a random negative in this epoch."""
    positions_P = np.arange(num_samples)
    return uniforms(seed=seed, purpose="random or nearest", epoch=epoch, positions_N=positions_P) < random_rate


def random_negatives(samples: Ids, split: Split, forbidden: Forbidden, *, seed: int, epoch: int) -> Ids:
    """For each of these samples a text drawn from all points and counters, redrawn while it is forbidden.

    Raises:
        DataError: a sample has no text that it may have as a negative.
    """
    pool = np.concatenate([split.point_text_P, split.counter_text_P])
    chosen = np.full(len(samples), -1, dtype=np.int64)
    for draw in range(_MAX_DRAWS):
        left = np.flatnonzero(chosen < 0)
        if not len(left):
            return chosen
        u = uniforms(seed=seed, purpose="random negative", epoch=epoch, positions_N=samples[left], draw=draw)
        texts = pool[(u * len(pool)).astype(np.int64)]
        good = forbidden.allows(split.point_text_P[samples[left]], texts)
        chosen[left[good]] = texts[good]
    for i in np.flatnonzero(chosen < 0):  # a tiny corpus, or one text nearly everywhere: take the first that is allowed
        points = np.full(len(pool), split.point_text_P[samples[i]])
        allowed = pool[forbidden.allows(points, pool)]
        if not len(allowed):
            raise DataError(f"{split.pairs[samples[i]].point.source} has no possible negative: the corpus is too small")
        chosen[i] = allowed.min()
    return chosen


def nearest_negatives(
    samples: Ids, split: Split, forbidden: Forbidden, embedded: EmbeddedTexts, index: NegativeIndex, world: World
) -> tuple[Ids, npt.NDArray[np.float64]]:
    """For each of these samples the nearest allowed text and its distance; ties go to the lower text id.

    Each rank of `world` searches the candidates that it holds, and the nearest of their answers counts: with exact indexes
    that is what one index over all candidates finds. The reference keeps an index of points and one of counters and takes
    the nearer answer of the two; one index over both gives the same. Every rank of `world` takes part.

    Args:
        index: over the candidates held here, in the order of `embedded.text_ids_N`.

    Returns:
        Text ids, -1 where an approximate index found nothing that is allowed, and distances, inf there.

    Raises:
        DataError: a sample has no text that it may have as a negative.
    """
    mined, distance = np.full(len(samples), -1, dtype=np.int64), np.full(len(samples), np.inf)
    vectors_ND = embedded.candidate.embedding.numpy()
    for block, queries in embedded.blocks(split.point_text_P[samples], world, pooled=False):
        points_Q = split.point_text_P[samples[block]]

        def allowed(some: Ids, rows: Ids, points_Q: Ids = points_Q) -> npt.NDArray[np.bool_]:
            return forbidden.allows(points_Q[some][:, None], embedded.text_ids_N[rows])

        rows_Q, distance_Q = nearest_allowed(index, vectors_ND, queries.embedding.numpy(), allowed)
        found = rows_Q >= 0
        texts_Q = np.full(len(rows_Q), -1, dtype=np.int64)
        texts_Q[found] = embedded.text_ids_N[rows_Q[found]]
        mined[block], distance[block] = world.nearest(texts_Q, distance_Q)

    def check() -> None:
        if index.exact and (mined < 0).any():
            sample = samples[int(np.argmax(mined < 0))]
            raise DataError(f"{split.pairs[sample].point.source} has no possible negative: the corpus is too small")

    world.together(check)
    return mined, distance


def recall(mined: Ids, samples: Ids, split: Split, forbidden: Forbidden, embedded: EmbeddedTexts, world: World) -> float:
    """Share of these samples whose mined negative is the truly nearest allowed text, from up to 500 of them."""
    some = np.linspace(0, len(samples) - 1, min(500, len(samples))).astype(np.int64)
    exact_index = build_index(embedded.candidate.embedding.numpy(), MiningConfig(index="faiss", faiss_kind="flat"))
    truth, _ = nearest_negatives(samples[some], split, forbidden, embedded, exact_index, world)
    return float((mined[some] == truth).mean())
