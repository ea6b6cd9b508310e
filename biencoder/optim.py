"""The optimizer and its learning-rate schedule, as plain PyTorch objects that the engine is given."""

import math
from collections.abc import Callable

import torch
from torch import nn

from biencoder.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the trainable parameters; biases and norms (vectors) are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind([group for group in groups if group["params"]], lr=config.peak_lr, fused=True)


def schedule(config: TrainConfig, total_steps: int) -> Callable[[int], float]:
    """Factor of the peak learning rate at each step: linear warm-up, then constant, linear or cosine decay to 0."""
    warmup = round(config.warmup_ratio * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[config.schedule]

    return factor
