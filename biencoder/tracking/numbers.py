"""Numbers as JSON holds them, which has neither NaN nor infinity: null, and a text that float() reads back."""

import math


def to_json(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def from_json(value: float | str | None) -> float:
    return math.nan if value is None else float(value)
