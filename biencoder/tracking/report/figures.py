"""Which plots there are, in which section, and what they draw.

A plot of one run has a line for each of its metrics. In a comparison each metric that is marked for it gets a plot of its
own, with a line for each run. A plot without anything to show is left out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from biencoder.config.schema import SPLITS
from biencoder.tracking.names import HARDNESS, RecordKind, accuracy, sizes
from biencoder.tracking.record import RunRecord
from biencoder.tracking.report.series import phases, thinned

Trace = dict[str, Any]
Frames = dict[RecordKind, list[pd.DataFrame]]
"""Of each kind of record, the numbers of each run."""
_MOST_EPOCHS = 6
"""In the plot of hardness."""


@dataclass(frozen=True, slots=True)
class Curve:
    metric: str
    label: str
    dash: str = "solid"
    color: int = -1
    """Place in the palette; -1: that of the curve's place in the plot."""
    compared: bool = False
    """Whether a comparison of runs shows it."""


@dataclass(frozen=True, slots=True)
class Plot:
    section: str
    title: str
    caption: str
    kind: RecordKind
    curves: Sequence[Curve] | Callable[[RunRecord], Sequence[Curve]]
    """Some are known from the run alone."""
    unit: str = ""
    percent: bool = False
    log: bool = False
    dull: float | None = None
    """Left out if all values are this."""


@dataclass(slots=True)
class PlotlyFigure:
    section: str
    title: str
    caption: str
    traces: list[Trace]
    layout: dict[str, Any] = field(default_factory=dict)


def _retrieval(split: str, color: int) -> list[Curve]:
    return [
        Curve(accuracy(split, "embedding"), split, color=color, compared=True),
        Curve(accuracy(split, "embedding", text=True), f"{split}, copies as one", "dot", color),
    ]


def _sizes(record: RunRecord) -> list[Curve]:
    split = record.deciding_split
    found = sizes(name for line in record.of("eval") for name in line)
    shorter = [Curve(accuracy(split, f"dim{size}"), f"first {size}") for size in found]
    return [Curve(accuracy(split, "embedding"), "all dimensions"), *shorter] if shorter else []


def _depths(record: RunRecord) -> list[Curve]:
    split = record.deciding_split
    names = ("accuracy@1", "accuracy@5", "accuracy@10", "mrr@10", "ndcg@10")
    return [Curve(f"eval/{split}/embedding/{name}", name, compared=name != "accuracy@1") for name in names]


