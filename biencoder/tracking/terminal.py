"""Prints what it is given on rank 0: texts, tables, and the progress of a piece of work: a bar on a terminal, a line every
half minute in a file."""

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.text import Text

from biencoder.tracking.console import fitted, plain_console, shown

_EVERY_S = 30.0
"""Between two lines of progress."""
_SPEED_OVER_S = 300.0
"""The speed that the time left follows from is that of so many seconds."""
_PATIENCE_S = 1.0
"""For a line that is being written: an output that nobody reads must not hold up the end."""
_WIDE = 80
"""Columns that have room for a bar."""


class Terminal:
    def __init__(self, *, is_main: bool) -> None:
        self.console = plain_console(quiet=not is_main)
        self._progress: Progress | None = None
        self._ended = threading.Event()
        self._speaker: threading.Thread | None = None
        self._noted_at = 0.0

    def say(self, text: str) -> None:
        self.console.print(shown(text), soft_wrap=True)

    def show(self, *things: RenderableType) -> None:
        """Tables, and texts: a text is one line, however long."""
        for thing in things:
            if isinstance(thing, str):
                self.say(thing)
            else:
                self.console.print(fitted(thing, self.console), soft_wrap=isinstance(thing, Text))

    @contextmanager
    def work(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Show the progress of a piece of work; gives the function that counts what is done."""
        self.start(name, total)
        try:
            yield self.advance
        finally:
            self.end()

    def start(self, work: str, total: int | None = None) -> None:
        """Begin to show the progress of a piece of work, until `end`.

        Args:
            total: what `advance` will have counted in the end; None if that is not known.
        """
        if self.console.quiet:
            return
        self._progress = Progress(
            *([BarColumn(bar_width=20)] if self.console.width >= _WIDE else []),
            _Line(),
            console=self.console,
            transient=True,
            disable=not self.console.is_interactive,
            speed_estimate_period=_SPEED_OVER_S,
        )
        self._progress.add_task(work, total=total, note="")
        if self.console.is_interactive:
            self._progress.start()
            atexit.register(self.end)  # an error would leave the terminal without its cursor
        else:
            self._ended = threading.Event()
            self._speaker = threading.Thread(
                target=self._say_progress, args=(self._progress, self._ended), name="progress", daemon=True
            )
            self._speaker.start()

    def advance(self, count: int = 1) -> None:
        if self._progress:
            self._progress.advance(self._progress.task_ids[0], count)

    def note(self, heading: str, text: str) -> None:
        """Show the text beside the progress bar; where there is none, as a line after its heading."""
        if self._progress and not self._progress.disable:
            self._progress.update(self._progress.task_ids[0], note=f"  {text}")
        else:
            left = time_left(self._progress.tasks[0]) if self._progress else ""
            self.say(f"{heading}  {text}{left and f'  {left}'}")
            self._noted_at = time.monotonic()

    def end(self) -> None:
        if self._progress:
            self._ended.set()
            if self._speaker:
                self._speaker.join(_PATIENCE_S)  # a line that it has begun stands before what comes next
            self._progress.stop()
            self._progress = None
            atexit.unregister(self.end)

    def _say_progress(self, progress: Progress, ended: threading.Event) -> None:
        while not ended.wait(_EVERY_S):
            if time.monotonic() - self._noted_at >= _EVERY_S:
                with suppress(OSError, ValueError):  # whoever else writes there says so
                    self.say(progress_line(progress.tasks[0]))


class _Line(ProgressColumn):
    """Beside the bar what a file would get as a line. It may take several lines of a narrow terminal."""

    def render(self, task: Task) -> Text:
        return shown(f"{progress_line(task)}{task.fields['note']}")


def progress_line(task: Task) -> str:
    """What is done of a piece of work, and how long the rest will take; where nothing counts it, how long it has taken."""
    if not (task.total and task.completed):
        return f"{task.description}  {duration(task.elapsed or 0)} so far"
    left = time_left(task)
    return f"{task.description}  {task.completed:,.0f} of {task.total:,.0f}{left and f', {left}'}"


def time_left(task: Task) -> str:
    """As the speed of the last minutes has it; empty where that is not known yet."""
    return "" if task.time_remaining is None else f"{duration(task.time_remaining)} left"


def duration(seconds: float) -> str:
    """As a person would say it: 40 s, 3 min, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
