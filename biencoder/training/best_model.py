"""Which model was the best by `eval.metric`, and that it is written, though the disk may be full for a while."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from biencoder.tracking.names import Metrics
from biencoder.tracking.tracker import Tracker
from biencoder.training.model_folders import ModelFolders


class Unwritten(NamedTuple):
    """A best model that waits in memory."""

    value: float
    """Of `eval.metric`."""
    step: int
    regular: bool
    """Whether a longer run would have measured it as well."""


class BestModel:
    def __init__(self, folders: ModelFolders, tracker: Tracker, *, metric: str) -> None:
        """Args: metric: the name under which evaluations hold the value that decides; higher is better."""
        self._folders, self._tracker, self._metric = folders, tracker, metric
        self.value = -1.0
        """Of the model in model/best."""
        self.step = -1
        """After which it was measured."""
        self.evaluations_since = 0
        self._unwritten: Unwritten | None = None

    def consider(self, metrics: Metrics, *, step: int, epoch: int, regular: bool) -> None:
        """Save the model that was just measured if it is the best so far. Every rank takes part.

        Args:
            regular: whether a longer run would have measured this model as well. It would not where this run ends within
                an epoch, or between two evaluations: the best of the other models is set aside for it.
        """
        if step == 0:
            return  # nothing is trained yet
        self.write()
        value = metrics[self._metric]
        self.evaluations_since += 1
        if value > max(self.value, self._unwritten.value if self._unwritten else self.value):
            self.evaluations_since = 0
            self._unwritten = Unwritten(value, step, regular)
            self._folders.hold(metrics)
            if not self.write():
                detail = f"the best model so far ({value:.4f}) could not be written"
                self._tracker.event("model not written", step=step, epoch=epoch, detail=detail)

    def write(self, *, last_chance: bool = False) -> bool:
        """Write the best model if it is not written yet; whether it is. Every rank takes part.

        Raises:
            PeerError: it cannot be written, and this was its last chance.
        """
        if best := self._unwritten:
            if not self._folders.write_best(aside=not best.regular, last_chance=last_chance):
                return False
            self.value, self.step, self._unwritten = best.value, best.step, None
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.value, "best_step": self.step, "evaluations_since_best": self.evaluations_since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A model that waits in memory stays if it is older than the state."""
        self.value, self.step = float(state["best"]), int(state["best_step"])
        self.evaluations_since = int(state["evaluations_since_best"])
        if self._unwritten and self._unwritten.step > int(state["step"]):
            self._unwritten = None
