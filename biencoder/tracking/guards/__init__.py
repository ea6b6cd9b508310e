"""Guards read a run's records; one sentence says what is wrong, another what to try.

    guards = Guards(config, precision="bf16")
    for alert in guards.observe({"kind": "step", "step": 40, "epoch": 0, "train/loss": 812.0, ...}):
        print(alert.sign, alert.advice)

They see the lines of metrics.jsonl and nothing else: the same guards watch a run while it trains, are rebuilt from its
record when it goes on, and judge it afterwards (launcher/doctor.py). docs/troubles.md lists signs, thresholds and advice.

history         what the guards know of a run
signs           one function for each guard

Imports config and the modules of tracking. Hands out `Guards`, `Alert` and `GUARDS`.
"""

from dataclasses import dataclass

from rich.console import RenderableType

from biencoder.config.schema import Config
from biencoder.tracking.console import shown
from biencoder.tracking.guards.history import History
from biencoder.tracking.guards.signs import GUARDS
from biencoder.tracking.json_lines import Line

_QUIET = 20
"""A guard raises again only after this many records without its sign."""


@dataclass(frozen=True, slots=True)
class Alert:
    guard: str
    sign: str
    """What was seen, with the number and its threshold."""
    advice: str
    """What to try: which key, which value."""

    def lines(self, step: int) -> list[RenderableType]:
        """For the terminal: what was seen at this step, and what to try."""
        return [shown(f"! {self.guard} at step {step}: {self.sign}", "bold yellow"), f"  Try: {self.advice}."]


class Guards:
    def __init__(self, config: Config, *, precision: str) -> None:
        """Args: precision: fp32, bf16 or fp16."""
        self._history = History(config, precision=precision)
        self._quiet = dict.fromkeys(GUARDS, _QUIET)

    def observe(self, line: Line) -> list[Alert]:
        """Add one record and return the alerts that it raises. A guard raises once while its sign persists."""
        self._history.add(line)
        alerts = []
        for name, (kinds, look) in GUARDS.items():
            if line["kind"] not in kinds:
                continue
            symptom = look(self._history)
            if symptom and self._quiet[name] >= _QUIET:
                alerts.append(Alert(name, *symptom))
            self._quiet[name] = 0 if symptom else self._quiet[name] + 1
        return alerts


__all__ = ["GUARDS", "Alert", "Guards"]
