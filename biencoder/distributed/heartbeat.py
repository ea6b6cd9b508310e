"""Heartbeats between ranks: when a rank fails or stops answering, all others name it and end within seconds.

A collective cannot tell why a peer is silent. Beside the collectives, a thread on every rank therefore keeps a counter
moving in a store that rank 0 serves; rank 0 looks at all counters, and everybody looks for a verdict. A verdict is set

- by a rank that fails, before it ends: its peers may wait in a collective that never returns;
- by rank 0, when a counter has not moved for `silence_s`, or for `SUSPICION_S` once some rank has reported that a
  collective broke: a killed process breaks its peers' collectives at once; the short wait finds out which rank it was.

A rank that reads a verdict ends its process at once, from the thread, as the main thread may hang. Only one rank prints.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from biencoder.errors import tell

INTERVAL_S = 1.0
SUSPICION_S = 5.0


class Store(Protocol):
    """The part of `torch.distributed.Store` that is used here."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...


@dataclass(frozen=True, slots=True)
class FailureReport:
    """The content of a verdict."""

    rank: int
    message: str
    exit_code: int
    said: bool
    """Whether the rank itself has already printed the message."""


class Watch:
    """One rank's side of the heartbeats; `doing(...)` tells the others what it is at."""

    def __init__(self, store: Store, *, rank: int, hosts: list[str], silence_s: float) -> None:
        self._store, self._rank, self._hosts, self._silence_s = store, rank, hosts, silence_s
        self._phase = "start"
        self.before_end: Callable[[int], None] = lambda exit_code: None
        """Called with the exit code before this process is ended by a verdict."""
        self._stop = threading.Event()
        self._answered = time.monotonic()
        if rank != 0:
            threading.Thread(target=self._guard, name="guard", daemon=True).start()
        self._thread = threading.Thread(target=self._loop, name="watch", daemon=True)
        self._thread.start()

    def doing(self, phase: str) -> None:
        """Set this rank's current work, which the message names if the rank stops answering."""
        self._phase = phase

    def fail(self, message: str, *, exit_code: int, said: bool) -> None:
        """Tell every other rank to end; returns after the verdict is visible to them."""
        verdict = {"rank": self._rank, "message": message, "exit_code": exit_code, "said": said}
        with contextlib.suppress(Exception):  # the store may be gone already: then so is rank 0, which ends the others
            if not self._store.check(["verdict"]):
                self._store.set("verdict", json.dumps(verdict))
            time.sleep(2 * INTERVAL_S if self._rank == 0 else 0)  # rank 0 serves the store: let the others read

    def wait_for_verdict(self) -> None:
        """After a broken collective: report it, and wait until rank 0 has found the rank that caused it."""
        with contextlib.suppress(Exception):
            self._store.set("suspicion", str(self._rank))
            time.sleep(SUSPICION_S + 3 * INTERVAL_S)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        beats, seen = 0, {rank: ("", time.monotonic()) for rank in range(len(self._hosts)) if rank != self._rank}
        while not self._stop.wait(INTERVAL_S):
            beats += 1
            try:
                self._store.set(f"beat/{self._rank}", json.dumps([beats, self._phase]))
                if self._rank == 0:
                    self._look_for_silence(seen)
                if self._store.check(["verdict"]):
                    verdict = FailureReport(**json.loads(self._store.get("verdict")))
                    if not (verdict.rank == self._rank and verdict.said):  # its own: the main thread is on its way out
                        self._end(verdict)
                self._answered = time.monotonic()
            except RuntimeError:  # every error of the store's client derives from it
                if self._stop.is_set():
                    return
                self._end(FailureReport(0, f"rank 0 ({self._hosts[0]}) has stopped answering", 1, said=self._rank != 1))

    def _guard(self) -> None:
        """End this process if rank 0's machine vanishes: then calls on the store never return."""
        while not self._stop.wait(INTERVAL_S):
            silent_s = time.monotonic() - self._answered
            if silent_s > self._silence_s:
                message = f"rank 0 ({self._hosts[0]}) has not answered rank {self._rank} for {silent_s:.0f} s"
                self._end(FailureReport(0, message, 1, said=self._rank != 1))

    def _look_for_silence(self, seen: dict[int, tuple[str, float]]) -> None:
        now = time.monotonic()
        limit_s = SUSPICION_S if self._store.check(["suspicion"]) else self._silence_s
        for rank, (last, since) in seen.items():
            beat = self._store.get(f"beat/{rank}").decode() if self._store.check([f"beat/{rank}"]) else ""
            if beat != last:
                seen[rank] = (beat, now)
            elif now - since > limit_s:
                phase = json.loads(last)[1] if last else "start"
                message = f"rank {rank} ({self._hosts[rank]}) has not answered for {now - since:.0f} s (last: {phase})"
                self._store.set("verdict", json.dumps({"rank": rank, "message": message, "exit_code": 1, "said": False}))
                return

    def _end(self, verdict: FailureReport) -> None:
        speaker = 0 if self._hosts and verdict.rank != 0 else 1
        if not verdict.said and self._rank == speaker:
            tell(f"error: {verdict.message}")
        if self._rank == 0:
            time.sleep(2 * INTERVAL_S)  # the store lives in this process: let the others read the verdict
        with contextlib.suppress(Exception):  # whatever it could not do, this process ends
            self.before_end(verdict.exit_code)
        os._exit(verdict.exit_code)
