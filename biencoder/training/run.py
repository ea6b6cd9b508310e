"""What a training run works with, and where it stands."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from biencoder.config import Config
from biencoder.data import Dataset, Forbidden, Split
from biencoder.data.tokens import TokenizedTexts
from biencoder.distributed.stop_requests import StopRequests
from biencoder.distributed.world import World
from biencoder.mining import Miner
from biencoder.model.bi_encoder import TripletBatch
from biencoder.tracking.terminal import Terminal
from biencoder.tracking.tracker import Tracker
from biencoder.training.contrastive import Targets
from biencoder.training.engine.engine import Engine
from biencoder.training.engine.stopwatch import Stopwatch
from biencoder.training.loss import LossParts
from biencoder.training.model_folders import ModelFolders
from biencoder.training.recovery.checkpoint import CheckpointFolder


@dataclass(frozen=True, slots=True)
class Run:
    """Built once by the launcher."""

    config: Config
    world: World
    dataset: Dataset
    tokens: TokenizedTexts
    engine: Engine
    miner: Miner
    checkpoints: CheckpointFolder
    stop: StopRequests
    tracker: Tracker
    terminal: Terminal
    forbidden: Forbidden
    folder: Path
    models: ModelFolders

    @property
    def training(self) -> Split:
        return self.dataset.splits["training"]

    @property
    def num_samples(self) -> int:
        return len(self.training)


class StepBatch(NamedTuple):
    """What a rank works on in one step."""

    micro_batches: list[TripletBatch]
    targets: Targets | None
    """Of the contrastive loss over the whole step; None where it has no weight."""


class Window:
    """The steps since the last record: loss parts summed on the device, and how long they took."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.clear()

    def clear(self) -> None:
        self.parts = torch.zeros(len(LossParts._fields), device=self._device)
        self.steps = 0
        """Steps that the sums are made of."""
        self.restart_clock()

    def restart_clock(self) -> None:
        self.start, self.timed_steps = time.perf_counter(), 0
        self.batches = Stopwatch(torch.device("cpu"))
        """Of putting batches together."""

    def add(self, parts: torch.Tensor) -> None:
        self.parts += parts
        self.steps += 1


class Unwritten(NamedTuple):
    """A best model that waits in memory."""

    value: float
    """Of `eval.metric`."""
    step: int
    regular: bool
    """Whether a longer run would have measured it as well."""


class Progress:
    """Where a run stands between two steps."""

    def __init__(self, device: torch.device) -> None:
        self.step = 0
        self.epoch = 0
        self.negatives: npt.NDArray[np.int64] | None = None
        """Text ids of each sample's negatives in this epoch (P, K); None where it has yet to be mined for."""
        self.window = Window(device)
        self.best = -1.0
        """Value of `eval.metric` of the model in model/best, and the step it was measured after."""
        self.best_step = -1
        self.unwritten: Unwritten | None = None
        """A better model, which could not be written yet."""
        self.evaluations_since_best = 0
        self.saved_step = -1
        """Step of the newest checkpoint, and when it was begun."""
        self.saved_at = time.monotonic()
        self.skipped_steps = 0
        """Of the engine, when last looked at."""
        self.skipped_in_a_row = 0
        self.rollbacks = 0


def steps_per_epoch(dataset: Dataset, config: Config) -> int:
    return len(dataset.splits["training"]) // config.train.global_batch_size


def total_steps(dataset: Dataset, config: Config) -> int:
    """Optimizer steps of the whole run."""
    steps = config.train.epochs * steps_per_epoch(dataset, config)
    return min(steps, config.train.max_steps) if config.train.max_steps else steps
