"""What each kind of record holds, from what loop, miner and evaluation have measured; names as in tracking/names.py."""

import dataclasses
import math

from biencoder.evaluation import Calibration, SplitResult
from biencoder.mining import Mined
from biencoder.tracking.names import LOSS_PARTS, Metrics
from biencoder.training.engine.engine import StepReport


def step_metrics(
    parts: list[float],
    report: StepReport,
    *,
    steps: float,
    seconds: float,
    triplets: float,
    data_s: float,
    busy_s: list[float],
) -> Metrics:
    """Of `steps` steps, which took `seconds` and saw `triplets`; NaN where no step was timed.

    Args:
        data_s: seconds for putting batches together, mean over the ranks.
        busy_s: of each rank, for putting batches together and the forward pass.
    """
    slowest, ratio = slowest_rank(busy_s)
    return dict(zip(LOSS_PARTS, parts, strict=True)) | {
        "train/grad_norm": report.grad_norm,
        "train/grad_norm_clipped": report.grad_norm * report.clip_coef,
        "train/clip_coef": report.clip_coef,
        "train/lr": report.lr,
        "train/loss_scale": report.loss_scale,
        "train/skipped_steps": report.skipped_steps,
        "train/triplets_per_s": triplets / seconds,
        "train/step_s": seconds / steps,
        "train/data_s": data_s / steps,
        "train/forward_s": (sum(busy_s) / len(busy_s) - data_s) / steps,
        "train/slowest_rank": slowest,
        "train/slowest_ratio": ratio,
    }


def step_note(metrics: Metrics) -> str:
    """The step metrics that a person follows, as one line."""
    loss, norm, speed = (metrics[f"train/{name}"] for name in ("loss", "grad_norm", "triplets_per_s"))
    return f"loss {loss:.4f}  grad norm {norm:.3g}  {speed:.1f} triplets/s"


def slowest_rank(busy_s: list[float]) -> tuple[int, float]:
    """The rank that was busy for longest, and how many times as long as the others' median."""
    slowest = max(range(len(busy_s)), key=busy_s.__getitem__)
    others = sorted(busy_s[:slowest] + busy_s[slowest + 1 :])
    if not others:
        return slowest, 1.0
    median = (others[(len(others) - 1) // 2] + others[len(others) // 2]) / 2
    return slowest, busy_s[slowest] / max(median, 1e-9)


def mine_metrics(mined: Mined, encode_s: float) -> Metrics:
    return {
        "mine/encode_s": encode_s,
        "mine/random_rate": mined.random_rate,
        "mine/staleness": mined.staleness,
        "mine/wait_s": mined.wait_s,
        "mine/churn": mined.churn,
        **({} if math.isnan(mined.given_share) else {"mine/given_share": mined.given_share}),
        **{f"mine/{name}": value for name, value in dataclasses.asdict(mined.search).items()},
        **{
            f"mine/{name}": value
            for name, value in dataclasses.asdict(mined.audit.figures).items()
            if name != "still_harder_share" or not math.isnan(value)
        },
    }


def eval_metrics(results: list[SplitResult], calibration: Calibration | None = None) -> Metrics:
    metrics: Metrics = {}
    if calibration:
        metrics |= {f"eval/calibration_{name}": value for name, value in calibration._asdict().items()}
    for result in results:
        metrics[f"eval/{result.split}/queries"] = result.num_queries
        metrics[f"eval/{result.split}/candidates"] = result.num_candidates
        metrics |= {f"eval/{result.split}/{name}": value for name, value in result.metrics.items()}
    return metrics
