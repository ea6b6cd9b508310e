"""What the guards know of a run: its settings, its latest records, the losses of its epochs."""

import math
import statistics
from collections import defaultdict, deque

from biencoder.config.schema import Config
from biencoder.tracking.formats import setting_text
from biencoder.tracking.json_lines import Line
from biencoder.tracking.numbers import from_json

_LONGEST = 40


class History:
    def __init__(self, config: Config, *, precision: str) -> None:
        self.config, self.precision = config, precision
        self.latest: Line = {}
        self.steps: deque[Line] = deque(maxlen=_LONGEST)
        self.mines: list[Line] = []
        self.evals: list[Line] = []
        self.skipped: deque[int] = deque(maxlen=_LONGEST)
        """Steps whose gradient was not finite."""
        self.first_loss = math.nan
        self._losses: dict[int, list[float]] = defaultdict(list)

    def add(self, line: Line) -> None:
        """Take in a line of metrics.jsonl."""
        self.latest = line
        match line["kind"]:
            case "step":
                self.steps.append(line)
                loss = from_json(line["train/loss"])
                if math.isfinite(loss):
                    self._losses[line["epoch"]].append(loss)
                    self.first_loss = loss if math.isnan(self.first_loss) else self.first_loss
            case "mine":
                self.mines.append(line)
            case "eval":
                self.evals.append(line)
            case "event" if line["event"] == "skipped step":
                self.skipped.append(line["step"])

    def now(self, name: str) -> float:
        """A metric of the latest record; NaN if it has none."""
        return from_json(self.latest.get(name))

    def last(self, name: str, count: int) -> list[float]:
        """A step metric's last values, oldest first; empty if there are fewer than `count`."""
        values = [from_json(line.get(name)) for line in list(self.steps)[-count:]]
        return values if len(values) == count else []

    def epoch_losses(self) -> list[float]:
        """Mean loss of each epoch that is over."""
        return [statistics.fmean(losses) for epoch, losses in self._losses.items() if epoch < self.latest["epoch"]]

    # What to try, as texts: `train.lr 3e-07 (now 3e-06)`; empty where there is nothing to change.

    def setting(self, key: str, value: float | str) -> str:
        now = self.config.flat()[key]
        return "" if value == now else f"{key} {setting_text(value)} (now {setting_text(now)})"

    def lower_lr(self, factor: float) -> str:
        return self.setting("train.lr", float(f"{self.config.train.lr / factor:.2g}"))

    def random_rate(self, change: float) -> str:
        rate = self.config.mining.random_rate + change
        return self.setting("mining.random_rate", min(1.0, max(0.0, round(rate, 6))))


def any_of(*tries: str) -> str:
    """`a, b, or c`, without the empty ones."""
    *first, last = [text for text in tries if text]
    return f"{', '.join(first)}{',' * (len(first) > 1)} or {last}" if first else last
