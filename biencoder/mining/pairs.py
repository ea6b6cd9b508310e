"""Mining negatives for pairs of texts in one process, without a run, by the same code as training.

    negatives = mine(points, counters, model)                         # a model embeds the texts
    negatives = mine(points, counters, (points_PD, counters_PD))      # they have been embedded

P: pairs, K: negatives of each, N: distinct texts, D: similarity embedding.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch

from biencoder.config.schema import MiningConfig
from biencoder.data import Forbidden, Split
from biencoder.data.cleaning import tidier
from biencoder.data.near_duplicates import near_duplicates
from biencoder.data.records import Pair, Record, Role
from biencoder.distributed.world import World
from biencoder.errors import ConfigError, DataError
from biencoder.mining.refresh import Miner
from biencoder.model.bi_encoder import Side, Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.nearest import Embeddings

_KINDS: tuple[Role, Role] = ("point", "counter")
_SIDES: tuple[Side, Side] = ("query", "candidate")


class Encoder(Protocol):
    """A model that embeds texts: a `TrainedModel`, or any object with this method."""

    def encode(self, texts: Sequence[str], *, side: Side) -> Embeddings:
        """Embeddings (N, D) of texts as queries or as candidates."""


def mine(
    points: Sequence[str],
    counters: Sequence[str],
    embeddings: Encoder | tuple[Embeddings, Embeddings],
    *,
    config: MiningConfig | None = None,
    candidates: Literal["auto", "counters"] = "auto",
    clean: bool = True,
    seed: int = 0,
    epoch: int = 0,
) -> list[list[str]]:
    """Hard negatives for each pair: K texts among all points and counters, or among counters alone.

    A point never gets its own text, nor any counter that it is paired with, even if these texts occur several times.

    Args:
        points: a text for each of P pairs.
        counters: the right answer of each, in the same order.
        embeddings: a model that embeds the texts, or their embeddings: (P, D) of the points, (P, D) of the counters.
        config: the settings under `mining`; by default the nearest text, with exact search, and no random ones.
        candidates: auto: points can be negatives, too; counters: they cannot.
        clean: whether texts count as the same if they are equal after cleaning.
        seed: determines the random draws, if `config` asks for some.
        epoch: the same; other epochs have other draws, and `config.random_rate_decay` counts them.

    Returns:
        `config.negatives` texts for each pair, the nearest first.

    Raises:
        ConfigError: the numbers of points, counters and embeddings differ, or `config` needs debates.
        DataError: a text is empty, or a pair has no possible negative.
    """
    config = config or MiningConfig(random_rate=0.0)
    _check(config)
    texts, split = _split(points, counters, clean=clean)
    split = split.over_counters() if candidates == "counters" else split
    embedded = _by_vectors(split, *embeddings) if isinstance(embeddings, tuple) else _by_model(texts, embeddings)
    forbidden = Forbidden.of(split, len(texts), same_N=near_duplicates(texts) if config.exclude_near_duplicates else None)
    miner = Miner(split, forbidden, World.alone(), config, seed=seed, num_epochs=epoch + 1)
    negative_text_PK = miner.mine(epoch, embedded).negative_text_PK
    return [[texts[text_id] for text_id in row] for row in negative_text_PK.tolist()]


def _check(config: MiningConfig) -> None:
    if config.focus != "corpus":
        raise ConfigError(f"mining.focus is {config.focus}, but texts alone have no debates or themes")
    if config.given == "only":
        raise ConfigError("mining.given is only, but mine() takes no given negatives")
    if config.range_problem:
        raise ConfigError(config.range_problem)


def _split(points: Sequence[str], counters: Sequence[str], *, clean: bool) -> tuple[list[str], Split]:
    """The distinct texts, each in its first raw form, and the pairs as their ids."""
    if len(points) != len(counters):
        raise ConfigError(f"there are {len(points)} points but {len(counters)} counters")
    if not points:
        raise DataError("there is no pair to mine for")
    tidy, text_ids = tidier(clean), dict[str, int]()
    texts: list[str] = []
    ids_P2 = np.empty((len(points), 2), dtype=np.int64)
    records = [
        [
            Record("", "", "", str(row), kind, text, f"the {kind} in row {row}")
            for kind, text in zip(_KINDS, pair, strict=True)
        ]
        for row, pair in enumerate(zip(points, counters, strict=True))
    ]
    for row, pair in enumerate(records):
        for column, record in enumerate(pair):
            key = tidy(record.text)
            if not key:
                raise DataError(f"{record.source} holds no text: {record.text[:80]!r}")
            ids_P2[row, column] = text_ids.setdefault(key, len(texts))
            texts += [record.text] * (len(text_ids) - len(texts))
    return texts, Split("training", tuple(Pair(point, counter) for point, counter in records), ids_P2[:, 0], ids_P2[:, 1])


def _by_model(texts: Sequence[str], model: Encoder) -> EmbeddedTexts:
    query, candidate = (_vectors(model.encode(texts, side=side)) for side in _SIDES)
    return EmbeddedTexts.whole(np.arange(len(texts)), query, candidate)


def _by_vectors(split: Split, points_PD: Embeddings, counters_PD: Embeddings) -> EmbeddedTexts:
    """
    Raises:
        ConfigError: the arrays do not hold one vector of one length for each point and each counter.
    """
    shapes = [np.shape(points_PD), np.shape(counters_PD)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][0] != len(split):
        raise ConfigError(f"vectors have the shapes {shapes[0]} and {shapes[1]}, expected ({len(split)}, D) twice")
    text_ids_N, first_N = np.unique(np.concatenate([split.point_text_P, split.counter_text_P]), return_index=True)
    vectors = _vectors(np.concatenate([points_PD, counters_PD])[first_N])
    return EmbeddedTexts.whole(text_ids_N, vectors, vectors)


def _vectors(embedding_ND: Embeddings) -> Vectors:
    embedding = torch.from_numpy(np.ascontiguousarray(embedding_ND, dtype=np.float32))
    return Vectors(embedding, embedding[:, :0])
