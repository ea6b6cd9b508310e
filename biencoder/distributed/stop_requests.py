"""Stop requests: SIGTERM or SIGUSR1 to any rank saves a checkpoint and ends all ranks, so that the run can go on later.

While steps are made, all ranks agree on the step after which they save or stop; the vote travels beside the next step, so
it costs no time. At other times (mining, evaluation) there is nothing to save that the last checkpoint does not hold, and
the run ends at once. The signal is received by a thread, because the main thread may be deep inside a search.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Self

from biencoder.distributed.world import World
from biencoder.errors import ExitCode, tell

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class AfterStep(IntEnum):
    """What all ranks do after a step; of several wishes the highest counts."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class StopRequests:
    """Listens for signals from its creation to `close`, or to the end of its `with` block."""

    def __init__(self, world: World, *, before_exit: Callable[[int], None]) -> None:
        """Args: before_exit: called with the exit code before this process ends at once."""
        self._world, self._before_exit = world, before_exit
        self._received: str | None = None
        self._stepping = self._is_closed = False
        self._vote: Callable[[], int] | None = None
        self._wake, self._sleep = socket.socketpair()
        self._wake.setblocking(False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """In the block, a request waits for `agreed`; outside, it ends the run at once. If the block raises, requests still
        wait. Every rank takes part in leaving the block."""
        self._stepping = True
        yield
        self._world.together(lambda: None)  # without it a rank could end rank 0 before that has handed in its checkpoint
        self._stepping = False
        if self._received:
            self._end_at_once()

    def agreed(self, *, save: bool) -> AfterStep:
        """The highest wish of all ranks in the last call, the same on every rank. Every rank takes part.

        Args:
            save: whether this rank wishes for a checkpoint.
        """
        answer = AfterStep(self._vote() if self._vote else 0)
        wish = AfterStep.STOP if self._received else AfterStep.SAVE if save else AfterStep.GO_ON
        self._vote = self._world.all_reduce_max_async(wish)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._vote = None  # after an error another rank may not take part in it
        self.close()

    def close(self) -> None:
        """Restore the previous signal handlers. Every rank takes part."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._vote:
            self._vote()  # leave no collective behind
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._wake.close()
        self._thread.join()
        self._sleep.close()

    def _listen(self) -> None:
        while numbers := self._sleep.recv(16):
            asked = [number for number in numbers if number in SIGNALS]
            if asked:
                self._received = signal.Signals(asked[0]).name
                if not self._stepping:
                    self._end_at_once()

    def _end_at_once(self) -> None:
        host = self._world.hosts[self._world.rank]
        message = (
            f"{self._received} on rank {self._world.rank} ({host}); started again, the run goes on from its last checkpoint"
        )
        tell(f"stopped: {message}")
        self._world.end_all(message, exit_code=ExitCode.STOPPED)
        with suppress(Exception):  # whatever it could not do, this process ends
            self._before_exit(ExitCode.STOPPED)
        os._exit(ExitCode.STOPPED)
