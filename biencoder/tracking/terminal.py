"""Prints what it is given on rank 0: texts, tables, and a progress bar (plain lines where there is no terminal)."""

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from biencoder.tracking.console import plain_console, shown


class Terminal:
    def __init__(self, *, is_main: bool) -> None:
        self.console = plain_console(quiet=not is_main)
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        self.console.print(shown(text), soft_wrap=True)

    def show(self, *things: RenderableType) -> None:
        """Tables, and texts: a text is one line, however long."""
        for thing in things:
            if isinstance(thing, str):
                self.say(thing)
            else:
                self.console.print(thing, soft_wrap=isinstance(thing, Text))

    def start(self, work: str, total: int) -> None:
        """Start the progress bar of a piece of work."""
        if not self.console.is_terminal or self.console.quiet:
            return
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._progress.add_task(work, total=total, note="")
        self._progress.start()

    def advance(self, count: int = 1) -> None:
        if self._progress:
            self._progress.advance(self._progress.task_ids[0], count)

    def note(self, heading: str, text: str) -> None:
        """Show the text beside the progress bar; where there is none, as a line after its heading."""
        if self._progress:
            self._progress.update(self._progress.task_ids[0], note=text)
        else:
            self.say(f"{heading}  {text}")

    def end(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None
