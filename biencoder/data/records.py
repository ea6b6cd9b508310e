"""Records as the readers make them, the pairs they form, and findings: the oddities of a corpus."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Role = Literal["point", "counter", "negative"]
_Place = tuple[int, str, str, str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """One argument: a point, a counter, or a given negative. In a table those with the same number form a pair, in the
    ArguAna layout those with the same (domain, topic, utterance_id, stance)."""

    domain: str
    topic: str
    stance: str
    utterance_id: str
    kind: Role
    text: str
    source: str
    """The file that it was read from, for messages: a path, or `file:line`."""
    row: int = 0
    """The number of its pair in a table, counted from 1; 0 in the ArguAna layout."""

    @property
    def name(self) -> tuple[str, str, str, str]:
        """The corpus's name for it. Several rows of a table may have the same name."""
        return (self.domain, self.topic, self.utterance_id, self.stance)

    @property
    def place(self) -> _Place:
        """The key of its pair: equal for a point and its counter only, and ascending in the order of the pairs."""
        return (self.row, *(("",) * 4 if self.row else self.name))


@dataclass(frozen=True, slots=True)
class Pair:
    point: Record
    counter: Record
    grade: int = 1
    """How well the counter answers the point: the higher, the better."""
    negatives: tuple[str, ...] = ()
    """Texts that the data gives as wrong answers, each once."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How one table was read."""

    source: str
    rows: int
    columns: dict[str, str]
    """Role, such as point → the name of the column."""
    left_out: tuple[str, ...]
    """Columns that are not used."""


@dataclass(slots=True)
class Findings:
    """The oddities of a corpus, counted by kind, with up to three sources of each; and how its tables were read."""

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    readings: list[Reading] = field(default_factory=list)

    def add(self, kind: str, *sources: str, count: int = 1) -> None:
        self.counts[kind] += count
        self.examples[kind] += sources[: 3 - len(self.examples[kind])]

    def rows(self) -> list[tuple[str, int, list[str]]]:
        """(kind, count, up to three sources), in the order in which the kinds were first seen."""
        return [(kind, count, self.examples[kind]) for kind, count in self.counts.items()]


def pair_up(records: Iterable[Record], findings: Findings) -> list[tuple[Pair, list[tuple[str, str]]]]:
    """The pairs of points and counters, in the order of rows or sorted by name, and (text, source) of the negatives that
    each is given.

    A record without a partner is dropped and counted.
    """
    points: dict[_Place, Record] = {}
    counters: dict[_Place, Record] = {}
    negatives: dict[_Place, list[tuple[str, str]]] = defaultdict(list)
    for record in records:
        if record.kind == "negative":
            negatives[record.place].append((record.text, record.source))
            continue
        side = points if record.kind == "point" else counters
        if record.place in side:
            findings.add(f"second {record.kind} of the same argument (dropped)", record.source)
        else:
            side[record.place] = record
    pairs = []
    for key in sorted(points.keys() | counters.keys()):
        point, counter = points.get(key), counters.get(key)
        if point is None or counter is None:
            alone = point or counter
            assert alone is not None
            missing = "point without a counter" if point else "counter without a point"
            findings.add(f"{missing} (dropped)", alone.source)
        elif point.text == counter.text:
            findings.add("point and counter are the same text (pair dropped)", point.source)
        else:
            pairs.append((Pair(point, counter), negatives[key]))
    return pairs


def without_negatives(given: Sequence[tuple[Pair, Sequence[tuple[str, str]]]], findings: Findings) -> list[Pair]:
    """The pairs alone; the negatives that they are given are counted."""
    for _, several in given:
        if several:
            findings.add("given negative (left out)", several[0][1], count=len(several))
    return [pair for pair, _ in given]


def with_negatives(given: Sequence[tuple[Pair, Sequence[tuple[str, str]]]], findings: Findings) -> list[Pair]:
    """All pairs of a split with their given negatives, but for those that are right answers.

    Args:
        given: the pairs, and (text, source) of each one's negatives.
    """
    if not any(several for _, several in given):
        return [pair for pair, _ in given]
    answers: dict[str, set[str]] = defaultdict(set)
    for pair, _ in given:
        answers[pair.point.text] |= {pair.point.text, pair.counter.text}
    kept = []
    for pair, several in given:
        texts = _wrong_answers(several, answers[pair.point.text], findings)
        findings.add("pair with given negatives" if texts else "pair without given negatives", pair.point.source)
        kept.append(replace(pair, negatives=texts))
    return kept


def _wrong_answers(several: Sequence[tuple[str, str]], right: set[str], findings: Findings) -> tuple[str, ...]:
    kept: dict[str, None] = {}
    for text, source in several:
        if text in right:
            findings.add("given negative that is its point or a right answer to it (dropped)", source)
        elif text in kept:
            findings.add("given negative that its pair has twice (dropped)", source)
        else:
            kept[text] = None
    return tuple(kept)
