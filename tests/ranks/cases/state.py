"""The training state saved and restored, and steps without a finite gradient."""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from biencoder.config.schema import TrainConfig
from biencoder.distributed.world import World
from biencoder.training.engine.engine import Engine
from biencoder.training.engine.state import FromMain
from biencoder.training.recovery.parts import PART_FILES, SavedParts, write_parts
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
            scalars, parts = engine.scalars(), saved_parts(engine, ranks, _stem(folder, file))
            if state:
                check_same(parts, state.model | state.optimizer)
            straight = train_steps(engine, ranks, setup, AFTER)
            setup = training_setup(tiny_bert)
            engine = engine_for(setup[0], file, ranks, train)
            engine.load(FromMain(state.model | state.optimizer if state else {}, ranks), scalars)
            resumed = train_steps(engine, ranks, setup, AFTER)
            engine.load(parts, scalars)  # back, in an engine that has moved on
            again = train_steps(engine, ranks, setup, AFTER)
            if ranks.is_main:
                found = {"scalars": scalars, "shapes": parts.shapes}
                found |= {"straight": straight, "resumed": resumed, "again": again}
                _stem(folder, file).with_suffix(".json").write_text(json.dumps(found))

    in_world(work, silence_s=120)


def go_on_elsewhere(tiny_bert: str, files: list[str], folder: str) -> None:
    """The last steps of `save_and_go_on`, from its state, on another number of ranks."""

    def work(ranks: World) -> None:
        let_any_cpu_compute_fp16()
        for file in files:
            stem = _stem(folder, file)
            setup = training_setup(tiny_bert)
            engine = engine_for(setup[0], file, ranks, _warming_up(ranks))
            found = json.loads(stem.with_suffix(".json").read_text())
            saved = SavedParts([*stem.glob(PART_FILES)], found["shapes"])
            engine.load(saved, found["scalars"])
            if ranks.size > 1:
                parts = saved_parts(engine, ranks, stem / "again")
                check_same(parts, {name: saved.whole(name) for name in saved.shapes})
            rows = train_steps(engine, ranks, setup, AFTER)
            if ranks.is_main:
                stem.with_suffix(f".{ranks.size}.json").write_text(json.dumps(rows))

    in_world(work, silence_s=120)


def saved_parts(engine: Engine, ranks: World, folder: Path) -> SavedParts:
    """The engine's tensors, as all ranks have written them into many small files."""
    folder.mkdir(parents=True, exist_ok=True)
    parts, shapes = engine.own_parts()
    written = ranks.all_gather_object(write_parts(folder, parts, rank=ranks.rank, file_values=3000))
    return SavedParts([file for files in written for file in files], shapes)


def check_same(saved: SavedParts, tensors: dict[str, torch.Tensor]) -> None:
    assert saved.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        assert saved.whole(name).equal(tensor), name


def _stem(folder: str, file: str) -> Path:
    return Path(folder) / file.replace(" ", "_")


def _warming_up(ranks: World) -> TrainConfig:
    return TrainConfig(
        global_batch_size=BATCH,
        micro_batch_size=BATCH // ranks.size // 2,
        lr=1e-3,
        lr_scaling="none",
        schedule="cosine",
        warmup_ratio=WARM_UP / STEPS,
    )


def measure_between_steps(tiny_bert: str, files: list[str], out: str) -> None:
    """Under each DeepSpeed file: steps between which the model is measured and saved with a share of its first weights."""

    def work(ranks: World) -> None:
        let_any_cpu_compute_fp16()
        found = {}
        for file in files:
            rows = {}
            for share in (0.0, 0.25):
                setup = training_setup(tiny_bert, normalize=True)
                start = {name: weight.clone() for name, weight in setup[0].state_dict().items()}
                engine = engine_for(setup[0], file, ranks, replace(_warming_up(ranks), pretrained_share=share))
                at_start = engine.weights() or {}
                rows[share] = train_steps(engine, ranks, setup, range(2))
                batch = setup[1].batch(np.arange(6))
                with engine.interpolated():
                    vectors = engine.encode(batch).query.embedding
                weights = engine.weights() or {}
                rows[share] += train_steps(engine, ranks, setup, range(2, 4))
                if not share:
                    trained = weights
            if ranks.is_main:
                twin = training_setup(tiny_bert, normalize=True)[0].eval()
                twin.load_state_dict(weights)
                with torch.no_grad():
                    expected = twin(batch).query.embedding
                found[file] = {
                    "rows": list(rows.values()),
                    "start": max(float((at_start[name] - start[name]).abs().max()) for name in start),
                    "towers": max(
                        float((weights[name] - torch.lerp(trained[name], start[name], 0.25)).abs().max())
                        for name in start
                        if not name.startswith("classifier.")
                    ),
                    "classifier": all(weights[name].equal(trained[name]) for name in start if "classifier" in name),
                    "moved": max(float((trained[name] - start[name]).abs().max()) for name in start),
                    "vectors": float((vectors.float() - expected).abs().max()),
                }
        if ranks.is_main:
            Path(out).write_text(json.dumps(found))

    in_world(work, silence_s=120)


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
