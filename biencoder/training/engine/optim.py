"""The optimizer and its learning-rate schedule, as plain PyTorch objects that the engine is given."""

import math
import re
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn

from biencoder.config.schema import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the trainable parameters, in groups whose `lr_factor` is a multiple of the learning rate.

    Biases and norms (vectors) are not decayed. The encoder's layers learn the slower the lower they are, by
    `layer_decay` each (Howard and Ruder 2018); embeddings lie below the lowest.
    """
    factors = lr_factors(model, config)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[factors[name], parameter.ndim >= 2].append(parameter)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        [
            {"params": parameters, "lr_factor": factor, "weight_decay": config.weight_decay if decayed else 0.0}
            for (factor, decayed), parameters in sorted(groups.items(), key=lambda group: group[0], reverse=True)
        ],
        lr=config.peak_lr,
        fused=True,
    )


def lr_factors(model: nn.Module, config: TrainConfig) -> dict[str, float]:
    """What the learning rate of each parameter is multiplied with."""
    names = [name for name, _ in model.named_parameters()]
    # Transformers name layers `encoder.layer.7.`, `layers.7.` and the like, counted from the bottom.
    layer = {name: int(found[1]) + 1 for name in names if (found := re.search(r"\.encoder\..*?\blayers?\.(\d+)\.", name))}
    top = max(layer.values(), default=0)
    below = {name for name in names if ".embeddings." in name}
    return {
        name: config.layer_decay ** (top - layer.get(name, 0 if name in below else top))
        if ".encoder." in name
        else config.head_lr_factor
        for name in names
    }


def schedule(config: TrainConfig, total_steps: int) -> Callable[[int], float]:
    """Factor of the peak learning rate at each step: linear warm-up, then constant, linear or cosine decay to 0."""
    warmup = round(config.warmup_ratio * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[config.schedule]

    return factor
