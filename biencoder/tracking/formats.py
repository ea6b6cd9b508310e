"""How values are written for people: shares, numbers, durations, moments, settings, long texts.

percent(0.7251)         # '72.5 %'
duration(5400)          # '90 min'
setting_text(3e-06)     # '3e-06'
"""

import math
import time
from typing import Any

from biencoder.tracking.numbers import from_json

_NOTHING = "–"
_ROOM = 35
"""Characters that say how much of a text is not shown."""


def percent(value: float | str | None) -> str:
    """A share as a metric's JSON value; a dash where it is missing or not finite."""
    share = from_json(value)
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%" if math.isfinite(share) else _NOTHING


def number(value: float | str | None) -> str:
    """A metric's JSON value with three digits; a dash where it is missing or not finite."""
    plain = from_json(value)
    return f"{plain:.3g}" if math.isfinite(plain) else _NOTHING


def duration(seconds: float) -> str:
    """In the largest unit of which there are at least two."""
    for size, unit, digits in ((86400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def clock(seconds: float) -> str:
    """A moment, given in seconds since 1970, in local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def setting_text(value: Any) -> str:
    """A setting as a configuration file writes it; numbers with six digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def shortened(text: str, limit: int) -> str:
    """A text of up to `limit` characters, or its beginning and how many more it has."""
    if len(text) <= limit:
        return text
    shown = text[: limit - _ROOM].rstrip()
    return f"{shown} … and {len(text) - len(shown):,} more characters"
