"""The Weights & Biases workspace as code: which metrics stand beside each other, over which axis.

workspace("me", "counter-argument-retrieval").save()
specification()["section"]["panelBankConfig"]["sections"][0]["name"]        # 'Loss'; needs neither network nor account

Metrics come from tracking/names.py and are plotted over what they happen at: train/* and checkpoint/* over steps, mine/*
and eval/* over epochs, as wandb_run defines them.
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from biencoder.config.schema import SPLITS
from biencoder.tracking.names import CHECKPOINT, CLOSEST, HARDNESS, STEP, accuracy, examples

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package's own, about its use of pydantic
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.reports.v2.interface import LinePlot, WeavePanelSummaryTable

NAME = "Bi-encoder"


@dataclass(frozen=True, slots=True)
class Curves:
    title: str
    metrics: Sequence[str]
    log: bool = False

    def panel(self) -> LinePlot:
        axis = "step" if self.metrics[0] in (*STEP, *CHECKPOINT) else "epoch"
        return LinePlot(
            title=self.title, x=axis, title_x=axis, y=list(self.metrics), log_y=self.log or None, smoothing_type="none"
        )


@dataclass(frozen=True, slots=True)
class Texts:
    """A table, as of each run's last record of it."""

    name: str

    def panel(self) -> WeavePanelSummaryTable:
        return WeavePanelSummaryTable(table_name=self.name)


_RECALLS = ("recall@10", "recall@100")

SECTIONS: dict[str, Sequence[Curves | Texts]] = {
    "Loss": [
        Curves("Loss", ["train/loss"]),
        Curves(
            "Its parts, before their weights",
            [f"train/loss_{part}" for part in ("triplet", "ce_positive", "ce_negative", "contrastive")],
        ),
        Curves("Share of triplets that still teach", ["train/active_triplets"]),
        Curves(
            "Probability of wrong candidates, and of mined negatives among them",
            ["train/wrong_probability", "train/mined_probability"],
        ),
    ],
    "Gradients": [
        Curves("Gradient norm before and after clipping", ["train/grad_norm", "train/grad_norm_clipped"], log=True),
        Curves("Factor applied by clipping", ["train/clip_coef"]),
        Curves("Learning rate", ["train/lr"]),
        Curves("Steps skipped so far", ["train/skipped_steps"]),
        Curves("Loss scale (fp16)", ["train/loss_scale"], log=True),
    ],
    "Mining": [
        Curves("Distances from a point: own counter, nearest negative", ["mine/pair_distance", "mine/nearest_distance"]),
        Curves(
            "Negatives nearer than the counter; those of the epoch before, now; near copies",
            ["mine/harder_share", "mine/still_harder_share", "mine/near_copies"],
        ),
        Curves("Hardness of the negatives (histogram: look at one run)", [HARDNESS]),
        Curves(
            "Random rate; shares of near and of given",
            [f"mine/{x}" for x in ("random_rate", "nearest_share", "given_share")],
        ),
        Curves("Spread of the embeddings", ["mine/spread"]),
        Curves("Dimensions that the embeddings use", ["mine/effective_rank"]),
        Curves("Negatives that are new", ["mine/churn"]),
        Curves("Negatives that are no wrong answers (must be 0)", ["mine/forbidden"]),
        Curves("Recall of the index; agreement with the ball tree", ["mine/recall", "mine/reference_agreement"]),
        Curves("Samples that an approximate index left without", ["mine/shortfalls"]),
        Curves("Age of the searched embeddings, in epochs", ["mine/staleness"]),
        Texts(CLOSEST),
    ],
    "Retrieval": [
        Curves("Accuracy@1", [accuracy(split, "embedding") for split in SPLITS]),
        Curves("Accuracy@1, re-ranked", [accuracy(split, "rerank") for split in SPLITS]),
        Curves(
            "Validation accuracy@1, @5, @10; recall of queries over a corpus",
            [f"eval/validation/embedding/{name}" for name in ("accuracy@1", "accuracy@5", "accuracy@10", *_RECALLS)],
        ),
        Curves(
            "Validation MRR, nDCG; MAP of queries over a corpus",
            [f"eval/validation/embedding/{name}" for name in ("mrr@10", "ndcg@10", "map@100")],
        ),
        Curves(
            "Validation accuracy@1, strict and with copies as one",
            [accuracy("validation", "embedding"), accuracy("validation", "embedding", text=True)],
        ),
        Curves("Calibration error of re-ranking's probabilities", ["eval/validation/rerank/calibration_error"]),
        Texts(examples("validation")),
    ],
    "Speed": [
        Curves("Triplets per second", ["train/triplets_per_s"]),
        Curves("Seconds a step", ["train/step_s", "train/data_s", "train/forward_s"]),
        Curves("Slowest rank against the others' median", ["train/slowest_ratio"]),
        Curves("Which rank is the slowest", ["train/slowest_rank"]),
        Curves("Seconds of mining", [f"mine/{part}_s" for part in ("encode", "index", "search", "wait", "audit")]),
        Curves("Seconds of evaluation", ["eval/seconds"]),
        Curves("Seconds blocked by a checkpoint", ["checkpoint/blocked_s"]),
    ],
}
"""Section → its panels, in the order in which they are shown."""


def workspace(entity: str, project: str) -> ws.Workspace:
    """Nothing is sent before its `save`."""
    numbers = itertools.count()
    sections = []
    for name, contents in SECTIONS.items():
        panels: list[Any] = [content.panel() for content in contents]
        for panel in panels:
            panel._id = f"panel-{next(numbers)}"  # random ones would make two specifications differ
        sections.append(ws.Section(name=name, panels=panels, is_open=True))
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=sections)


def specification() -> dict[str, Any]:
    """What `save` would send: the same for every project."""
    model = workspace("", "")._to_model()
    spec: dict[str, Any] = model.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return spec
