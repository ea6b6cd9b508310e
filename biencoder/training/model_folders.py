"""The models of a run: model/last, and model/best, which stays in memory while it cannot be written."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from biencoder.distributed.world import World
from biencoder.errors import ModelError, tell
from biencoder.model.whole_folder import put_back, set_aside
from biencoder.tracking.names import Metrics
from biencoder.training.engine.engine import Engine

Weights = Mapping[str, torch.Tensor]


class ModelFolders:
    def __init__(
        self, folder: Path, world: World, engine: Engine, write: Callable[[Path, Weights, Metrics, int], None]
    ) -> None:
        """
        Args:
            folder: of the run.
            write: writes a model into a folder, given its weights in fp32, the metrics that its card quotes, and its step;
                raises a ModelError if it cannot, and leaves the old model.
        """
        self._best_folder, self._last_folder = folder / "model" / "best", folder / "model" / "last"
        self._world, self._engine, self._write = world, engine, write
        self._held: tuple[Weights, Metrics, int] | None = None

    def hold(self, metrics: Metrics) -> None:
        """Copy the model into rank 0's memory, for `write_best`. Every rank takes part."""
        weights = self._engine.weights()
        self._held = None if weights is None else (weights, metrics, self._engine.steps)

    def write_best(self, *, aside: bool, last_chance: bool) -> bool:
        """Write the held model as model/best. Returns whether it was written; if not, it is kept. Every rank takes part.

        Args:
            aside: keep the previous model aside, for `put_back`.

        Raises:
            PeerError: it cannot be written, and this was its last chance.
        """

        def write() -> bool:
            assert self._held is not None
            try:
                if aside:
                    set_aside(self._best_folder)
                self._write(self._best_folder, *self._held)
            except (ModelError, OSError) as error:
                if aside:
                    put_back(self._best_folder)
                if last_chance:
                    raise ModelError(f"{error}; make room, and run the same command again") from None
                tell(f"warning: {error}; the best model is kept in memory and tried again at the next evaluation")
                return False
            self._held = None
            return True

        return self._world.on_main(write)

    def write_last(self, metrics: Metrics) -> None:
        """Write the model as model/last. Every rank takes part.

        Raises:
            PeerError: it cannot be written; the same command, started again, only does that.
        """
        weights = self._engine.weights() or {}

        def write() -> None:
            try:
                self._write(self._last_folder, weights, metrics, self._engine.steps)
            except ModelError as error:
                raise ModelError(f"{error}; make room, and run the same command again") from None

        self._world.on_main(write)