PLOTS = (
    Plot(
        "Retrieval",
        "accuracy@1 by split",
        "Share of points whose own counter comes first. Epoch 0 is the pretrained encoder. Training far above validation "
        "means that the model learns its texts by heart.",
        "eval",
        [curve for color, split in enumerate(SPLITS) for curve in _retrieval(split, color)],
        percent=True,
    ),
    Plot(
        "Retrieval",
        "Ranking on {deciding}",
        "How near the top the counter comes, on the split that chooses the best model.",
        "eval",
        _depths,
        percent=True,
    ),
    Plot(
        "Retrieval",
        "accuracy@1 by size on {deciding}",
        "By the first dimensions of the embeddings alone, as loss.matryoshka_dims trains them. The nearer to that of all "
        "dimensions, the less a smaller index loses.",
        "eval",
        _sizes,
        percent=True,
    ),
    Plot(
        "Retrieval",
        "accuracy@1, re-ranked",
        "The same after the pair classifier has put the nearest texts in new order. Where it is lower, rank without it.",
        "eval",
        [Curve(accuracy(split, "rerank"), split, compared=split == "validation") for split in SPLITS],
        percent=True,
    ),
    Plot(
        "Loss",
        "Loss",
        "The combined loss and its parts before their weights. It falls fast, then slowly; a step up at an epoch's start "
        "is usual, since harder negatives were mined.",
        "step",
        [
            Curve("train/loss", "combined", compared=True),
            Curve("train/loss_triplet", "triplet", compared=True),
            Curve("train/loss_ce_positive", "classifier, counter"),
            Curve("train/loss_ce_negative", "classifier, negative"),
            Curve("train/loss_contrastive", "contrastive", compared=True),
        ],
        dull=0.0,
    ),
    Plot(
        "Loss",
        "Active triplets",
        "Share of triplets that miss the margin, and so teach something. Near 0 or near 100 % nothing is learnt.",
        "step",
        [Curve("train/active_triplets", "active", compared=True)],
        percent=True,
    ),
    Plot(
        "Loss",
        "What the contrastive loss pushes away",
        "Probability that it sees in wrong candidates, and the part of it that mined negatives have; the rest are texts of "
        "the batch.",
        "step",
        [
            Curve("train/wrong_probability", "wrong candidates", compared=True),
            Curve("train/mined_probability", "mined negatives"),
        ],
        percent=True,
        dull=0.0,
    ),
    Plot(
        "Gradients",
        "Gradient norm",
        "Before and after clipping. A norm that grows over many steps comes before an explosion.",
        "step",
        [
            Curve("train/grad_norm", "before clipping", compared=True),
            Curve("train/grad_norm_clipped", "after clipping", "dot"),
        ],
        log=True,
    ),
    Plot(
        "Gradients",
        "Clip coefficient",
        "What clipping multiplied the gradient by. Always far below 1: the learning rate is not what is set.",
        "step",
        [Curve("train/clip_coef", "coefficient", compared=True)],
        dull=1.0,
    ),
    Plot(
        "Gradients",
        "Learning rate",
        "With warm-up and schedule.",
        "step",
        [Curve("train/lr", "learning rate", compared=True)],
    ),
    Plot(
        "Gradients",
        "Loss scale",
        "fp16 only. It halves when a step overflows, and doubles after a thousand sound ones.",
        "step",
        [Curve("train/loss_scale", "loss scale", compared=True)],
        log=True,
        dull=1.0,
    ),
    Plot(
        "Gradients",
        "Skipped steps",
        "Steps so far whose gradient was not finite, and which changed nothing.",
        "step",
        [Curve("train/skipped_steps", "skipped", compared=True)],
        dull=0.0,
    ),
    Plot(
        "Mining",
        "Distances",
        "Points should come nearer to their counters than to the nearest wrong text; the spread of all texts should stay.",
        "mine",
        [
            Curve("mine/pair_distance", "to the counter", compared=True),
            Curve("mine/nearest_distance", "to the nearest negative", compared=True),
            Curve("mine/spread", "spread of all texts", "dot"),
        ],
    ),
    Plot(
        "Mining",
        "What negatives were mined",
        "Nearest texts against random ones; how many negatives are nearer than the counter, how many of the epoch before "
        "still are, and how many nearly copy it.",
        "mine",
        [
            Curve("mine/nearest_share", "nearest text"),
            Curve("mine/harder_share", "nearer than the counter", compared=True),
            Curve("mine/still_harder_share", "still nearer after their epoch", "dot"),
            Curve("mine/near_copies", "near copies", compared=True),
        ],
        percent=True,
    ),
    Plot(
        "Mining",
        "Effective rank",
        "Number of dimensions that the embeddings really use. A steep fall is the beginning of a collapse.",
        "mine",
        [Curve("mine/effective_rank", "effective rank", compared=True)],
    ),
    Plot(
        "Mining",
        "Recall of the index",
        "Share of nearest negatives that truly are the nearest; below 100 % for approximate indexes only.",
        "mine",
        [Curve("mine/recall", "recall", compared=True)],
        percent=True,
        dull=1.0,
    ),
    Plot(
        "Speed",
        "Throughput",
        "Triplets a second over all ranks, without mining and evaluation.",
        "step",
        [Curve("train/triplets_per_s", "triplets/s", compared=True)],
    ),
    Plot(
        "Speed",
        "Step time",
        "The forward pass and making the batch are parts of a step; the rest is backward pass, update and waiting.",
        "step",
        [
            Curve("train/step_s", "step", compared=True),
            Curve("train/forward_s", "forward pass"),
            Curve("train/data_s", "making the batch"),
        ],
        unit="s",
    ),
    Plot(
        "Speed",
        "Slowest rank",
        "How many times as long as the others the slowest rank works. Above 1.5 all ranks wait for one.",
        "step",
        [Curve("train/slowest_ratio", "slowest / others", compared=True)],
        dull=1.0,
    ),
)
SECTIONS = tuple(dict.fromkeys(plot.section for plot in PLOTS))


def figures(records: Sequence[RunRecord]) -> list[PlotlyFigure]:
    """All figures of one run, or of several side by side, in the order of the sections."""
    frames: Frames = {kind: [record.frame(kind) for record in records] for kind in {plot.kind for plot in PLOTS}}
    if len(records) == 1:
        drawn = [_of_one(plot, records[0], frames) for plot in PLOTS] + [_hardness(records[0]), _phases(records)]
    else:
        drawn = [
            _of_several(plot, curve, records, frames)
            for plot in PLOTS
            for curve in _curves(plot, records[0])
            if curve.compared
        ] + [_phases(records)]
    return sorted((figure for figure in drawn if figure), key=lambda figure: SECTIONS.index(figure.section))


def _curves(plot: Plot, record: RunRecord) -> Sequence[Curve]:
    return plot.curves(record) if callable(plot.curves) else plot.curves


def _of_one(plot: Plot, record: RunRecord, frames: Frames) -> PlotlyFigure | None:
    (frame,) = frames[plot.kind]
    traces: list[Trace] = []
    for place, curve in enumerate(_curves(plot, record)):
        color = place if curve.color < 0 else curve.color
        found = _trace(plot, curve.metric, frame, name=curve.label, color=color, dash=curve.dash)
        traces += [
            trace for trace in found if trace["y"] not in [other["y"] for other in traces]
        ]  # one line hides the other
    title = plot.title.format(deciding=record.deciding_split)
    return PlotlyFigure(plot.section, title, plot.caption, traces, _layout(plot, traces)) if traces else None


