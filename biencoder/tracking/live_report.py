"""Keeps report.html up to date while the run trains. A separate process writes it; training never waits for it."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from biencoder.config.paths import typed

_EVERY_S = 180.0
_LAST_TAKES_S = 120.0


class LiveReport:
    """Refreshes at most every three minutes, as one refresh takes two or three seconds of a core, and at the end.

    Raises, in `refresh` and `finish`: OSError, psutil.Error, subprocess.TimeoutExpired, or RuntimeError where the writer
    before this one has failed.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._writer: subprocess.Popen[bytes] | None = None
        self._due = 0.0

    def refresh(self) -> None:
        """Start the writer, if three minutes have passed and the previous writer has finished."""
        if time.monotonic() < self._due or (self._writer and self._writer.poll() is None):
            return
        self._due = time.monotonic() + _EVERY_S
        try:
            self._check()
        finally:
            self._start()

    def finish(self) -> None:
        """Write the report of the whole record, and wait for it."""
        if self._writer:
            self._writer.wait(_LAST_TAKES_S)
        self._start()
        if self._writer:
            self._writer.wait(_LAST_TAKES_S)
        self._check()

    def _check(self) -> None:
        if self._writer and self._writer.poll():
            raise RuntimeError(f"exit code {self._writer.returncode}; {' '.join(typed('report'))} {self._run_dir} says why")

    def _start(self) -> None:
        self._writer = None
        command = [sys.executable, "-m", "launcher.report", str(self._run_dir)]
        self._writer = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        psutil.Process(self._writer.pid).nice(10)
