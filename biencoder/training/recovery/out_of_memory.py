"""A micro-batch that does not fit a GPU: the run starts again from its last checkpoint with half of it, on its own.

    OutOfMemory        raised by the rank that ran out, ends all ranks
    record_bound       rank 0 writes into the run's folder what did not fit
    within_bound       the next start takes the largest micro-batch below it, with more accumulation: same global batch

The step cannot be repeated in place: the other ranks are in the collectives of the same backward pass, and DeepSpeed has
half of the gradients in its buckets.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from biencoder.config.schema import Config
from biencoder.errors import BiencoderError, ConfigError, OutOfMemory
from biencoder.training.recovery.run_folder import append_line, read_lines

_WORDS = ("CUDA error: out of memory", "CUDA out of memory", "_STATUS_ALLOC_FAILED", "Cuda failure 2 'out of memory'")


@contextmanager
def raising_out_of_memory(config: Config, *, world_size: int) -> Iterator[None]:
    """Raise in place of PyTorch's error: OutOfMemory, or a ConfigError where there is nothing left to halve."""
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise _out_of_memory(config, error, world_size=world_size) from None


def _is_out_of_memory(error: RuntimeError) -> bool:
    """PyTorch's allocator has a class for it; CUDA, its libraries and NCCL say it in words."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _WORDS)


def _out_of_memory(config: Config, error: RuntimeError, *, world_size: int) -> BiencoderError:
    micro = config.train.micro_batch(world_size)
    reason = str(error).split("\n")[0].split(". ")[0]
    if micro == 1:
        return ConfigError(
            f"not even one triplet fits the GPU ({reason}); lower model.max_length, or take a higher ZeRO stage in "
            "deepspeed_config"
        )
    smaller = _fitting(config, world_size, micro // 2)
    return OutOfMemory(
        f"a micro-batch of {micro} triplets does not fit the GPU ({reason}); the next start takes {smaller} with the same "
        "global batch, from the last checkpoint on"
    )


def record_bound(folder: Path, config: Config, *, world_size: int) -> None:
    """Write into the run's folder that this micro-batch did not fit."""
    append_line(folder, {"micro_batch_bound": config.train.micro_batch(world_size) // 2})


def within_bound(folder: Path, config: Config, *, world_size: int) -> Config:
    """The configuration with a micro-batch that earlier starts have not found too large."""
    bounds = [line["micro_batch_bound"] for line in read_lines(folder) if "micro_batch_bound" in line]
    if not bounds or config.train.micro_batch(world_size) <= min(bounds):
        return config
    micro = _fitting(config, world_size, min(bounds))
    return dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch_size=micro))


def _fitting(config: Config, world_size: int, bound: int) -> int:
    """The largest micro-batch up to the bound that divides a rank's share of the global batch."""
    share = config.train.global_batch_size // world_size
    return next(size for size in range(max(1, bound), 0, -1) if share % size == 0)
