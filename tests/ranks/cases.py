"""What the ranks of a test run; each function runs in every process."""

import errno
import itertools
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

import biencoder.training.contrastive
import biencoder.training.engine.engine
from biencoder.config import CheckpointConfig, Config, DistributedConfig, LossConfig, MiningConfig, ModelConfig, TrainConfig
from biencoder.data import Forbidden, Split
from biencoder.data.given import Given
from biencoder.data.tokens import TokenizedTexts, tokenize
from biencoder.distributed.join import join
from biencoder.distributed.stop_requests import StopRequests
from biencoder.distributed.world import World
from biencoder.errors import DataError
from biencoder.evaluation import evaluate_split
from biencoder.mining import Miner
from biencoder.model.batch import triplet_batch
from biencoder.model.bi_encoder import BiEncoder, PairClassifier, Scores, TripletBatch, Vectors, build_model
from biencoder.model.folder import save_model
from biencoder.model.pretrained import load_pretrained
from biencoder.retrieval.embedding import EmbeddedTexts, embed_texts
from biencoder.retrieval.trained_model import TrainedModel
from biencoder.training import objective
from biencoder.training import step as step_module
from biencoder.training.engine.engine import Engine
from biencoder.training.engine.settings import import_deepspeed, read_settings
from biencoder.training.engine.state import EngineState
from biencoder.training.loop import Trainer
from biencoder.training.loss import combined_loss
from biencoder.training.progress import Progress
from biencoder.training.recovery import resume
from biencoder.training.sampler import shares
from launcher.entry import run
from tests.modes import in_mode


def _in_world(work: object, *, timeout_s: float = 60, silence_s: float = 6) -> None:
    def command(argv: Sequence[str]) -> None:
        with join(DistributedConfig(timeout_s=timeout_s, control_timeout_s=300, silence_s=silence_s)) as ranks:
            work(ranks)  # type: ignore[operator]

    run(command)


def collectives() -> None:
    """Everything a World offers, with a result that depends on all ranks."""

    def work(ranks: World) -> None:
        ids = np.arange(5) * 7 if ranks.is_main else np.zeros(5, dtype=np.int64)
        gathered = ranks.gather(torch.full((2, 3), float(ranks.rank)))
        found = {
            "together": ranks.together(lambda: ranks.rank),
            "on_main": ranks.on_main(lambda: f"from {ranks.rank}"),
            "ids": ranks.broadcast(torch.from_numpy(ids)).tolist(),
            "mean": ranks.all_reduce_mean(torch.tensor([float(ranks.rank)])).item(),
            "sum": ranks.all_reduce(torch.tensor([float(ranks.rank)]), control=True).item(),
            "kept": ranks.keep_on_main(lambda: f"by {ranks.rank}"),
            "gathered": [rows[0, 0].item() for rows in gathered] if gathered else None,
        }
        print(found)

    _in_world(work)


def spoilt_backward(backward: Any, loss: torch.Tensor) -> None:
    backward(loss * float("nan"))


def slow_work() -> str:
    time.sleep(8)
    return "mined"


def one_fails_together(rank: int, kind: str) -> None:
    def work(ranks: World) -> None:
        def read() -> None:
            if ranks.rank == rank:
                raise DataError("file x is bad") if kind == "user" else ZeroDivisionError("surprise")

        ranks.together(read)

    _in_world(work)


def main_fails() -> None:
    def work(ranks: World) -> None:
        def search() -> None:
            print(time.time(), flush=True)
            raise MemoryError("index does not fit")

        ranks.on_main(search)

    _in_world(work)


def one_fails_alone(rank: int) -> None:
    """A rank raises where the others wait in a collective of the training group."""

    def work(ranks: World) -> None:
        ranks.all_reduce_mean(torch.zeros(1))
        if ranks.rank == rank:
            raise ValueError("step went wrong")
        ranks.all_reduce_mean(torch.zeros(1))

    _in_world(work, timeout_s=600)


