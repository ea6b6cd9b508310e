"""The training state saved and restored, and steps without a finite gradient."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from biencoder.config.schema import TrainConfig
from biencoder.distributed.world import World
from biencoder.training.engine.state import EngineState
from tests.ranks.cases import in_world
from tests.ranks.cases.steps import BATCH, STEPS, engine_for, let_any_cpu_compute_fp16, train_steps, training_setup


def spoilt_backward(backward: Any, loss: torch.Tensor) -> None:
    backward(loss * float("nan"))


AFTER = range(2, 4)
"""The steps that follow a state; the warm-up ends within."""


WARM_UP = 3


def save_and_go_on(tiny_bert: str, files: list[str], folder: str) -> None:
    """Under each DeepSpeed file: some steps, a state, the steps after it; then a fresh engine from it, the same steps."""

    def work(ranks: World) -> None:
        let_any_cpu_compute_fp16()
        for file in files:
            train = _warming_up(ranks)
            setup = training_setup(tiny_bert)
            engine = engine_for(setup[0], file, ranks, train)
            train_steps(engine, ranks, setup, range(AFTER.start))
            state = engine.state()
            straight = train_steps(engine, ranks, setup, AFTER)
            setup = training_setup(tiny_bert)
            engine = engine_for(setup[0], file, ranks, train)
            engine.load_state(state)
            resumed = train_steps(engine, ranks, setup, AFTER)
            engine.load_state(state)  # back, in an engine that has moved on
            again = train_steps(engine, ranks, setup, AFTER)
            if state:
                save_file(state.model, Path(folder) / f"{file.replace(' ', '_')}.model")
                save_file(state.optimizer, Path(folder) / f"{file.replace(' ', '_')}.optimizer")
                found = {"scalars": state.scalars, "straight": straight, "resumed": resumed, "again": again}
                (Path(folder) / f"{file.replace(' ', '_')}.json").write_text(json.dumps(found))

    in_world(work, silence_s=120)


def go_on_elsewhere(tiny_bert: str, files: list[str], folder: str) -> None:
    """The last steps of `save_and_go_on`, from its state, on another number of ranks."""

    def work(ranks: World) -> None:
        let_any_cpu_compute_fp16()
        for file in files:
            stem = Path(folder) / file.replace(" ", "_")
            setup = training_setup(tiny_bert)
            engine = engine_for(setup[0], file, ranks, _warming_up(ranks))
            state = None
            if ranks.is_main:
                scalars = json.loads(stem.with_suffix(".json").read_text())["scalars"]
                state = EngineState(
                    load_file(stem.with_suffix(".model")), load_file(stem.with_suffix(".optimizer")), scalars
                )
            engine.load_state(state)
            rows = train_steps(engine, ranks, setup, AFTER)
            if ranks.is_main:
                stem.with_suffix(f".{ranks.size}.json").write_text(json.dumps(rows))

    in_world(work, silence_s=120)


def _warming_up(ranks: World) -> TrainConfig:
    return TrainConfig(
        global_batch_size=BATCH,
        micro_batch_size=BATCH // ranks.size // 2,
        lr=1e-3,
        lr_scaling="none",
        schedule="cosine",
        warmup_ratio=WARM_UP / STEPS,
    )


def a_step_without_finite_gradient(tiny_bert: str, files: list[str], out: str) -> None:
    """Under each DeepSpeed file: a step, one whose loss is NaN on the last rank alone, one more."""

    def work(ranks: World) -> None:
        let_any_cpu_compute_fp16()
        found = {}
        for file in files:
            setup = training_setup(tiny_bert)
            engine = engine_for(setup[0], file, ranks, _warming_up(ranks))
            train_steps(engine, ranks, setup, range(1))
            before, lr = engine.state(), engine.report().lr
            backward = engine.backward
            if ranks.rank == ranks.size - 1:
                engine.backward = partial(spoilt_backward, backward)  # type: ignore[method-assign]
            train_steps(engine, ranks, setup, range(1, 2))
            engine.backward = backward  # type: ignore[method-assign]
            after, skipped = engine.state(), engine.skipped_steps
            train_steps(engine, ranks, setup, range(2, 3))
            if before and after:
                same = all(before.model[k].equal(after.model[k]) for k in before.model) and all(
                    before.optimizer[k].equal(after.optimizer[k]) for k in before.optimizer
                )
                found[file] = [same, skipped, engine.steps, engine.applied_steps, engine.report().lr / lr]
        if ranks.is_main:
            Path(out).write_text(json.dumps(found))

    in_world(work, silence_s=120)


def overflowing_steps(tiny_bert: str, files: list[str], out: str) -> None:
    """Under each fp16 file: steps until three have been applied; after each one what it did, and whether weights moved."""

    def work(ranks: World) -> None:
        let_any_cpu_compute_fp16()
        found = {}
        for file in files:
            setup = training_setup(tiny_bert)
            engine = engine_for(setup[0], file, ranks, _warming_up(ranks))
            rows: list[dict[str, Any]] = []
            while engine.applied_steps < 3 and engine.steps < 2 * STEPS:
                before = engine.weights()
                train_steps(engine, ranks, setup, range(engine.steps, engine.steps + 1))
                after = engine.weights()
                same = before is None or after is None or all(before[name].equal(after[name]) for name in before)
                rows.append(asdict(engine.report()) | {"same": same})
            found[file] = rows
        if ranks.is_main:
            Path(out).write_text(json.dumps(found))

    in_world(work, silence_s=120)
