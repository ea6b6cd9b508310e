"""Ends a rank when its launcher is gone: torchrun, deepspeed, a Slurm step, a sweep.

A launcher that is killed, for example for lack of memory, cannot end its ranks. They would go on beside the ranks of the
next start. A shell does not count as a launcher: a run under `nohup` goes on without it.
"""

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from biencoder import environment
from biencoder.errors import tell

_PROGRAMS = {"torchrun", "deepspeed", "accelerate", "sweep.py", "biencoder-sweep"}
_MODULES = {
    "torch.distributed.run",
    "torch.distributed.launch",
    "deepspeed.launcher.runner",
    "deepspeed.launcher.launch",
    "launcher.sweep",
}
_INTERVAL_S = 1.0


def end_with_launcher() -> None:
    """From now on, end this process within seconds once its launcher is gone; does nothing where nothing launched it."""
    launchers = find_launchers()
    if launchers:
        threading.Thread(target=_watch, args=(launchers,), name="launcher", daemon=True).start()


def find_launchers() -> list[psutil.Process]:
    """The processes from this one's parent up to the topmost launcher: `deepspeed` starts a second one on each node."""
    with suppress(psutil.Error):
        parents: list[psutil.Process] = psutil.Process().parents()
        known = [number for number, parent in enumerate(parents) if _is_launcher(parent)]
        if known:
            return parents[: known[-1] + 1]
        if environment.is_under_torchrun():  # torchrun's agent within a program of somebody else
            return parents[:1]
    return []


def program(command: Sequence[str]) -> str:
    """What a command line runs: a script's or program's name, or the module after `python -m`."""
    first, *rest = command or [""]
    if not os.path.basename(first).startswith("python"):
        return os.path.basename(first).split(":")[0]
    while rest:
        word = rest.pop(0)
        if word == "-m":
            return rest[0] if rest else ""
        if word in ("-X", "-W"):
            rest = rest[1:]
        elif not word.startswith("-"):
            return os.path.basename(word)
    return ""


def _is_launcher(process: psutil.Process) -> bool:
    try:
        name = program(process.cmdline())
    except psutil.Error:
        return False
    of_slurm = name == "slurmstepd" and environment.has_rank()  # not a shell's plain `python` inside of a step
    return name in _PROGRAMS or name in _MODULES or of_slurm


def _watch(launchers: Sequence[psutil.Process]) -> None:
    while os.getppid() == launchers[0].pid and not any(map(_is_gone, launchers)):
        time.sleep(_INTERVAL_S)
    if environment.is_first_on_machine():
        speaker = threading.Thread(target=_say, daemon=True)  # a pipe that nobody reads must not hold up the end
        speaker.start()
        speaker.join(_INTERVAL_S)
    os._exit(1)


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _say() -> None:
    with suppress(OSError, ValueError):
        message = "the launcher of this run is gone; started again, the same command goes on from its last checkpoint"
        tell(f"error: {message}")
