"""What a ratio of two programs' times is worth: they run in turns, and each turn gives a ratio of its own."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Ratio(NamedTuple):
    """How many times as fast ours is, over the turns."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        turns = f"{self.lowest:.2f} to {self.highest:.2f}" if self.lowest < self.highest else "one turn"
        return f"{self.median:.2f}x ({turns})"


def ratio(peer_s: Sequence[float], ours_s: Sequence[float]) -> Ratio:
    """Of the seconds of each turn."""
    ratios = [peer / ours for peer, ours in zip(peer_s, ours_s, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