def one_is_killed(rank: int, where: str) -> None:
    """A rank disappears while the others wait for it: in training, or while rank 0 (or another) mines."""

    def work(ranks: World) -> None:
        ranks.doing(where)
        ranks.all_reduce_mean(torch.zeros(1))
        time.sleep(2.5)
        if ranks.rank == rank:
            print(time.time(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if where == "training":
            ranks.all_reduce_mean(torch.zeros(1))
        else:
            ranks.on_main(lambda: time.sleep(60))

    _in_world(work, timeout_s=600)


def one_stops_answering(rank: int) -> None:
    def work(ranks: World) -> None:
        ranks.doing("training step 12")
        ranks.all_reduce_mean(torch.zeros(1))
        time.sleep(2.5)
        if ranks.rank == rank:
            os.kill(os.getpid(), signal.SIGSTOP)
        ranks.all_reduce_mean(torch.zeros(1))

    _in_world(work, timeout_s=600)


def main_works_longer_than_the_training_limit() -> None:
    def work(ranks: World) -> None:
        ranks.all_reduce_mean(torch.zeros(1))
        print(ranks.on_main(slow_work))

    _in_world(work, timeout_s=3)


def _let_any_cpu_compute_fp16() -> None:
    """DeepSpeed refuses fp16 on CPUs without instructions for it; PyTorch computes it on all, if slowly."""
    accelerator = import_deepspeed().get_accelerator()
    if accelerator.device_name() == "cpu":
        accelerator.is_fp16_supported = lambda: True


STEPS, BATCH, TEXTS_IN_USE = 20, 8, 24


OBJECTIVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "contrastive": ({}, {"triplet_weight": 0, "classification_weight": 0, "contrastive_weight": 1, "symmetric": True}),
    "joint": (
        {"classifier": "residual", "classifier_gradient": 0.5},
        {"triplet_weight": 0, "classification_weight": 0.5, "classification": "ranking", "contrastive_weight": 1},
    ),
}
"""Settings of the model and of the loss."""


def training_setup(
    tiny_bert: str, *, dropout: float = 0.0, **settings: Any
) -> tuple[BiEncoder, TokenizedTexts, Split, npt.NDArray[np.int64]]:
    """A model with fixed weights, texts, pairs and negatives, equal in every process."""
    config = ModelConfig(name=tiny_bert, max_length=32, embedding_dim=16, dropout=dropout, pooling="mean", **settings)
    pretrained = load_pretrained(config)
    words = "fox dog taxes votes quick lazy brown argues rise fall".split()
    texts = [" ".join(words[(i * k) % 10] for k in range(1, 3 + i % 5)) + f" {i}" for i in range(TEXTS_IN_USE)]
    tokens = tokenize(texts, pretrained.tokenizer, max_length=32)
    split = Split("training", (), np.arange(12), np.arange(12, 24))
    model = build_model(config, pretrained, seed=0)
    if config.classifier == "residual":  # away from its start, where most of its gradient is 0
        torch.nn.init.normal_(cast(Any, model.classifier.layers[-1]).weight, std=0.5)
    return model, tokens, split, ((np.arange(12) + 5) % 12 + 12)[:, None]


def samples_of(step: int) -> npt.NDArray[np.int64]:
    return (np.arange(BATCH) * 5 + step) % 12


def engine_for(model: BiEncoder, mode: str, ranks: World, train: TrainConfig) -> Engine:
    config = in_mode(Config(train=train), mode)
    return Engine(model, train, read_settings(config, ranks.size), ranks, STEPS)


def one_step(engine: Engine, ranks: World, tokens: TokenizedTexts, split: Split, negatives: Any, step: int) -> float:
    """A step of the global batch over all ranks in two micro-batches; the mean loss."""
    losses = []
    samples = samples_of(step)
    lengths = tokens.lengths(split.point_text_P[samples])
    micro = BATCH // ranks.size // 2
    for share in shares(samples, lengths, world_size=ranks.size, micro_batch_size=micro)[ranks.rank]:
        batch = triplet_batch(
            share,
            split,
            negatives,
            tokens,
            one_encoder=True,
            rivals=False,
            pass_cost=engine.pass_cost,
        )
        loss = combined_loss(engine.score(batch), LossConfig())
        engine.backward(loss.total)
        engine.step()
        losses.append(loss.detached()[0])
    return ranks.all_reduce_mean(torch.stack(losses).mean()).item()


def stages_and_precisions(tiny_bert: str, files: list[str], out: str) -> None:
    """Train the same 20 steps under each DeepSpeed file; rank 0 writes losses, norms and corpus embeddings."""

    def work(ranks: World) -> None:
        _let_any_cpu_compute_fp16()
        found = {}
        for file in files:
            model, tokens, split, negatives = training_setup(tiny_bert)
            train = TrainConfig(
                global_batch_size=BATCH, micro_batch_size=BATCH // ranks.size // 2, lr=1e-3, lr_scaling="none"
            )
            engine = engine_for(model, file, ranks, train)
            losses, reports = [], []
            for step in range(STEPS):
                losses.append(one_step(engine, ranks, tokens, split, negatives, step))
                reports.append(engine.report())
            embedded = embed_texts(engine.encode, tokens, np.arange(TEXTS_IN_USE), ranks, batch_tokens=64)
            weights = engine.weights()
            classifier = engine.classifier_copy()
            if ranks.is_main:
                assert embedded is not None
                assert weights is not None
                assert torch.equal(cast(Any, classifier.layers[-1]).weight, weights["classifier.layers.0.weight"])
                found[file] = {
                    "losses": losses,
                    "norms": [report.grad_norm for report in reports],
                    "scale": reports[-1].loss_scale,
                    "skipped": reports[-1].skipped_steps,
                    "embeddings": embedded.query.embedding.tolist(),
                }
        if ranks.is_main:
            Path(out).write_text(json.dumps(found))

    _in_world(work, silence_s=120)


def architectures(folders: list[str], files: list[str], out: str) -> None:
    """Three steps of each of these encoders under each DeepSpeed file; rank 0 saves the trained model, and writes losses,
    and how far the saved model's vectors are from those of the ranks."""

    def work(ranks: World) -> None:
        found: dict[str, Any] = {}
        for folder in folders:
            for mode in files:
                model, tokens, split, negatives, saves = encoder_setup(folder)
                train = TrainConfig(global_batch_size=BATCH, micro_batch_size=BATCH // ranks.size // 2, lr=1e-3)
                engine = engine_for(model, mode, ranks, train)
                losses = [one_step(engine, ranks, tokens, split, negatives, step) for step in range(3)]
                embedded = embed_texts(engine.encode, tokens, np.arange(TEXTS_IN_USE), ranks, batch_tokens=64)
                weights = engine.weights()
                if ranks.is_main and embedded and weights:
                    place = Path(out).parent / f"{Path(folder).name}-{mode.split()[0]}"
                    saves(place, weights)
                    loaded = TrainedModel.load(place, trust_remote_code=True)
                    again = loaded.embed(tokens, np.arange(TEXTS_IN_USE)).query.embedding
                    away = (again - embedded.query.embedding).abs().max().item()
                    found.setdefault(Path(folder).name, {})[mode] = {"losses": losses, "away": away}
        if ranks.is_main:
            Path(out).write_text(json.dumps(found))

    _in_world(work, silence_s=120)


def encoder_setup(folder: str) -> tuple[BiEncoder, TokenizedTexts, Split, npt.NDArray[np.int64], Any]:
    """As `training_setup`, with the pooling that the model has; and a function that saves its weights in a folder."""
    config = ModelConfig(name=folder, max_length=32, embedding_dim=16, dropout=0.0, trust_remote_code=True)
    pretrained = load_pretrained(config)
    texts = [f"the {'quick brown ' * (number % 4)}fox argues {number}" for number in range(TEXTS_IN_USE)]
    tokens = tokenize(texts, pretrained.tokenizer, max_length=32)
    model = build_model(config, pretrained, seed=0)

    def save(place: Path, weights: dict[str, torch.Tensor]) -> None:
        save_model(place, model, weights, pretrained.tokenizer, config, card="# card")

    split = Split("training", (), np.arange(12), np.arange(12, 24))
    return model, tokens, split, ((np.arange(12) + 5) % 12 + 12)[:, None], save


def clipped_updates(tiny_bert: str, files: list[str], out: str) -> None:
    """One SGD step at learning rate 1: the weights move by exactly the clipped gradient."""

    def sgd(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1.0)

    def work(ranks: World) -> None:
        cast(Any, biencoder.training.engine.engine).build_optimizer = sgd
        _let_any_cpu_compute_fp16()
        found = {}
        for file in files:
            model, tokens, split, negatives = training_setup(tiny_bert)
            train = TrainConfig(
                global_batch_size=BATCH,
                micro_batch_size=BATCH // ranks.size // 2,
                clip_norm=0.1,
                lr=1.0,
                lr_scaling="none",
            )
            config = in_mode(Config(train=train), file)
            settings = read_settings(config, ranks.size) | {"zero_allow_untested_optimizer": True}
            engine = Engine(model, train, settings, ranks, STEPS)
            before = engine.weights()
            one_step(engine, ranks, tokens, split, negatives, 0)
            after, report = engine.weights(), engine.report()
            if ranks.is_main and before and after:
                moved = torch.sqrt(sum(((after[name] - before[name]) ** 2).sum() for name in before))  # type: ignore[arg-type]
                found[file] = {"moved": moved.item(), "norm": report.grad_norm, "coef": report.clip_coef}
        if ranks.is_main:
            Path(out).write_text(json.dumps(found))

    _in_world(work, silence_s=120)


def gradients_of_many_tokens(tiny_bert: str, files: list[str], out: str) -> None:
    """One step on 512 texts of 32 tokens, in one micro-batch a rank, under each DeepSpeed file: how far the gradient is
    from that under the first file, relative to it. Adam's first moment is a tenth of the first gradient."""

    def work(ranks: World) -> None:
        pairs = np.arange(256)
        split = Split("training", (), pairs, pairs + 256)
        train = TrainConfig(global_batch_size=256, clip_norm=0)
        config = ModelConfig(name=tiny_bert, max_length=32, embedding_dim=16, dropout=0.0, pooling="mean")
        words = "fox dog taxes votes quick lazy brown argues rise fall".split()
        texts = [" ".join(words[(i * k + k // 3) % 10] for k in range(1, 26)) + f" {i}" for i in range(512)]
        gradients: list[torch.Tensor] = []
        for file in files:
            pretrained = load_pretrained(config)
            tokens = tokenize(texts, pretrained.tokenizer, max_length=32)
            model = build_model(config, pretrained, seed=0)
            for parameter in model.parameters():
                parameter.data.copy_(parameter.data.bfloat16())
            engine = engine_for(model, file, ranks, train)
            mine = pairs.reshape(ranks.size, -1)[ranks.rank]
            batch = triplet_batch(
                mine,
                split,
                (np.roll(pairs, 5) + 256)[:, None],
                tokens,
                one_encoder=True,
                rivals=False,
                pass_cost=engine.pass_cost,
            )
            engine.backward(combined_loss(engine.score(batch), LossConfig()).total)
            engine.step()
            state = engine.state()
            if state:
                moments = sorted(name for name in state.optimizer if name.endswith(".exp_avg"))
                gradients.append(torch.cat([state.optimizer[name].flatten() for name in moments]))
        if ranks.is_main:
            errors = [((own - gradients[0]).norm() / gradients[0].norm()).item() for own in gradients]
            Path(out).write_text(json.dumps(dict(zip(files, errors, strict=True))))

    _in_world(work, silence_s=120)


def sharded_search(mining: dict[str, Any], out: str, given: bool = False) -> None:
    """Mine and rank random vectors held in unequal shards (the last rank holds none); rank 0 writes what is found, and what
    one process finds.

    Args:
        given: whether two pairs in three have a given negative.
    """

    def work(ranks: World) -> None:
        rng = np.random.default_rng(5)
        rows = torch.from_numpy(rng.integers(-2, 3, (300, 6)).astype(np.float32))  # small integers: many exact ties
        pooled = torch.from_numpy(rng.standard_normal((300, 8)).astype(np.float32))
        everything = Vectors(rows, pooled)
        pairs: Any = (None,) * 150
        split = Split("training", pairs, np.arange(150), rng.permutation(np.arange(150, 300)))
        if given:
            split = replace(split, given=Given.of([(numbers + 1) % 150 for numbers in np.array_split(np.arange(100), 150)]))
        rows[split.counter_text_P] = rows[:150] + 2 * torch.eye(6)[torch.arange(150) % 6]  # near, so that some are found
        torch.manual_seed(0)
        classifier = PairClassifier(ModelConfig(), embedding_dim=6, hidden=8)
        torch.nn.init.normal_(cast(Any, classifier.layers[-1]).weight, std=0.1)  # far from saturating the softmax
        holder_M = (rng.random(300) ** 2 * (ranks.size - 1)).astype(np.int32)
        held = np.flatnonzero(holder_M == ranks.rank)
        mine = everything.rows(torch.from_numpy(held))
        found = {}
        for name, embedded, holders in (
            ("sharded", EmbeddedTexts(held, mine, mine, np.arange(300), holder_M), ranks),
            ("whole", EmbeddedTexts.whole(np.arange(300), everything, everything), World.alone()),
        ):
            config = MiningConfig(random_rate=0.2, placement="sharded", **mining)
            miner = Miner(split, Forbidden.of(split, 300), holders, config, seed=0, num_epochs=1)
            mined = miner.mine(0, embedded)
            result = evaluate_split(split, embedded, classifier, top_k=5, world=holders)
            found[name] = {
                "negatives": mined.negative_text_PK.tolist(),
                "distance": mined.search.nearest_distance,
                "recall": mined.search.recall,
                "audit": asdict(mined.audit),
                "metrics": result.metrics,
                "examples": [asdict(example) for example in result.examples],
            }
        if ranks.rank == ranks.size - 1:
            assert len(held) == 0
            Path(out).write_text(json.dumps(found))

    _in_world(work, silence_s=120)


def overlapped_search(out: str) -> None:
    """Three epochs with `mining.overlap` on several ranks, and on one; the last rank writes both."""

    def work(ranks: World) -> None:
        pairs: Any = (None,) * 30
        split = Split("training", pairs, np.arange(30), np.arange(30, 60))
        found: dict[str, list[list[int]]] = {"ranks": [], "alone": []}
        for name, holders in (("ranks", ranks), ("alone", World.alone())):
            mining, forbidden = MiningConfig(overlap=True, random_rate=0.3), Forbidden.of(split, 60)
            miner = Miner(split, forbidden, holders, mining, seed=1, num_epochs=3)
            for epoch in range(3):
                rows = torch.from_numpy(np.random.default_rng(epoch).standard_normal((60, 8), dtype=np.float32))
                embedded = EmbeddedTexts.whole(np.arange(60), Vectors(rows, rows), Vectors(rows, rows))
                mined = miner.mine(epoch, embedded if holders.is_main else None)
                found[name].append([mined.staleness, *mined.negative_text_PK.ravel().tolist()])
        if ranks.rank == ranks.size - 1:
            Path(out).write_text(json.dumps(found))

    _in_world(work)


def train_steps(engine: Engine, ranks: World, setup: Any, steps: range) -> list[list[float]]:
    """Loss, gradient norm and learning rate of each of these steps."""
    _, tokens, split, negatives = setup
    rows = []
    for step in steps:
        loss = one_step(engine, ranks, tokens, split, negatives, step)
        rows.append([loss, engine.report().grad_norm, engine.report().lr])
    return rows


AFTER = range(3, 6)
"""The steps that follow a state; the warm-up ends within."""
WARM_UP = 5


def save_and_go_on(tiny_bert: str, files: list[str], folder: str) -> None:
    """Under each DeepSpeed file: some steps, a state, the steps after it; then a fresh engine from it, the same steps."""

    def work(ranks: World) -> None:
        _let_any_cpu_compute_fp16()
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

    _in_world(work, silence_s=120)


def go_on_elsewhere(tiny_bert: str, files: list[str], folder: str) -> None:
    """The last steps of `save_and_go_on`, from its state, on another number of ranks."""

    def work(ranks: World) -> None:
        _let_any_cpu_compute_fp16()
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

    _in_world(work, silence_s=120)


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
    """Under each DeepSpeed file: three steps, one whose loss is NaN on the last rank alone, one more."""

    def work(ranks: World) -> None:
        _let_any_cpu_compute_fp16()
        found = {}
        for file in files:
            setup = training_setup(tiny_bert)
            engine = engine_for(setup[0], file, ranks, _warming_up(ranks))
            train_steps(engine, ranks, setup, range(3))
            before, lr = engine.state(), engine.report().lr
            backward = engine.backward
            if ranks.rank == ranks.size - 1:
                engine.backward = partial(spoilt_backward, backward)  # type: ignore[method-assign]
            train_steps(engine, ranks, setup, range(3, 4))
            engine.backward = backward  # type: ignore[method-assign]
            after, skipped = engine.state(), engine.skipped_steps
            train_steps(engine, ranks, setup, range(4, 5))
            if before and after:
                same = all(before.model[k].equal(after.model[k]) for k in before.model) and all(
                    before.optimizer[k].equal(after.optimizer[k]) for k in before.optimizer
                )
                found[file] = [same, skipped, engine.steps, engine.applied_steps, engine.report().lr / lr]
        if ranks.is_main:
            Path(out).write_text(json.dumps(found))

    _in_world(work, silence_s=120)


def overflowing_steps(tiny_bert: str, files: list[str], out: str) -> None:
    """Under each fp16 file: steps until three have been applied; after each one what it did, and whether weights moved."""

    def work(ranks: World) -> None:
        _let_any_cpu_compute_fp16()
        found = {}
        for file in files:
            setup = training_setup(tiny_bert)
            engine = engine_for(setup[0], file, ranks, _warming_up(ranks))
            rows: list[dict[str, Any]] = []
            while engine.applied_steps < 3 and engine.steps < STEPS:
                before = engine.weights()
                train_steps(engine, ranks, setup, range(engine.steps, engine.steps + 1))
                after = engine.weights()
                same = before is None or after is None or all(before[name].equal(after[name]) for name in before)
                rows.append(asdict(engine.report()) | {"same": same})
            found[file] = rows
        if ranks.is_main:
            Path(out).write_text(json.dumps(found))

    _in_world(work, silence_s=120)


def poisoned_run(arguments: list[str], poisoned: list[int], healed_by_lr: float, unwritable: Sequence[int] = ()) -> None:
    """`launcher/train.py` where the loss of some steps is NaN on the last rank, until the learning rate is low enough.

    Args:
        unwritable: steps whose checkpoint fails two seconds after it was begun, the first time.
    """
    from biencoder.training.recovery.checkpoint import CheckpointFolder
    from launcher import train

    clean = combined_loss
    steps, failing, write = iter(range(10**6)), set(unwritable), CheckpointFolder._write

    def fail(self: CheckpointFolder, checkpoint: Any, also_keep: int) -> None:
        if checkpoint.step in failing:
            failing.remove(checkpoint.step)
            time.sleep(2)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, checkpoint, also_keep)

    CheckpointFolder._write = fail  # type: ignore[method-assign]

    def command(argv: Sequence[str]) -> None:
        fit = Trainer.fit

        def watched(self: Trainer) -> None:
            def poison(*scores: Any, **more: Any) -> Any:
                loss = clean(*scores, **more)
                step, world = next(steps), self.world
                bad = step in poisoned and self.step.engine.lr_factor > healed_by_lr and world.rank == world.size - 1
                return loss._replace(total=loss.total * float("nan")) if bad else loss

            cast(Any, objective).combined_loss = poison
            fit(self)

        Trainer.fit = watched  # type: ignore[method-assign]
        train.main(argv)

    import sys

    sys.argv = ["train.py", *arguments]
    run(command)


def run_on_a_small_gpu(arguments: list[str], room: int) -> None:
    """`launcher/train.py` where the last rank's memory holds so many triplets in training."""
    import sys

    from biencoder.training.engine.engine import Engine
    from launcher import train

    score = Engine.score

    def limited(self: Engine, batch: Any) -> Any:
        if len(batch.point_row_B) > room and self._world.rank == self._world.size - 1:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate much")
        return score(self, batch)

    Engine.score = limited  # type: ignore[method-assign]
    sys.argv = ["train.py", *arguments]
    run(train.main)


def runs_in_turn(commands: list[list[str]]) -> None:
    """What `launcher/train.py` does with each of these command lines, in one process."""
    from launcher.entry import parse_run
    from launcher.train import train

    def work(ranks: World) -> None:
        for command in commands:
            train(parse_run(command, prog="", description="").config, ranks)

    _in_world(work, silence_s=120)


def stopped_where_an_epoch_ends(arguments: list[str]) -> None:
    """`launcher/train.py` where the last rank is asked to stop as it hands in its part of an epoch's last checkpoint, and
    rank 0 takes four seconds to put the parts together."""
    import sys

    from launcher import train

    leave = Trainer._leave_epoch

    def slow(self: Trainer, *, whole: bool) -> None:
        if self.world.is_main:
            checkpoints: Any = self.recovery._checkpoints
            write = checkpoints.write

            def late(*parts: Any, **more: Any) -> None:
                time.sleep(4)
                write(*parts, **more)

            checkpoints.write = late
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        leave(self, whole=whole)

    Trainer._leave_epoch = slow  # type: ignore[method-assign]
    sys.argv = ["train.py", *arguments]
    run(train.main)


def timed_checkpoints(epoch_steps: int) -> None:
    """Steps of 30 s, a checkpoint every two minutes, clocks that differ; each rank prints the steps it saves after."""

    def work(ranks: World) -> None:
        now = [0.0]
        cast(Any, resume).time = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
        progress, saved = Progress(), []
        stop = StopRequests(ranks, before_exit=lambda exit_code: None)
        recovery = cast(Any, resume.Recovery)(
            SimpleNamespace(failed=lambda: None),
            Config(checkpoint=CheckpointConfig(every_minutes=2)),
            {},
            ranks,
            SimpleNamespace(state=lambda: None),
            progress,
            SimpleNamespace(state_dict=dict),
            [],
            SimpleNamespace(),
            stop,
        )
        recovery.saved_at = -20.0 * ranks.rank
        for step in range(1, 41):
            now[0] += 30
            progress.step = step
            recovery.save_or_stop()
            if step % epoch_steps == 0:
                recovery.save()
            if recovery.saved_step == step:
                saved.append(step)
        stop.close()
        print(json.dumps(saved))

    _in_world(work)


def troubled_run(arguments: list[str], trouble: str) -> None:
    """`launcher/train.py` with a trouble that no setting makes."""
    import sys

    from launcher import train

    if trouble == "fp16":
        _let_any_cpu_compute_fp16()
    if trouble == "slow rank":
        score = Engine.score

        def on_a_slow_processor(self: Engine, batch: TripletBatch) -> Scores:
            if self._world.rank == 1:
                with self._forward.running():
                    time.sleep(0.5)
            return score(self, batch)

        Engine.score = on_a_slow_processor  # type: ignore[method-assign]
    if trouble == "slow data":
        quick = triplet_batch

        def slow(*inputs: Any, **more: Any) -> Any:
            time.sleep(0.5)
            return quick(*inputs, **more)

        cast(Any, step_module).triplet_batch = slow
    sys.argv = ["train.py", *arguments]
    run(train.main)


def first_step(
    engine: Engine, config: Config, ranks: World, tokens: TokenizedTexts, split: Split, negatives: npt.NDArray[np.int64]
) -> torch.Tensor:
    """This rank's mean loss parts."""
    training = step_module.Step(
        engine,
        objective.Objective(config.loss, ranks),
        tokens,
        split,
        Forbidden.of(split, TEXTS_IN_USE),
        ranks,
        micro_batch_size=config.train.micro_batch(ranks.size),
        seed=config.run.seed,
    )
    return training.train(training.batch(samples_of(0), negatives), 0)


def contrastive_gradients(tiny_bert: str, files: list[str], out: str) -> None:
    """One SGD step at learning rate 1 of the contrastive loss, alone and with a pair classifier, in one micro-batch a rank
    and in several: the weights move by its gradient. Rank 0 writes loss and gradient of each."""

    def sgd(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1.0)

    def work(ranks: World) -> None:
        cast(Any, biencoder.training.engine.engine).build_optimizer = sgd
        if ranks.size > 1:
            biencoder.training.contrastive._BLOCK_BYTES = 1  # every point is a block
        gradients: dict[str, Any] = {}
        for name, file in itertools.product(OBJECTIVES, files):
            settings, weights = OBJECTIVES[name]
            for micro in sorted({BATCH // ranks.size, 1, 2}):
                model, tokens, split, negatives = training_setup(tiny_bert, **settings)
                train = TrainConfig(global_batch_size=BATCH, micro_batch_size=micro, clip_norm=0, lr=1.0, lr_scaling="none")
                config = in_mode(Config(train=train, loss=LossConfig(**weights)), file)
                deepspeed = read_settings(config, ranks.size) | {"zero_allow_untested_optimizer": True}
                engine = Engine(model, train, deepspeed, ranks, STEPS)
                before = engine.weights()
                parts = first_step(engine, config, ranks, tokens, split, negatives)
                loss, after = ranks.all_reduce_mean(parts)[0], engine.weights()
                if before and after:
                    spread = f"{name} {file} {micro}"
                    moved = {f"{spread} {key}": before[key] - after[key] for key in before}
                    gradients |= moved | {f"{spread} loss": loss.clone()}
        if ranks.is_main:
            save_file(gradients, out)

    _in_world(work, silence_s=120)


def losses_by_dropout(tiny_bert: str, out: str) -> None:
    """The loss of one step, without and with dropout, in one micro-batch a rank, twice, and in several."""

    def work(ranks: World) -> None:
        losses: dict[str, list[float]] = {}
        for dropout in (0.0, 0.3):
            for micro in (BATCH // ranks.size, BATCH // ranks.size, 1):
                model, tokens, split, negatives = training_setup(tiny_bert, dropout=dropout)
                config = Config(train=TrainConfig(global_batch_size=BATCH, micro_batch_size=micro))
                engine = engine_for(model, "zero1 fp32", ranks, config.train)
                parts = first_step(engine, config, ranks, tokens, split, negatives)
                losses.setdefault(str(dropout), []).append(ranks.all_reduce_mean(parts)[0].item())
        if ranks.is_main:
            Path(out).write_text(json.dumps(losses))

    _in_world(work)


def ranks_that_differ(arguments: list[str], folder: str, wrong: dict[str, str]) -> None:
    """`launcher/train.py` in which the last rank is given other settings, or stands in a folder of its own; then, in the
    same world, with both ranks alike but for what relative paths lead to."""
    from biencoder.errors import ConfigError
    from launcher.entry import parse_run
    from launcher.train import train

    def work(ranks: World) -> None:
        last = ranks.rank == ranks.size - 1
        os.chdir(Path(folder) / str(ranks.rank))
        more = [part for name, value in (wrong if last else {}).items() for part in (f"--{name}", value)]
        for given in ([*arguments, *more], arguments):
            config = parse_run(given, prog="train.py", description="").config
            try:
                train(config, ranks)
            except ConfigError as error:
                print(error)

    _in_world(work, silence_s=60)
