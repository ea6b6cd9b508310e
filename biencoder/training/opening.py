"""What a run says before its first step and after its last, and what checks have found: lines and tables."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from biencoder.config.paths import typed
from biencoder.config.schema import Config
from biencoder.data.records import Findings
from biencoder.distributed.world import World
from biencoder.retrieval.hubness import MOST_TEXTS
from biencoder.tracking.console import shown
from biencoder.training.plan import Plan
from biencoder.training.preflight.judgements import CheckResult


def findings_table(findings: Findings) -> list[RenderableType]:
    """How tables were read, and the data check's oddities; nothing where there are none."""
    return [*_readings_table(findings), *_oddities_table(findings)]


def _readings_table(findings: Findings) -> list[RenderableType]:
    if not findings.readings:
        return []
    table = Table(title="Tables", title_justify="left", box=None, pad_edge=False)
    table.add_column("rows", justify="right")
    table.add_column("table", overflow="fold")
    table.add_column("columns", overflow="fold")
    table.add_column("left out", overflow="fold")
    for reading in findings.readings:
        columns = ", ".join(role if role == name else f"{role} = {name}" for role, name in reading.columns.items())
        table.add_row(str(reading.rows), shown(reading.source), shown(columns), shown(", ".join(reading.left_out) or "–"))
    return [table]


def _oddities_table(findings: Findings) -> list[RenderableType]:
    if not findings.counts:
        return []
    table = Table(title="Data check", title_justify="left", box=None, pad_edge=False)
    table.add_column("count", justify="right")
    table.add_column("oddity", no_wrap=True)
    table.add_column("for example", overflow="fold")
    for kind, count, examples in findings.rows():
        table.add_row(str(count), shown(kind), shown(examples[0]))
    return [table]


def opening(plan: Plan, world: World, *, from_step: int | None) -> list[RenderableType]:
    """What the data check found odd, what is about to happen, and what to beware of."""
    config, dataset, train = plan.config, plan.dataset, plan.config.train
    pairs = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    micro, accumulation = train.micro_batch(world.size), train.accumulation(world.size)
    slow = f"Beware: this machine computes {plan.precision} slower than fp32; take train.precision auto"
    return [
        *findings_table(dataset.findings),
        *([slow] if plan.precision != "fp32" and plan.fastest == "fp32" else []),
        f"corpus   {pairs} pairs, {len(dataset.texts)} distinct texts, fingerprint {dataset.fingerprint[:12]}",
        f"model    {config.model.name}, texts cut at {config.model.max_length} tokens",
        f"steps    {world.size} ranks x {accumulation} x {micro} = {train.global_batch_size} triplets; peak learning "
        f"rate {train.peak_lr:.3g} ({train.lr_scaling} scaling of {train.lr:.3g}); {config.deepspeed_config} in "
        f"{plan.precision} on {world.device.type}",
        f"mining   {plan.mining}",
        run_line(plan.folder, config, from_step),
        *(f"beware   {sentence}" for sentence in (*ungrouped(plan), *too_many_for_hubness(plan))),
        *(f"beware   {config.model.name}: {notice}" for notice in plan.pretrained.notices),
    ]


def run_line(folder: Path, config: Config, from_step: int | None) -> str:
    """Where the run is, and what it goes on from; where nobody chose the folder, what would go on with it."""
    line = f"run      {folder}"
    if from_step is not None:
        return f"{line}, going on from step {from_step}"
    again = shlex.join(["--run.dir", str(folder)])
    return line if config.run.dir else f"{line}; if it is stopped, the same command with {again} goes on"


def ungrouped(plan: Plan) -> list[str]:
    """Keys that ask for debates or themes of which the training split names at most one."""
    keys = {"train.batches": plan.config.train.batches, "mining.focus": plan.config.mining.focus}
    group_of = {key: plan.dataset.splits["training"].groups(kind) for key, kind in keys.items()}
    then = {"train.batches": "; clusters needs no labels"}
    if plan.config.mining.focus == "other_debates":
        then["mining.focus"] = "; near negatives come from anywhere"
    return [
        f"{key} is {keys[key]}, but no two training pairs differ in it, so it divides nothing{then.get(key, '')}"
        for key, group_P in group_of.items()
        if group_P is not None and not group_P.any()
    ]


def too_many_for_hubness(plan: Plan) -> list[str]:
    """The splits in which the residual pair classifier has to do without the hubness of the candidates."""
    config = plan.config
    if config.model.classifier != "residual":
        return []
    many = [name for name, split in plan.dataset.splits.items() if len(np.unique(split.candidate_text_C)) > MOST_TEXTS]
    return [
        f"the {name} split has over {MOST_TEXTS:,} candidates, so their hubness counts as 0 there: probabilities are "
        "shifted against those of smaller splits"
        for name in many
    ]


def closing_line(folder: Path, config: Config) -> str:
    """Where the model is, and what to do next."""
    best, last = folder / "model" / "best", folder / "model" / "last"
    model = next((folder for folder in (best, last) if folder.is_dir()), None)
    if model is None:
        return f"Neither {best} nor {last} is there: the run has left no model"
    command = [*typed("search"), "--model", str(model)]
    for name in ("root", "columns", "corpus", "candidates"):
        value = getattr(config.data, name)
        command += [f"--data.{name}", value] if value not in ("", "auto") else []
    command += ["--trust-remote-code"] * config.model.trust_remote_code
    command.append("your argument")
    which = "The best model" if model == best else f"{best} is not there; the last model"
    return f"{which} is in {model}. Try it: {shlex.join(command)}"


def checks_table(title: str, rows: Sequence[CheckResult]) -> Table:
    """What checks have found, one row each."""
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("finding", overflow="fold")
    for row in rows:  # as texts: a finding may hold brackets, which are markup otherwise
        table.add_row(row.name, Text(row.verdict, colours[row.verdict]), shown(row.finding))
    return table
