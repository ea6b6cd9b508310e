"""A small model, its data and its steps, equal in every process."""

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from biencoder.config.schema import Config, LossConfig, ModelConfig, TrainConfig
from biencoder.data import Forbidden, Split
from biencoder.data.tokens import TokenizedTexts, tokenize
from biencoder.distributed.world import World
from biencoder.model.batch import triplet_batch
from biencoder.model.bi_encoder import BiEncoder, build_model
from biencoder.model.pretrained import load_pretrained
from biencoder.model.truncation import Truncation
from biencoder.training import objective
from biencoder.training import step as step_module
from biencoder.training.engine.engine import Engine
from biencoder.training.engine.settings import import_deepspeed, read_settings
from biencoder.training.loss import combined_loss
from biencoder.training.sampler import shares
from tests.modes import in_mode


def let_any_cpu_compute_fp16() -> None:
    """DeepSpeed refuses fp16 on CPUs without instructions for it; PyTorch computes it on all, if slowly."""
    accelerator = import_deepspeed().get_accelerator()
    if accelerator.device_name() == "cpu":
        accelerator.is_fp16_supported = lambda: True


STEPS, BATCH, TEXTS_IN_USE = 10, 8, 24


OBJECTIVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "contrastive": (
        {"normalize": True},
        {
            **{"triplet_weight": 0, "classification_weight": 0, "contrastive_weight": 1, "symmetric": True},
            "matryoshka_dims": "4,8",
        },
    ),
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


def engine_for(model: BiEncoder, mode: str, ranks: World, train: TrainConfig, *, packed: bool = False) -> Engine:
    config = in_mode(Config(train=train), mode)
    return Engine(model, train, read_settings(config, ranks.size), ranks, STEPS, always_packed=packed)


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
            packing=engine.packing,
        )
        loss = combined_loss(engine.score(batch), LossConfig())
        engine.backward(loss.total)
        engine.step()
        losses.append(loss.detached()[0])
    return ranks.all_reduce_mean(torch.stack(losses).mean()).item()


def train_steps(engine: Engine, ranks: World, setup: Any, steps: range) -> list[list[float]]:
    """Loss, gradient norm and learning rate of each of these steps."""
    _, tokens, split, negatives = setup
    rows = []
    for step in steps:
        loss = one_step(engine, ranks, tokens, split, negatives, step)
        rows.append([loss, engine.report().grad_norm, engine.report().lr])
    return rows


def first_step(
    engine: Engine, config: Config, ranks: World, tokens: TokenizedTexts, split: Split, negatives: npt.NDArray[np.int64]
) -> torch.Tensor:
    """This rank's mean loss parts."""
    training = step_module.Step(
        engine,
        objective.Objective(config.loss, ranks, Truncation(config.loss.truncations(16), normalize=True)),
        tokens,
        split,
        Forbidden.of(split, TEXTS_IN_USE),
        ranks,
        micro_batch_size=config.train.micro_batch(ranks.size),
        seed=config.run.seed,
    )
    return training.train(training.batch(samples_of(0), negatives), 0)
