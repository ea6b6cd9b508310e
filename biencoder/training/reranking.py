"""What the last evaluation says of the pair classifier, for the folder of the model: its scale, and what it is good for."""

from collections.abc import Mapping

import torch

from biencoder.evaluation.calibration import Calibration
from biencoder.model.bi_encoder import BiEncoder
from biencoder.model.folder import Reranking
from biencoder.tracking.names import Metrics, accuracy

LARGEST_ERROR = 0.1
"""Calibration error up to which a probability is worth showing."""


def calibrated_classifier(
    model: BiEncoder, weights: Mapping[str, torch.Tensor], metrics: Metrics
) -> dict[str, torch.Tensor]:
    """The weights of the pair classifier, on the scale that the evaluation has fitted, if it has."""
    prefix = "classifier."
    own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    if "eval/calibration_scale" in metrics:
        classifier = model.classifier.twin()
        classifier.load_state_dict(own)
        classifier.calibrate(**{name: metrics[f"eval/calibration_{name}"] for name in Calibration._fields})
        own = dict(classifier.state_dict())
    return {prefix + name: weight for name, weight in own.items()}


def judge_reranking(metrics: Metrics, split: str) -> Reranking | None:
    """Whether re-ranking is more often right than the nearest text on this split; None if nothing was re-ranked.

    Its probabilities mean something if they order candidates no worse than their distance, and are no farther off than
    LARGEST_ERROR.
    """
    if accuracy(split, "rerank") not in metrics:
        return None
    gains = [
        metrics[accuracy(split, "rerank", text=text)] - metrics[accuracy(split, "embedding", text=text)]
        for text in (False, True)
    ]
    error = metrics[f"eval/{split}/rerank/calibration_error_text"]
    return Reranking(helps=min(gains) > 0, probable=min(gains) >= 0 and error <= LARGEST_ERROR)
