"""The one list of metric names: what stands here is what metrics.jsonl and Weights & Biases get.

train/loss                   combined loss, mean over the global batches since the last record
train/loss_triplet           its parts, before their weights
train/loss_ce_positive
train/loss_ce_negative
train/active_triplets        share of triplets whose triplet loss is above 0
train/grad_norm              global L2 norm before clipping
train/clip_coef              factor applied by clipping, 1 where it did nothing
train/lr                     learning rate of the step
train/loss_scale             fp16 only; 1 otherwise
train/skipped_steps          steps so far that fp16 overflow made void
train/triplets_per_s         over all ranks, since the last record
mine/encode_s                seconds to embed the training texts (shared with the evaluation of the training split)
mine/index_s                 seconds to build the index
mine/search_s                seconds to search it
mine/wait_s                  seconds that training stood still for the two (0 but for waiting with mining.overlap)
mine/staleness               age, in epochs, of the embeddings that were searched
mine/random_rate             probability of a random negative in this epoch
mine/nearest_share           share of samples that got the nearest text
mine/nearest_distance        mean distance from a point to its nearest negative
mine/recall                  share of nearest negatives that truly are the nearest; 1 for exact indexes
mine/shortfalls              samples for which an approximate index found nothing allowed (they got a random text)
eval/{split}/embedding/...   accuracy@1 accuracy@5 accuracy@10 mrr@10 ndcg@10, and each with _text (see evaluation)
eval/{split}/rerank/...      accuracy@1, accuracy@1_text
eval/{split}/candidates      candidates of each query
eval/seconds                 seconds to embed and rank all splits
checkpoint/blocked_s         seconds that training stood still for a checkpoint; its files are written in the background
"""

import dataclasses
from typing import Literal

from biencoder.engine import StepReport
from biencoder.evaluation import SplitResult
from biencoder.mining import Mined

Kind = Literal["step", "eval", "mine", "checkpoint", "event"]
Metrics = dict[str, float]

LOSS_PARTS = (
    "train/loss",
    "train/loss_triplet",
    "train/loss_ce_positive",
    "train/loss_ce_negative",
    "train/active_triplets",
)
"""In the order of `LossParts`."""


def step_metrics(parts: list[float], report: StepReport, triplets_per_s: float) -> Metrics:
    return dict(zip(LOSS_PARTS, parts, strict=True)) | {
        "train/grad_norm": report.grad_norm,
        "train/clip_coef": report.clip_coef,
        "train/lr": report.lr,
        "train/loss_scale": report.loss_scale,
        "train/skipped_steps": report.skipped_steps,
        "train/triplets_per_s": triplets_per_s,
    }


def mine_metrics(mined: Mined, encode_s: float) -> Metrics:
    return {
        "mine/encode_s": encode_s,
        "mine/random_rate": mined.random_rate,
        "mine/staleness": mined.staleness,
        "mine/wait_s": mined.wait_s,
        **{f"mine/{name}": value for name, value in dataclasses.asdict(mined.search).items()},
    }


def eval_metrics(results: list[SplitResult]) -> Metrics:
    metrics: Metrics = {}
    for result in results:
        metrics[f"eval/{result.split}/candidates"] = result.num_candidates
        metrics |= {f"eval/{result.split}/{name}": value for name, value in result.metrics.items()}
    return metrics


def accuracy(split: str, ranking: Literal["embedding", "rerank"], *, text: bool = False) -> str:
    """The name of accuracy@1 of a split, strict or counting identical texts as one."""
    return f"eval/{split}/{ranking}/accuracy@1" + ("_text" if text else "")
