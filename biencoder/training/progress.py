"""Where a run stands between two steps."""

from collections.abc import Mapping
from typing import Any


class Progress:
    def __init__(self) -> None:
        self.step = 0
        """Optimizer steps made."""
        self.epoch = 0
        """Whole epochs made."""

    @property
    def at(self) -> dict[str, int]:
        """For a record."""
        return {"step": self.step, "epoch": self.epoch}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.epoch = int(state["step"]), int(state["epoch"])
