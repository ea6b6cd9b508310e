"""What an exported model loses and gains against the one it was made from: agreement, speed, size, accuracy.

N: texts, D: similarity embedding.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from biencoder.data import Split
from biencoder.distributed import World
from biencoder.embedding import EmbeddedTexts
from biencoder.errors import ModelError
from biencoder.evaluation import evaluate_split

_TEXTS, _ROUNDS = 256, 3
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
    encoders: Mapping[str, Encoder], texts: Sequence[str], text_ids: npt.NDArray[np.int64], split: Split | None
) -> list[Agreement]:
    """Run all encoders on up to 256 of these texts, in turns, and rank the split with each.

    Args:
        encoders: by name; the first is what the others are compared with.
        split: to measure accuracy on.
    """
    some = np.unique(text_ids[np.linspace(0, len(text_ids) - 1, _TEXTS).astype(np.int64)])
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    found: dict[str, EmbeddedTexts] = {}
    for turn in range(-1, _ROUNDS):  # the first one warms up
        for name, encoder in encoders.items():
            start = time.perf_counter()
            found[name] = encoder.embed_texts(texts, some)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    reference = next(iter(found.values()))
    rows = []
    for name, encoder in encoders.items():
        pairs = [(found[name].query, reference.query), (found[name].candidate, reference.candidate)]
        cosines = [torch.cosine_similarity(one.embedding, other.embedding) for one, other in pairs]
        rows.append(
            Agreement(
                name,
                len(some) / statistics.median(seconds[name]),
                max(float((one.embedding - other.embedding).abs().max()) for one, other in pairs),
                min(float(cosine_N.mean()) for cosine_N in cosines),
                min(float(cosine_N.min()) for cosine_N in cosines),
                _accuracy(encoder, texts, split) if split else {},
            )
        )
    return rows


def _accuracy(encoder: Encoder, texts: Sequence[str], split: Split) -> dict[str, float]:
    embedded = encoder.embed_texts(texts, split.text_ids)
    metrics = evaluate_split(split, embedded, None, top_k=1, world=World.alone()).metrics
    return {suffix: metrics[f"embedding/accuracy@1{suffix}"] for suffix in ("", "_text")}


def check(exported: Agreement) -> None:
    """Raise a ModelError if a graph in full precision is another function than the model."""
    if not exported.least_cosine >= _LEAST_COSINE:
        raise ModelError(
            f"the ONNX graph does not compute what the model does (cosine {exported.least_cosine:.4f} for one text), so "
            "nothing was written; its encoder is not one that the exporter translates rightly"
        )
