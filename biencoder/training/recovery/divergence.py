"""Steps without a finite gradient: a few are skipped; after too many in a row the run goes back to its last checkpoint with
half the learning rate."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from biencoder.config.schema import TrainConfig
from biencoder.data import Split
from biencoder.errors import ConfigError, Diverged
from biencoder.training.engine.engine import Engine


class Divergence:
    def __init__(self, engine: Engine, split: Split, config: TrainConfig) -> None:
        self._engine, self._split, self._config = engine, split, config
        self._skipped_steps = 0
        """Of the engine, when last looked at."""
        self.skipped_in_a_row = 0
        self.rollbacks = 0

    def skipped(self) -> bool:
        """Whether the last step changed nothing because its gradient was not finite; the same on every rank."""
        if self._engine.skipped_steps == self._skipped_steps:
            self.skipped_in_a_row = 0
            return False
        self._skipped_steps = self._engine.skipped_steps
        self.skipped_in_a_row += 1
        return True

    def check(self) -> None:
        """
        Raises:
            Diverged: too many steps in a row were skipped.
        """
        if self.skipped_in_a_row >= self._config.max_skipped:
            raise Diverged

    def describe(self, batch_G: npt.NDArray[np.int64]) -> str:
        """Which samples a skipped step was made of."""
        names = ", ".join(self._split.pairs[i].point.source for i in batch_G[:8]) + (" ..." if len(batch_G) > 8 else "")
        return f"no finite gradient for the batch of {names}"

    def advice(self, step: int) -> ConfigError:
        """The error to end with where the run cannot go back."""
        return ConfigError(
            f"the last {self.skipped_in_a_row} steps before step {step} had no finite gradient; lower train.lr "
            f"({self._config.lr:g}), take bf16 instead of fp16, or look at the samples that metrics.jsonl names"
        )

    def check_rollbacks(self, step: int) -> None:
        """
        Raises:
            ConfigError: the run has gone back too often already.
        """
        if self.rollbacks >= self._config.max_rollbacks:
            raise ConfigError(f"{self.advice(step)}; the run has gone back {self.rollbacks} times already")

    def went_back(self, *, rollbacks: int, lr_factor: float) -> None:
        """The run stands at a checkpoint again, whose own counters are older."""
        self.rollbacks, self.skipped_in_a_row, self._engine.lr_factor = rollbacks, 0, lr_factor

    def state_dict(self) -> dict[str, Any]:
        return {"rollbacks": self.rollbacks, "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The engine has its state already."""
        self.rollbacks, self.skipped_in_a_row = int(state["rollbacks"]), int(state["skipped_in_a_row"])
        self._skipped_steps = self._engine.skipped_steps
