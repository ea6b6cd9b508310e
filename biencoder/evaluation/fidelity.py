"""What an exported model loses and gains against the one it was made from: agreement, speed, size, accuracy.

N: texts, D: similarity embedding.
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
"""Of an fp32 graph with PyTorch; rounding leaves a ten-thousandth of that distance from 1."""


class Encoder(Protocol):
    def embed_texts(self, texts: Sequence[str], text_ids_N: npt.NDArray[np.int64]) -> EmbeddedTexts:
        """Vectors of the texts with these (ascending) ids."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One way to run a model, against PyTorch's. Differences are the larger of the two sides'."""

    name: str
    texts_per_s: float
    largest_difference: float
    """Of any coordinate."""
    mean_cosine: float
    least_cosine: float
    accuracy: dict[str, float]
    """accuracy@1, and with copies as one (`_text`); empty where no corpus was given."""


def compare(
    encoders: Mapping[str, Encoder], texts: Sequence[str], text_ids_N: npt.NDArray[np.int64], split: Split | None
) -> list[Agreement]:
    """Run all encoders on these texts, in turns: whatever else the machine does slows all of them alike.

    Args:
        encoders: by name; the first is what the others are compared with.
        text_ids_N: ascending; all texts of the split, where one is given.
        split: to measure accuracy on.
    """
    parts: dict[str, list[EmbeddedTexts]] = {name: [] for name in encoders}
    seconds = dict.fromkeys(encoders, 0.0)
    for encoder in encoders.values():  # first calls make room, and count for nothing
        encoder.embed_texts(texts, text_ids_N[:_CHUNK])
    for chunk_n in np.array_split(text_ids_N, -(-len(text_ids_N) // _CHUNK)):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            parts[name].append(encoder.embed_texts(texts, chunk_n))
            seconds[name] += time.perf_counter() - start
    found = {name: _joined(some) for name, some in parts.items()}
    reference = next(iter(found.values()))
    rows = []
    for name, embedded in found.items():
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


def _joined(parts: Sequence[EmbeddedTexts]) -> EmbeddedTexts:
    """One of consecutive ones."""

    def side(vectors: Sequence[Vectors]) -> Vectors:
        return Vectors(*(torch.cat(some) for some in zip(*vectors, strict=True)))

    text_ids_N = np.concatenate([part.text_ids_N for part in parts])
    return EmbeddedTexts.whole(text_ids_N, side([part.query for part in parts]), side([part.candidate for part in parts]))


def _accuracy(embedded: EmbeddedTexts, split: Split) -> dict[str, float]:
    metrics = evaluate_split(split, embedded, None, top_k=1, world=World.alone()).metrics
    return {suffix: metrics[f"embedding/accuracy@1{suffix}"] for suffix in ("", "_text")}


def check(exported: Agreement) -> None:
    """Raise a ModelError if a graph in full precision is another function than the model."""
    if not exported.least_cosine >= _LEAST_COSINE:
        raise ModelError(
            f"the ONNX graph does not compute what the model does (cosine {exported.least_cosine:.4f} for one text), so "
            "nothing was written; its encoder is not one that the exporter translates rightly"
        )
