"""The run in Weights & Biases: one per run folder, however often the job is started, and offline where there is no login.

W&B sends in the background from a process of its own; a network that is slow or lost costs training nothing, and a server
that fails at the start turns the run into an offline one, which `wandb sync` uploads later. The run logs the lines
of metrics.jsonl. After a resume it logs only the lines that it does not hold yet: repeated steps appear once, and lines
that were lost when the process of W&B was killed are logged again.
"""

import json
import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from biencoder import environment
from biencoder.config.schema import SPLITS, TrackingConfig
from biencoder.tracking.channel import Channel, reason, warn, within
from biencoder.tracking.names import CHECKPOINT, EVAL, MINE, STEP, accuracy
from biencoder.tracking.numbers import from_json
from biencoder.tracking.wandb_log import WandbContents, key_of, read_wandb_contents
from biencoder.tracking.whole_file import replace_file

CALL_LIMIT_S = 60.0
"""Seconds that a call may take before W&B is given up."""
FINISH_LIMIT_S = 660.0
START_LIMIT_S = 45.0
_INIT_TIMEOUT_S = 8
_FINISH_TIMEOUT_S = 600
_LEAVE_S = 10.0
_FLUSH_S = 1.0
"""Seconds after which W&B writes records to its own log; newer records are lost when it is killed."""
_ID = re.compile(r"[\w.-]{1,128}", re.ASCII)


class WandbRun:
    def __init__(self, run: Any, held: WandbContents, settings: Mapping[str, Any]) -> None:
        """Args: held: what earlier starts have logged; settings: of this start."""
        self._run, self._held, self._settings = run, held, settings
        # Curves are drawn over what they happen at: steps for training, epochs for what is done once in an epoch.
        run.define_metric("step", hidden=True)
        run.define_metric("epoch", hidden=True)
        for names, axis in ((STEP, "step"), (CHECKPOINT, "step"), (MINE, "epoch"), (EVAL, "epoch")):
            for prefix in {name.split("/")[0] for name in names}:
                run.define_metric(f"{prefix}/*", step_metric=axis)
        for split in SPLITS:
            run.define_metric(accuracy(split, "embedding"), step_metric="epoch", summary="max,last")

    def follow(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Log the lines that a start resumes from, unless the run holds them already.

        Args:
            lines: of metrics.jsonl up to the checkpoint; empty for a new beginning. If that has other settings than before,
                nothing counts as held.
        """
        if not lines and any(self._held.settings.get(key) != _plain(value) for key, value in self._settings.items()):
            self.repeat()
        for line in lines:
            self.give(line)

    def repeat(self) -> None:
        """Log everything from now on, even at steps that the run holds: training went back and now differs."""
        self._held.records.clear()

    def give(self, line: Mapping[str, Any]) -> None:
        """Log a line of metrics.jsonl, unless an earlier start has logged it."""
        import wandb

        key = key_of(line)
        if key is None or key in self._held.records:
            return
        at = {"step": line["step"], "epoch": line["epoch"]}
        match line["kind"]:
            case "event":
                text = f"step {line['step']}: {line['detail']}. {line['advice']}."
                self._run.alert(title=line["guard"], text=text, level="WARN")
            case "histogram":
                bars = wandb.Histogram(np_histogram=(np.array(line["counts"]), np.array(line["edges"])))
                self._run.log({line["name"]: bars, **at})
            case "table":
                # Mixed types: an infinite number is a text in metrics.jsonl.
                table = wandb.Table(columns=line["columns"], data=line["rows"], allow_mixed_types=True)
                self._run.log({line["name"]: table, **at})
            case _:
                self._run.log({name: from_json(value) for name, value in line.items() if "/" in name} | at)

    def finish(self, model: Path | None = None) -> None:
        """Args: model: the finished run's exported model; its files are read where they are, not copied."""
        if model:
            Channel("the model in Weights & Biases").run(lambda: self._keep(model))
        self._run.finish()

    def abandon(self) -> None:
        """End W&B after it has failed and keep what it holds. Afterwards nothing of it delays the end of this process."""
        try:
            within(_LEAVE_S, self._run.finish)
        except Exception:  # noqa: BLE001 - it has failed before
            end_service()

    def _keep(self, folder: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"model-{self._run.id}", type="model")
        artifact.add_dir(str(folder), policy="immutable")
        self._run.log_artifact(artifact, aliases=["best"])


def start_wandb(
    config: TrackingConfig, run_dir: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]
) -> WandbRun | None:
    """
    Args:
        settings: of the run, by their keys.
        facts: what its configuration shows beside them. Neither holds secrets.
    """
    mode = environment.wandb_mode() or config.wandb
    if mode == "disabled":
        return None
    environment.set_default("WANDB_SILENT", "true")
    environment.set_default("WANDB_ERROR_REPORTING", "false")  # it would report each failure of a server, on stderr too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import wandb

    run_id = _run_id(run_dir)
    held = read_wandb_contents(run_dir, run_id)

    def start(mode: str) -> WandbRun:
        shown = {**settings, **facts}
        return WandbRun(_init(config.project, run_dir, run_id, shown, mode=mode), held, settings)

    if mode not in ("auto", "online"):
        return start(mode)
    try:
        # Not verified here, as a lost network takes long to say so. Without a login W&B would ask for one.
        if wandb.login(prompt=False, verify=False):
            return start("online")
        if mode == "online":
            warn("there is no login to Weights & Biases: the run is an offline one, for `wandb sync`")
    except Exception as error:  # noqa: BLE001 - servers, proxies and keys fail in more ways than W&B names
        end_service()  # the process that serves W&B would hold on to the run's id
        warn(f"Weights & Biases failed ({reason(error)}); the run is an offline one, for `wandb sync`")
    return start("offline")


def _init(project: str, run_dir: Path, run_id: str, config: Mapping[str, Any], *, mode: str) -> Any:
    """W&B's own run. Args: config: what it shows of the run; mode: online or offline."""
    import wandb

    return wandb.init(
        project=project,
        name=run_dir.name,
        id=run_id,
        resume="allow",
        dir=run_dir,
        config=dict(config),
        mode=mode,  # type: ignore[arg-type]  # one of its literals
        settings=wandb.Settings(
            init_timeout=_INIT_TIMEOUT_S,
            finish_timeout=_FINISH_TIMEOUT_S,
            finish_timeout_raises=False,
            console="off",
            silent=True,
            x_transaction_log_flush_interval=_FLUSH_S,
        ),
    )


def end_service() -> None:
    """End the process that serves W&B to this one, whatever it is doing."""
    import wandb

    with suppress(Exception):
        within(_LEAVE_S / 2, wandb.teardown)
    with suppress(psutil.Error):
        for child in psutil.Process().children():
            if child.name() == "wandb-core":
                child.kill()


def _run_id(run_dir: Path) -> str:
    """The id in the run's folder, which every start reads. A new one comes from a W&B sweep agent, or is random."""
    file = run_dir / "wandb-id"
    held = file.read_bytes().decode(errors="replace").strip() if file.is_file() else None
    if held and _ID.fullmatch(held):
        return held
    if held is not None:
        warn(f"{file} holds no run id of Weights & Biases; a new run begins there")
    made = environment.wandb_sweep_run_id() or secrets.token_hex(4)
    replace_file(file, made)
    return made


def _plain(value: Any) -> Any:
    """The value after a round trip through JSON."""
    return json.loads(json.dumps(value))
