"""Compares an exported model with its original: agreement of the embeddings, speed and accuracy.

N: texts, n: a chunk of them, D: similarity embedding.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from biencoder.data import Split
from biencoder.distributed.world import World
from biencoder.errors import ModelError
from biencoder.evaluation import evaluate_split
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.embedding import EmbeddedTexts

_CHUNK = 128
_LEAST_COSINE = 0.9999
"""The least cosine of an fp32 graph's and PyTorch's embedding. Rounding causes a 10,000th of this distance from 1."""


class Encoder(Protocol):
    """A model that embeds texts."""

    def embed_texts(self, texts: Sequence[str], text_ids_N: npt.NDArray[np.int64]) -> EmbeddedTexts:
        """Vectors of the texts with these (ascending) ids."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one way to run a model agrees with PyTorch. Of two sides the worse one counts."""

    name: str
    texts_per_s: float
    largest_difference: float
    """The largest absolute difference of a coordinate."""
    mean_cosine: float
    least_cosine: float
    accuracy: dict[str, float]
    """accuracy@1, strict ("") and on distinct texts ("_text"); empty if no split was given."""


def compare(
    encoders: Mapping[str, Encoder], texts: Sequence[str], text_ids_N: npt.NDArray[np.int64], split: Split | None
) -> list[Agreement]:
    """Run all encoders on these texts, chunk by chunk in turns, so that other load slows all of them alike.

    Args:
        encoders: by name; the others are compared with the first.
        text_ids_N: ascending; if a split is given, all its texts.
        split: the split to measure accuracy on.
    """
    parts: dict[str, list[EmbeddedTexts]] = {name: [] for name in encoders}
    seconds = dict.fromkeys(encoders, 0.0)
    for encoder in encoders.values():  # the first call allocates memory, and is not timed
        encoder.embed_texts(texts, text_ids_N[:_CHUNK])
    for chunk_n in np.array_split(text_ids_N, -(-len(text_ids_N) // _CHUNK)):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            parts[name].append(encoder.embed_texts(texts, chunk_n))
            seconds[name] += time.perf_counter() - start
    embeddings = {name: _concatenate(chunks) for name, chunks in parts.items()}
    reference = next(iter(embeddings.values()))
    rows = []
    for name, embedded in embeddings.items():
        pairs = [(embedded.query, reference.query), (embedded.candidate, reference.candidate)]
        cosines = [torch.cosine_similarity(one.embedding, other.embedding) for one, other in pairs]
        rows.append(
            Agreement(
                name,
                len(text_ids_N) / seconds[name],
                max(float((one.embedding - other.embedding).abs().max()) for one, other in pairs),
                min(float(cosine_N.mean()) for cosine_N in cosines),
                min(float(cosine_N.min()) for cosine_N in cosines),
                _accuracy(embedded, split) if split else {},
            )
        )
    return rows


def _concatenate(parts: Sequence[EmbeddedTexts]) -> EmbeddedTexts:
    """The vectors of consecutive texts as one object."""

    def side(vectors: Sequence[Vectors]) -> Vectors:
        return Vectors(*(torch.cat(tensors) for tensors in zip(*vectors, strict=True)))

    text_ids_N = np.concatenate([part.text_ids_N for part in parts])
    return EmbeddedTexts.whole(text_ids_N, side([part.query for part in parts]), side([part.candidate for part in parts]))


def _accuracy(embedded: EmbeddedTexts, split: Split) -> dict[str, float]:
    metrics = evaluate_split(split, embedded, None, top_k=1, world=World.alone()).metrics
    return {suffix: metrics[f"embedding/accuracy@1{suffix}"] for suffix in ("", "_text")}


def check(exported: Agreement) -> None:
    """Raise a ModelError if a graph in full precision does not compute the model's embeddings."""
    if not exported.least_cosine >= _LEAST_COSINE:
        raise ModelError(
            f"the ONNX graph does not compute what the model does (cosine {exported.least_cosine:.4f} for one text), so "
            "nothing was written; its encoder is not one that the exporter translates rightly"
        )
