"""The run in Weights & Biases: one per run folder, however often the job is started, and offline where there is no login.

W&B sends in the background from a process of its own; a network that is slow or lost costs training nothing, and a server
that does not answer at the start turns the run into an offline one, which `wandb sync` uploads later.
"""

import os
import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from biencoder.config import TrackingConfig
from biencoder.health import Alert
from biencoder.tracking.names import CHECKPOINT, EVAL, MINE, STEP, Metrics, accuracy

_INIT_TIMEOUT_S = 20
_FINISH_TIMEOUT_S = 600


class WandbRun:
    def __init__(self, run: Any) -> None:
        self._run = run
        # Curves are drawn over what they happen at: steps for training, epochs for what is done once in an epoch.
        run.define_metric("step", hidden=True)
        run.define_metric("epoch", hidden=True)
        for names, axis in ((STEP, "step"), (CHECKPOINT, "step"), (MINE, "epoch"), (EVAL, "epoch")):
            for prefix in {name.split("/")[0] for name in names}:
                run.define_metric(f"{prefix}/*", step_metric=axis)
        for split in ("training", "validation", "test"):
            run.define_metric(accuracy(split, "embedding"), step_metric="epoch", summary="max,last")

    def log(self, metrics: Metrics, *, step: int, epoch: int) -> None:
        self._run.log({**metrics, "step": step, "epoch": epoch})

    def histogram(self, name: str, *, edges: list[float], counts: list[int], step: int, epoch: int) -> None:
        import wandb

        bars = wandb.Histogram(np_histogram=(np.array(counts), np.array(edges)))
        self._run.log({name: bars, "step": step, "epoch": epoch})

    def table(self, name: str, *, columns: list[str], rows: list[list[Any]], step: int, epoch: int) -> None:
        import wandb

        table = wandb.Table(columns=list(columns), data=list(rows))
        self._run.log({name: table, "step": step, "epoch": epoch})

    def alert(self, alert: Alert, *, step: int) -> None:
        self._run.alert(title=alert.guard, text=f"step {step}: {alert.sign}. {alert.advice}.", level="WARN")

    def model(self, folder: Path) -> None:
        """Keep an exported model as an artifact; its files are read where they are, not copied."""
        import wandb

        artifact = wandb.Artifact(f"model-{self._run.id}", type="model")
        artifact.add_dir(str(folder), policy="immutable")
        self._run.log_artifact(artifact, aliases=["best"])

    def finish(self) -> None:
        self._run.finish()


def start_wandb(config: TrackingConfig, run_dir: Path, settings: Mapping[str, Any]) -> WandbRun | None:
    """
    Args:
        settings: what the run's configuration shows; flat, no secrets.
    """
    mode = os.environ.get("WANDB_MODE") or config.wandb
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import wandb
    if mode == "auto":
        mode = "online" if wandb.login(prompt=False) else "offline"

    def start(how: str) -> Any:
        return wandb.init(
            project=config.project,
            name=run_dir.name,
            id=_run_id(run_dir),
            resume="allow",
            dir=run_dir,
            config=dict(settings),
            mode=how,  # type: ignore[arg-type]  # one of its literals
            settings=wandb.Settings(
                init_timeout=_INIT_TIMEOUT_S,
                finish_timeout=_FINISH_TIMEOUT_S,
                finish_timeout_raises=False,
                console="off",
                silent=True,
            ),
        )

    try:
        return WandbRun(start(mode))
    except (wandb.errors.CommError, wandb.errors.UsageError):
        wandb.teardown()  # the process that serves W&B would hold on to the run's id
        return WandbRun(start("offline"))


def _run_id(run_dir: Path) -> str:
    """Kept in the run's folder, so that every start finds it; under a sweep's agent, the one that the agent gives."""
    file = run_dir / "wandb-id"
    if not file.is_file():
        given = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
        file.write_text(given or secrets.token_hex(4))
    return file.read_text()
