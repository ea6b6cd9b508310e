"""A console that prints texts literally: no markup, no emoji codes, no control characters; and tables that fit it."""

import re
from itertools import zip_longest

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

_FOLDED = 12
"""Characters in which a text can be read that is folded into several lines."""
_ANY = 10_000
_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")


def plain_console(*, quiet: bool = False) -> Console:
    """A console without markup, emoji codes and highlighting."""
    return Console(quiet=quiet, highlight=False, markup=False, emoji=False)


def shown(text: str, style: str = "") -> Text:
    """A text from outside the program, safe to print. Control characters become U+FFFD; tabs and line ends stay."""
    return Text(_CONTROL.sub("\ufffd", text), style)


def fitted(thing: RenderableType, console: Console) -> RenderableType:
    """The same; but a table that would lose figures on this console becomes a list, a line for each cell."""
    if isinstance(thing, Group):
        return Group(*(fitted(part, console) for part in thing.renderables))
    if not isinstance(thing, Table):
        return thing
    gap = thing.padding[1] + thing.padding[3]
    least = sum(_least(column, console) + gap for column in thing.columns) - gap
    return thing if least <= console.width else as_list(thing)


def _least(column: Column, console: Console) -> int:
    """Characters that a column needs. Texts of one that may be folded need no more than a few."""
    options = console.options.update(width=_ANY)
    sizes = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
    if column.no_wrap:
        return max(*(size.maximum for size in sizes), column.min_width or 0)
    return min(max(*(size.minimum for size in sizes), column.min_width or 0), _FOLDED)


def as_list(table: Table) -> Group:
    """A table's rows one below the other, each cell after its column's heading."""
    headings = [" ".join(str(column.header).split()) for column in table.columns]
    parts: list[RenderableType] = [table.title] if table.title else []
    for cells in zip_longest(*(column.cells for column in table.columns), fillvalue=""):
        for number, (heading, cell) in enumerate(zip(headings, cells, strict=True)):
            text = cell if isinstance(cell, Text) else Text(str(cell))
            indent = "" if number == 0 else "  "
            parts.append(Text.assemble(indent, heading and f"{heading}: ", text, overflow="fold"))
    return Group(*parts, *([table.caption] if table.caption else []))
