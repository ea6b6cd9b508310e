"""Steps under DeepSpeed's stages and precisions: losses, gradients, clipping, dropout, architectures."""

import itertools
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

import biencoder.training.contrastive
import biencoder.training.engine.engine
from biencoder.config.schema import Config, LossConfig, ModelConfig, TrainConfig
from biencoder.data import Split
from biencoder.data.tokens import TokenizedTexts, tokenize
from biencoder.distributed.world import World
from biencoder.model.batch import triplet_batch
from biencoder.model.bi_encoder import BiEncoder, build_model
from biencoder.model.folder import save_model
from biencoder.model.packed import TESTED
from biencoder.model.pretrained import load_pretrained
from biencoder.retrieval.embedding import embed_texts
from biencoder.retrieval.trained_model import TrainedModel
from biencoder.training.engine.engine import Engine
from biencoder.training.engine.settings import read_settings
from biencoder.training.loss import combined_loss
from tests.modes import in_mode
from tests.ranks.cases import in_world
from tests.ranks.cases.steps import (
    BATCH,
    OBJECTIVES,
    STEPS,
    TEXTS_IN_USE,
    engine_for,
    first_step,
    let_any_cpu_compute_fp16,
    one_step,
    training_setup,
)


def stages_and_precisions(tiny_bert: str, files: list[str], out: str) -> None:
    """Train the same steps under each DeepSpeed file; rank 0 writes losses, norms and corpus embeddings."""

    def work(ranks: World) -> None:
        let_any_cpu_compute_fp16()
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
            embedded, alone = (
                embed_texts(engine.encode, tokens, np.arange(TEXTS_IN_USE), ranks, batch_tokens=64, pooled=pooled)
                for pooled in (True, False)
            )
            weights = engine.weights()
            classifier = engine.classifier_copy()
            if ranks.is_main:
                assert embedded is not None
                assert alone is not None
                assert torch.equal(alone.query.embedding, embedded.query.embedding)
                assert (embedded.query.pooled.numel(), alone.query.pooled.numel()) == (TEXTS_IN_USE * 32, 0)
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

    in_world(work, silence_s=120)


def architectures(folders: list[str], files: list[str], out: str) -> None:
    """Three steps of each of these encoders under each DeepSpeed file; rank 0 saves the trained model, and writes losses,
    and how far the saved model's vectors are from those of the ranks. Under the last file texts are packed, where that is
    tested with the encoder."""

    def work(ranks: World) -> None:
        found: dict[str, Any] = {}
        for folder in folders:
            for mode in files:
                model, tokens, split, negatives, saves = encoder_setup(folder)
                train = TrainConfig(global_batch_size=BATCH, micro_batch_size=BATCH // ranks.size // 2, lr=1e-3)
                packed = mode == files[-1] and model.encoders[0].config.model_type in TESTED
                engine = engine_for(model, mode, ranks, train, packed=packed)
                losses = [one_step(engine, ranks, tokens, split, negatives, step) for step in range(3)]
                embedded = embed_texts(
                    engine.encode, tokens, np.arange(TEXTS_IN_USE), ranks, batch_tokens=64, packing=engine.packing
                )
                weights = engine.weights()
                if ranks.is_main and embedded and weights:
                    place = Path(out).parent / f"{Path(folder).name}-{mode.split()[0]}"
                    saves(place, weights)
                    loaded = TrainedModel.load(place, precision="fp32", trust_remote_code=True)
                    again = loaded.embed(tokens, np.arange(TEXTS_IN_USE)).query.embedding
                    away = (again - embedded.query.embedding).abs().max().item()
                    found.setdefault(Path(folder).name, {})[mode] = {"losses": losses, "away": away}
        if ranks.is_main:
            Path(out).write_text(json.dumps(found))

    in_world(work, silence_s=120)


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
        let_any_cpu_compute_fp16()
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

    in_world(work, silence_s=120)


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

    in_world(work, silence_s=120)


def contrastive_gradients(tiny_bert: str, files: list[str], out: str) -> None:
    """One SGD step at learning rate 1 of the contrastive loss, alone and with a pair classifier, in one micro-batch a rank
    and in several: the weights move by its gradient. Texts of the smallest micro-batches are packed. Rank 0 writes loss and
    gradient of each."""

    def sgd(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1.0)

    def work(ranks: World) -> None:
        cast(Any, biencoder.training.engine.engine).build_optimizer = sgd
        if ranks.size > 1:
            biencoder.training.contrastive._BLOCK_BYTES = 1  # every point is a block
        gradients: dict[str, Any] = {}
        for name, file in itertools.product(OBJECTIVES, files):
            settings, weights = OBJECTIVES[name]
            for micro in sorted({BATCH // ranks.size, 1, *([2] if ranks.size == 2 else [])}):
                model, tokens, split, negatives = training_setup(tiny_bert, **settings)
                train = TrainConfig(global_batch_size=BATCH, micro_batch_size=micro, clip_norm=0, lr=1.0, lr_scaling="none")
                config = in_mode(Config(train=train, loss=LossConfig(**weights)), file)
                deepspeed = read_settings(config, ranks.size) | {"zero_allow_untested_optimizer": True}
                engine = Engine(model, train, deepspeed, ranks, STEPS, always_packed=micro == 1)
                before = engine.weights()
                parts = first_step(engine, config, ranks, tokens, split, negatives)
                loss, after = ranks.all_reduce_mean(parts)[0], engine.weights()
                if before and after:
                    spread = f"{name} {file} {micro}"
                    moved = {f"{spread} {key}": before[key] - after[key] for key in before}
                    gradients |= moved | {f"{spread} loss": loss.clone()}
        if ranks.is_main:
            save_file(gradients, out)

    in_world(work, silence_s=120)


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

    in_world(work)
