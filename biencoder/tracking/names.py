"""The one list of metric names, for metrics.jsonl, Weights & Biases and the plots.

STEP, MINE, EVAL and CHECKPOINT say what each kind of record holds; {split} and {ranking} stand for each split and for
`embedding` or `rerank`, {size} for each of loss.matryoshka_dims. Tables and histograms have names of their own.
"""

import re
from collections.abc import Iterable
from typing import Literal

RecordKind = Literal["step", "eval", "mine", "checkpoint", "event", "histogram", "table"]
Metrics = dict[str, float]

STEP = {
    "train/loss": "combined loss, mean over the global batches since the last record",
    "train/loss_triplet": "its triplet part, before its weight, summed over loss.matryoshka_dims",
    "train/loss_ce_positive": "its part for (point, counter), or for the counter among its negatives, before its weight",
    "train/loss_ce_negative": "its part for (point, negative), before its weight; 0 where loss.classification is ranking",
    "train/loss_contrastive": "its in-batch contrastive part, summed and before its weight alike; 0 where it has none",
    "train/active_triplets": "share of triplets whose triplet loss is above 0",
    "train/wrong_probability": "mean probability that the contrastive loss sees in wrong candidates and pushes away; 0 if "
    "it has no weight",
    "train/mined_probability": "the part of it that mined negatives have; the rest are texts of the batch",
    "train/grad_norm": "global L2 norm of the gradient before clipping",
    "train/grad_norm_clipped": "the same after clipping",
    "train/clip_coef": "factor applied by clipping, 1 where it did nothing",
    "train/lr": "learning rate of the step",
    "train/loss_scale": "fp16 only; 1 otherwise",
    "train/skipped_steps": "steps so far whose gradient was not finite, and which changed nothing",
    "train/triplets_per_s": "over all ranks, since the last record",
    "train/step_s": "seconds a step, mean since the last record",
    "train/data_s": "seconds of it to put the batch together, mean over ranks",
    "train/forward_s": "seconds of it for the forward pass, mean over ranks: a rank's own work, before it waits for others",
    "train/slowest_rank": "the rank with the most data_s + forward_s",
    "train/slowest_ratio": "that rank's data_s + forward_s over the median of the others; 1 on one rank",
}
MINE = {
    "mine/encode_s": "seconds to embed the training texts (shared with the evaluation of the training split)",
    "mine/index_s": "seconds to build the index",
    "mine/search_s": "seconds to search it",
    "mine/wait_s": "seconds that training stood still for mining after embedding",
    "mine/staleness": "age, in epochs, of the embeddings that were searched",
    "mine/random_rate": "probability of a random negative in this epoch",
    "mine/nearest_share": "share of negatives that this search found; the others are random or were kept",
    "mine/nearest_distance": "mean distance from a point to its near negatives",
    "mine/given_share": "share of negatives that the data gives; there only if it gives some",
    "mine/recall": "share of the truly nearest texts that were found; 1 for exact indexes",
    "mine/shortfalls": "negatives for which nothing near was allowed (they are random texts)",
    "mine/reference_agreement": "share of near negatives that a search in fp64, like the ball tree's, finds as well, "
    "of 50 samples, in corpora that are small enough for it",
    "mine/churn": "share of negatives that their sample did not have in the epoch before",
    "mine/forbidden": "negatives that are their point, its counter, or a copy of either: must be 0",
    "mine/pair_distance": "mean distance from a point to its own counter",
    "mine/harder_share": "share of negatives nearer to the point than its counter",
    "mine/still_harder_share": "the same share of the last epoch's negatives, after it; there only if it had some",
    "mine/near_copies": "share of negatives that are nearly a copy of their point or counter",
    "mine/spread": "root mean square distance of the candidates' embeddings from their mean",
    "mine/effective_rank": "number of dimensions that the embeddings really use",
    "mine/audit_s": "seconds to measure the seven above, distances of at most 50,000 negatives, evenly spread",
}
EVAL = {
    "eval/{split}/{ranking}/accuracy@1": "share of points whose own counter comes first",
    "eval/{split}/{ranking}/accuracy@1_text": "the same, with identical texts counted as one",
    **{
        f"eval/{{split}}/embedding/{name}{suffix}": f"{text}{', with identical texts counted as one' if suffix else ''}"
        for name, text in {
            "accuracy@5": "share of points whose own counter is among the first 5",
            "accuracy@10": "share of points whose own counter is among the first 10",
            "mrr@10": "mean reciprocal rank of the own counter, 0 beyond 10",
            "ndcg@10": "normalised discounted cumulative gain of the first 10",
            "recall@10": "queries over a corpus only: share of a query's answers among the first 10, mean over queries",
            "recall@100": "queries over a corpus only: the same among the first 100",
            "map@100": "queries over a corpus only: mean average precision of the first 100",
        }.items()
        for suffix in ("", "_text")
    },
    **{
        f"eval/{{split}}/dim{{size}}/{name}": f"with loss.matryoshka_dims only: {text}"
        for name, text in {
            "accuracy@1": "share of points whose own counter comes first by the first {size} dimensions alone",
            "accuracy@1_text": "the same, with identical texts counted as one",
            "ndcg@10": "normalised discounted cumulative gain of the first 10 by these dimensions",
        }.items()
    },
    "eval/{split}/rerank/calibration_error": "expected calibration error of the probabilities that re-ranking orders by",
    "eval/{split}/rerank/calibration_error_text": "the same, with identical texts counted as one",
    "eval/calibration_scale": "residual pair classifier only: what its log-odds are multiplied with, fitted on validation",
    "eval/calibration_shift": "residual pair classifier only: what is then added to them, fitted on validation",
    "eval/calibration_hubness": "residual pair classifier only: weight of a candidate's hubness in them, likewise",
    "eval/calibration_query_hubness": "residual pair classifier only: weight of the query's hubness in them, likewise",
    "eval/{split}/queries": "points that candidates were ranked for",
    "eval/{split}/candidates": "candidates of each query",
    "eval/seconds": "seconds to embed and rank all splits",
}
CHECKPOINT = {
    "checkpoint/blocked_s": "seconds that training stood still for a checkpoint; its files are written in the background",
}

