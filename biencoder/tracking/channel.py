"""Calls whose failure must not end the training: one warning, then no more calls, or another try at the next call.

Weights & Biases, the live report, the health guards, the terminal and the model card are each called through a `Channel`.

report = Channel("report.html", again=True)
report.run(live_report.refresh)      # the result, or None where it failed
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, TypeVar, cast

from biencoder.errors import tell

T = TypeVar("T")


class Channel:
    def __init__(
        self, name: str, *, again: bool = False, limit_s: float | None = None, on_loss: Callable[[], None] | None = None
    ) -> None:
        """
        Args:
            name: what the warning calls it.
            again: try again at the next call; otherwise no call follows the first failure.
            limit_s: seconds after which a call that has not returned counts as failed; None for no limit. With a limit the
                work runs in a thread of its own.
            on_loss: called once, when no more calls will follow.
        """
        self._name, self._again, self._limit_s, self._on_loss = name, again, limit_s, on_loss
        self._warned = self._lost = False

    def run(self, work: Callable[[], T], *, limit_s: float | None = None) -> T | None:
        """The result of `work`; None where it failed or the channel is lost.

        Args:
            limit_s: in place of the channel's own limit.
        """
        if self._lost:
            return None
        limit_s = limit_s or self._limit_s
        try:
            return within(limit_s, work) if limit_s else work()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - nothing that fails here may end the training
            self._failed(error)
            return None

    def _failed(self, error: BaseException) -> None:
        self._lost = not self._again
        if not self._warned:
            self._warned = True
            after = "it is tried again later" if self._again else "training goes on without it"
            warn(f"{self._name} failed ({reason(error)}); {after}")
        if self._lost and self._on_loss:
            with suppress(Exception):
                self._on_loss()


def protected(thing: T, channel: Channel) -> T:
    """The same object, with every method called through the channel; a method that fails returns None."""
    return cast(T, _Protected(thing, channel))


class _Protected:
    def __init__(self, thing: Any, channel: Channel) -> None:
        self._thing, self._channel = thing, channel

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._thing, name)
        if not callable(value):
            return value
        return lambda *args, **named: self._channel.run(lambda: value(*args, **named))


def within(limit_s: float, work: Callable[[], T]) -> T:
    """The result of `work`, done in a thread.

    Raises:
        TimeoutError: it took longer than `limit_s` seconds; the thread is left alone.
    """
    outcome: Future[T] = Future()

    def attempt() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            outcome.set_exception(error)

    threading.Thread(target=attempt, name="channel", daemon=True).start()
    if not wait([outcome], limit_s).done:
        raise TimeoutError(f"no answer within {limit_s:g} s")
    return outcome.result()


def warn(sentence: str) -> None:
    """Print one line on stderr; do nothing if stderr cannot be written."""
    tell(f"warning: {sentence}")


def reason(error: BaseException) -> str:
    """What an error says, on one line of at most 200 characters."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}"[:200].removesuffix(": ")
