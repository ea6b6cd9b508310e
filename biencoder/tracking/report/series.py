"""Numbers made ready for drawing."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from biencoder.tracking.record import RunRecord

MOST_POINTS = 1500


def thinned(x: Sequence[float], y: Sequence[float], most: int = MOST_POINTS) -> tuple[list[float], list[float | None]]:
    """At most `most` points of a curve: of each stretch the lowest and the highest, so that spikes stay; NaN as None."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(xs) > most:
        kept = {0, len(xs) - 1}
        for stretch in np.array_split(np.arange(len(xs)), most // 2 - 1):
            values = ys[stretch]
            if np.isfinite(values).any():
                kept |= {int(stretch[np.nanargmin(values)]), int(stretch[np.nanargmax(values)])}
        rows = sorted(kept)
        xs, ys = xs[rows], ys[rows]
    return xs.tolist(), [value if math.isfinite(value) else None for value in ys.tolist()]


def phases(record: RunRecord) -> dict[str, float]:
    """Seconds of the run by what it was doing, restarts and their repeated work left out."""
    steps, mines, evaluations = record.frame("step"), record.frame("mine"), record.frame("eval")
    done = np.diff(steps.get("step", pd.Series(dtype=float)), prepend=0)
    return {
        "training": float((done * steps["train/step_s"]).sum()) if "train/step_s" in steps else 0.0,
        "embedding for mining": _sum(mines, "mine/encode_s"),
        "mining": _sum(mines, "mine/wait_s"),
        "evaluation": _sum(evaluations, "eval/seconds"),
        "checkpoints": _sum(record.frame("checkpoint"), "checkpoint/blocked_s"),
    }


def _sum(frame: pd.DataFrame, name: str) -> float:
    return float(frame[name].sum()) if name in frame else 0.0
