"""Which column of a table holds what: told by the names in use, or by the key `data.columns`.

    names = ColumnNames.parse("counter=body")
    names.roles(["query", "body", "url"], Path("a.csv")).of    {"point": "query", "counter": "body"}

The program's own names win over all others. Two readings of one table are refused.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from biencoder.errors import ConfigError, DataError

_NAMES_OF_PAIRS = {
    "point": ("counter",),
    "anchor": ("positive", "positives"),
    "query": ("positive", "positives", "pos", "answer"),
    "question": ("answer", "context"),
    "sentence1": ("sentence2",),
}
"""The names of the point's column, and the names that the counter's column has beside it."""
_NAMES_OF_COUNTERS = tuple(dict.fromkeys(name for names in _NAMES_OF_PAIRS.values() for name in names))
_NEGATIVES = re.compile(r"neg|negatives?|negative_\d+")
_VERDICTS = ("label", "score")
"""Columns that may say that the texts of a row do not belong together."""
_OPTIONAL = ("domain", "topic", "stance", "id", "split")
ROLES = ("point", "counter", "text", *_OPTIONAL)
_ONE_TEXT = re.compile(r"point|anchor|query|question|sentence[12]|counter|positive|answer|context|text|negative(_\d+)?")


@dataclass(frozen=True, slots=True)
class Roles:
    """How one table is read."""

    of: dict[str, str]
    """Role → column: point and counter, or text, and the optional roles that the table has."""
    negatives: tuple[str, ...]
    """Columns of given negatives."""
    left_out: tuple[str, ...]
    """All other columns."""


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The names that columns have in the user's tables."""

    given: Mapping[str, str] = field(default_factory=dict)
    """Role → column, as `data.columns` says."""

    @classmethod
    def parse(cls, text: str) -> "ColumnNames":
        """
        Args:
            text: the value of data.columns, such as `point=title,counter=body`.

        Raises:
            ConfigError: it is not written like this, or names a role or a column twice.
        """
        given: dict[str, str] = {}
        for item in text.split(",") if text.strip() else []:
            role, _, column = (part.strip() for part in item.partition("="))
            if role not in ROLES or not column:
                raise ConfigError(
                    f"data.columns is {text!r}, expected role=column, separated by commas, such as "
                    f"point=title,counter=body; the roles are {', '.join(ROLES)}"
                )
            if role in given or column in given.values():
                twice = role if role in given else column
                raise ConfigError(f"data.columns is {text!r}, which names {twice} twice; name each role and column once")
            given[role] = column
        return cls(given)

    def knows(self, column: str) -> bool:
        """Whether a table's cells in this column are read."""
        return (
            column in ROLES
            or column in _NAMES_OF_PAIRS
            or column in _NAMES_OF_COUNTERS
            or column in self.given.values()
            or _NEGATIVES.fullmatch(column) is not None
        )

    def roles(self, columns: Sequence[str], path: Path) -> Roles:
        """How a table of pairs is read.

        Raises:
            DataError: the columns of points and counters are missing or ambiguous; the message names the file.
        """
        self._check_given(columns, path)
        pairs = self._pairs(columns)
        if not pairs:
            raise DataError(self._lack(columns, path))
        if len(pairs) > 1:
            readings = " or ".join(f"point={point},counter={counter}" for point, counter in pairs)
            raise DataError(f"{path} can be read as {readings}; choose one of them with data.columns")
        (point, counter), verdicts = pairs[0], [column for column in columns if column in _VERDICTS]
        if verdicts and (point, counter) != ("point", "counter") and not self.given:
            raise DataError(
                f"{path} has the column {verdicts[0]} beside {point} and {counter}: perhaps not every row is a right pair; "
                f"keep the right ones, and drop that column or set data.columns to point={point},counter={counter}"
            )
        return self._completed({"point": point, "counter": counter}, columns)

    def texts_alone(self, columns: Sequence[str], path: Path) -> Roles | None:
        """How a table that holds texts and no pairs is read; None for any other table.

        Raises:
            DataError: data.columns names a column that the table lacks.
        """
        text = self.given.get("text", "text")
        if text not in columns or ("text" not in self.given and self._pairs(columns)):
            return None
        self._check_given(columns, path)
        return self._completed({"text": text}, columns)

    def _check_given(self, columns: Sequence[str], path: Path) -> None:
        for role, column in self.given.items():
            if column not in columns:
                raise DataError(
                    f"data.columns says that the column of {role} is {column}, but {path} has no such column; "
                    f"{_has(columns)}"
                )

    def _pairs(self, columns: Sequence[str]) -> list[tuple[str, str]]:
        """Every way to read (point, counter), or the program's own names alone."""
        free = [column for column in columns if column not in self.given.values()]
        point, counter = self.given.get("point"), self.given.get("counter")
        pairs = []
        for name in [point] if point else [name for name in _NAMES_OF_PAIRS if name in free]:
            beside = _NAMES_OF_COUNTERS if point else _NAMES_OF_PAIRS[name]
            pairs += [(name, other) for other in ([counter] if counter else beside) if other in free or other == counter]
        own = (point or "point", counter or "counter")
        return [own] if own in pairs else pairs

    def _lack(self, columns: Sequence[str], path: Path) -> str:
        missing = [role for role in ("point", "counter") if role not in columns and role not in self.given]
        advice = "; say which columns hold the texts with data.columns, such as point=title,counter=body" if columns else ""
        lacking = "columns point and counter" if len(missing) == 2 else f"column {(missing or ['counter'])[0]}"
        return f"{path} lacks the {lacking}; {_has(columns)}{advice}"

    def _completed(self, texts: dict[str, str], columns: Sequence[str]) -> Roles:
        """With the optional roles."""
        taken = {*self.given.values(), *texts.values()}
        own = {role: role for role in _OPTIONAL if role in columns and role not in taken}
        of = texts | own | {role: column for role, column in self.given.items() if role in _OPTIONAL}
        rest = [column for column in columns if column not in of.values()]
        negatives = tuple(column for column in rest if _NEGATIVES.fullmatch(column))
        return Roles(of, negatives, tuple(column for column in rest if column not in negatives))


def may_hold_lists(column: str) -> bool:
    """Whether a cell of this column may be a list of texts: not in columns whose name is that of one text."""
    return _ONE_TEXT.fullmatch(column) is None


def listed(columns: Iterable[str]) -> str:
    """The columns' names for a message, in one line."""
    return " ".join(", ".join(columns).split())[:200]


def _has(columns: Sequence[str]) -> str:
    return f"it has {listed(columns)}" if columns else "it is empty"
