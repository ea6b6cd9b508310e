"""A console that prints texts literally: no markup, no emoji codes, no control characters."""

import re

from rich.console import Console
from rich.text import Text

_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")


def plain_console(*, quiet: bool = False) -> Console:
    """A console without markup, emoji codes and highlighting."""
    return Console(quiet=quiet, highlight=False, markup=False, emoji=False)


def shown(text: str, style: str = "") -> Text:
    """A text from outside the program, safe to print. Control characters become U+FFFD; tabs and line ends stay."""
    return Text(_CONTROL.sub("\ufffd", text), style)
