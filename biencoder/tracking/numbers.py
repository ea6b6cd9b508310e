"""Numbers in JSON, which has neither NaN nor infinity: NaN is null, infinity is a text that float() reads."""

import math


def to_json(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def from_json(value: float | str | None) -> float:
    return math.nan if value is None else float(value)