def _of_several(plot: Plot, curve: Curve, records: Sequence[RunRecord], frames: Frames) -> PlotlyFigure | None:
    traces = []
    for place, (name, frame) in enumerate(zip(names(records), frames[plot.kind], strict=True)):
        traces += _trace(plot, curve.metric, frame, name=name, color=place)
    title = plot.title.format(deciding=records[0].deciding_split)
    if sum(other.compared for other in _curves(plot, records[0])) > 1:
        title = f"{title}: {curve.label}"
    return PlotlyFigure(plot.section, title, plot.caption, traces, _layout(plot, traces)) if traces else None


def _trace(plot: Plot, metric: str, frame: pd.DataFrame, *, name: str, color: int, dash: str = "solid") -> list[Trace]:
    if metric not in frame or frame[metric].isna().all() or (frame[metric].dropna() == plot.dull).all():
        return []
    x, y = thinned(frame["step" if plot.kind == "step" else "epoch"].tolist(), frame[metric].astype(float).tolist())
    few = len(x) < 40
    return [
        {
            "type": "scatter",
            "mode": "lines+markers" if few else "lines",
            "name": name,
            "x": x,
            "y": y,
            "line": {"dash": dash, "width": 2},
            "marker": {"size": 5},
            "palette": color,
        }
    ]


def _layout(plot: Plot, traces: list[Trace]) -> dict[str, Any]:
    few = plot.kind != "step" and max(x for trace in traces for x in trace["x"]) <= 12
    return {
        "xaxis": {"title": {"text": "step" if plot.kind == "step" else "epoch"}, **({"dtick": 1} if few else {})},
        "yaxis": {
            **({"tickformat": ".0%", "hoverformat": ".1%"} if plot.percent else {"hoverformat": ".4~g"}),
            **({"title": {"text": plot.unit}} if plot.unit else {}),
            **({"type": "log"} if plot.log else {"rangemode": "tozero"}),
            "exponentformat": "power",
        },
    }


def _hardness(record: RunRecord) -> PlotlyFigure | None:
    lines = record.of("histogram", HARDNESS)
    if not lines:
        return None
    shown = np.unique(np.linspace(0, len(lines) - 1, _MOST_EPOCHS).round().astype(int))
    traces = []
    for place, line in enumerate(lines[i] for i in shown):
        edges, counts = np.array(line["edges"]), np.array(line["counts"])
        # As densities, since the bins of two epochs differ.
        heights = counts / counts.sum() / np.maximum(np.diff(edges), 1e-12)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"epoch {line['epoch']}",
                "x": ((edges[1:] + edges[:-1]) / 2).tolist(),
                "y": heights.tolist(),
                "line": {"shape": "spline", "smoothing": 0.6, "width": 2},
                "ramp": place / max(1, len(shown) - 1),
            }
        )
    margin = record.config.loss.margin
    lines_at = [(0.0, "as near as the counter ", "left"), (-margin, "margin met ", "right")]
    layout = {
        "xaxis": {"title": {"text": "distance to the counter − distance to the negative"}},
        "yaxis": {"title": {"text": "density"}, "rangemode": "tozero", "hoverformat": ".3~g"},
        "shapes": [
            {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": {"dash": "dot", "width": 1}}
            for x, _, _ in lines_at
        ],
        "annotations": [
            {"x": x, "yref": "paper", "y": 1, "xanchor": side, "yanchor": "bottom", "text": text, "showarrow": False}
            for x, text, side in lines_at
        ],
    }
    caption = (
        "Right of 0 the negative is nearer to the point than its counter; left of the margin it teaches nothing. Training "
        "moves the hill to the left, mining brings it back."
    )
    return PlotlyFigure("Mining", "Hardness of the negatives", caption, traces, layout)


def _phases(records: Sequence[RunRecord]) -> PlotlyFigure | None:
    seconds = [phases(record) for record in records]
    if not any(math.fsum(found.values()) > 0 for found in seconds):
        return None
    labels = names(records) if len(records) > 1 else [""]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": phase,
            "y": labels,
            "x": [found[phase] for found in seconds],
            "customdata": [found[phase] / max(math.fsum(found.values()), 1e-9) for found in seconds],
            "hovertemplate": "%{x:.3~g} s, %{customdata:.0%}",
            "palette": place,
        }
        for place, phase in enumerate(seconds[0])
    ]
    layout = {
        "barmode": "stack",
        "height": 160 + 28 * len(records),
        "xaxis": {"ticksuffix": " s"},
        "legend": {
            "traceorder": "normal",
            "y": -24 / (60 + 28 * len(records)),
        },  # below the ticks, in a plot as low as this
        "yaxis": {"automargin": True, "showticklabels": len(records) > 1},
        "hovermode": "closest",
    }
    return PlotlyFigure("Speed", "Where the time went", "Mining and evaluation should stay a small part.", traces, layout)


def names(records: Sequence[RunRecord]) -> list[str]:
    """The runs' names, or their folders where two have one name."""
    short = [record.name for record in records]
    return short if len(set(short)) == len(short) else [str(record.folder) for record in records]
