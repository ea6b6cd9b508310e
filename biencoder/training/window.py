"""The steps since the last record of step metrics.

K: loss parts, R: ranks.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from biencoder.distributed.world import World
from biencoder.tracking.names import Metrics
from biencoder.training.engine.engine import StepReport
from biencoder.training.engine.stopwatch import Stopwatch
from biencoder.training.loss import LossParts
from biencoder.training.metrics import step_metrics


class Window:
    """Loss parts, summed on the device, and how long the steps took."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.clear()

    def clear(self) -> None:
        self.parts_K = torch.zeros(len(LossParts._fields), device=self._world.device)
        self.steps = 0
        """Steps that the sums are made of."""
        self.restart_clock()

    def restart_clock(self) -> None:
        self._start, self._timed_steps = time.perf_counter(), 0
        self.batches = Stopwatch(torch.device("cpu"))
        """Runs while the loop waits for a batch to be put together."""

    def count_step(self, parts_K: torch.Tensor | None) -> None:
        """Args: parts_K: None for a step that changed nothing: its time counts, its loss does not."""
        self._timed_steps += 1
        if parts_K is not None:
            self.parts_K += parts_K
            self.steps += 1

    def close(self, report: StepReport, *, batch_size: int) -> Metrics:
        """The means over steps and ranks; then a new window begins. Every rank takes part."""
        world = self._world
        steps = self._timed_steps or math.nan  # none, where the sums of a checkpoint are all there is to report
        data_s = self.batches.read()
        busy_R = torch.zeros(world.size)  # each rank fills in its own place; the mean over ranks puts them side by side
        busy_R[world.rank] = world.size * (data_s + report.forward_s)
        own = torch.cat([self.parts_K / (self.steps or math.nan), torch.tensor([data_s, *busy_R], device=world.device)])
        means, K = world.all_reduce_mean(own).tolist(), len(self.parts_K)
        metrics = step_metrics(
            means[:K],
            report,
            steps=steps,
            seconds=time.perf_counter() - self._start,
            triplets=steps * batch_size,
            data_s=means[K],
            busy_s=means[K + 1 :],
        )
        self.clear()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The sums of all ranks, on rank 0. Every rank takes part."""
        sums = self._world.gather(self.parts_K[None])
        return {"window_steps": self.steps} | ({"window": torch.cat(sums).tolist()} if sums else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that rank 0 has; the others have its numbers only. Every rank takes part."""
        self.clear()
        self.steps = int(state["window_steps"])
        sums_RK = torch.as_tensor(self._world.on_main(lambda: state["window"]))  # earlier versions kept a tensor
        ranks = len(sums_RK)
        # A run of an earlier version has fewer parts: the others are not known for this window.
        sums_RK = torch.nn.functional.pad(sums_RK, (0, len(self.parts_K) - sums_RK.shape[1]), value=math.nan)
        # On another number of ranks the sums are shared out evenly: their mean over the ranks is what gets logged.
        own_K = sums_RK[self._world.rank] if ranks == self._world.size else sums_RK.mean(0)
        self.parts_K = own_K.to(self._world.device)
