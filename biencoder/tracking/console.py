"""Texts in the terminal as they are: brackets are no markup, colons no emoji, and control characters control nothing."""

import re

from rich.console import Console
from rich.text import Text

_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")


def plain_console(*, quiet: bool = False) -> Console:
    """A console that takes nothing for markup."""
    return Console(quiet=quiet, highlight=False, markup=False, emoji=False)


def shown(text: str, style: str = "") -> Text:
    """A text that is not the program's own, for a console. Control characters become U+FFFD; tabs and line ends stay."""
    return Text(_CONTROL.sub("\ufffd", text), style)