PROVENANCE = ("negatives", "mined from")
"""Events: hashes of an epoch's negatives, and of the embeddings and the corpus that they were searched in."""
CLUSTERS = "clusters"
"""Event: how many clusters of near pairs batches are made of, and their hash."""
ORDINARY = (*PROVENANCE, CLUSTERS)
"""Events that tell of no incident."""
HARDNESS = "mine/hardness"
"""Histogram: distance from the point to its counter less that to its negative; above 0 the negative is the nearer one."""
CLOSEST = "mine/closest"
"""Table: the samples whose negative is nearest to a copy of their point or counter."""

AT_SIZE = tuple(name.rpartition("/")[2] for name in EVAL if "{size}" in name)
"""What is measured of embeddings that are cut to a size."""
LOSS_PARTS = tuple(STEP)[:8]
"""In the order of `LossParts`."""


def examples(split: str) -> str:
    """Name of the table of example retrievals."""
    return f"eval/{split}/examples"


def at_size(size: int, name: str) -> str:
    """A metric of a split by the first `size` dimensions of the embeddings, without what stands before it."""
    return f"dim{size}/{name}"


def sizes(names: Iterable[str]) -> list[int]:
    """The sizes that these metrics measure, beside the full one, in their order."""
    found = (re.match(r"eval/[^/]+/dim(\d+)/", name) for name in names)
    return list(dict.fromkeys(int(match[1]) for match in found if match))


def accuracy(split: str, ranking: str, *, text: bool = False) -> str:
    """The name of accuracy@1 of a split, strict or counting identical texts as one.

    Args:
        ranking: embedding, rerank, or dim64 and the like.
    """
    return f"eval/{split}/{ranking}/accuracy@1" + ("_text" if text else "")


def measures_time(name: str) -> bool:
    """Whether a metric measures the machine's speed. All other metrics are equal when a run is repeated."""
    return name.endswith(("_s", "/seconds", "/slowest_rank", "/slowest_ratio"))
