"""The passages of a corpus, read in one pass: their texts go to a pile, and only those that are judged stay at hand.

C: passages.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from biencoder.data.records import Findings
from biencoder.data.texts import Pile, Sources, copies
from biencoder.errors import DataError


class Entry(NamedTuple):
    """A passage or a query."""

    text: str
    source: str
    """`file:line`."""


@dataclass(frozen=True, slots=True)
class Passages:
    place_C: range
    """The place of each passage in the pile."""
    judged: dict[str, Entry]
    """Those that were asked for, by id. The text of an empty one, which is no passage, is empty."""
    position: dict[str, int]
    """The position of each of these in the corpus."""
    others: list[str]
    """Sources of up to three that were not asked for."""


def read_passages(
    rows: Iterable[tuple[str, str, str]],
    wanted: set[str],
    tidy: Callable[[str], str],
    pile: Pile,
    findings: Findings,
    *,
    name: str,
) -> Passages:
    """Read passages, and put those that are not empty on a pile.

    Args:
        rows: the id, the text and the source of each.
        wanted: ids of those to keep at hand.
        tidy: cleans a text.
        name: of ids, for messages.

    Raises:
        DataError: an id stands twice.
    """
    start, ids, sources = len(pile), Pile(), Sources()
    judged: dict[str, Entry] = {}
    position: dict[str, int] = {}
    others: list[str] = []
    for identity, raw, source in rows:
        ids.add(identity)
        sources.add(source)
        text = tidy(raw)
        if identity in wanted:
            judged[identity], position[identity] = Entry(text, source), len(pile) - start
        elif text and len(others) < 3:
            others.append(source)
        if text:
            pile.add(text)
        else:
            findings.add("empty passage (dropped)", source)
    _refuse_copies(ids, sources, name)
    return Passages(range(start, len(pile)), judged, position, others)


def read_queries(
    rows: Iterable[tuple[str, str, str]], tidy: Callable[[str], str], *, name: str, judged: str
) -> dict[str, Entry]:
    """Queries by id, in their order.

    Args:
        rows, tidy, name: as `read_passages` takes them.
        judged: what a query goes with, for messages.

    Raises:
        DataError: an id stands twice, or a query is empty.
    """
    queries: dict[str, Entry] = {}
    for identity, raw, source in rows:
        if identity in queries:
            raise DataError(_twice(source, name, identity, queries[identity].source))
        queries[identity] = Entry(tidy(raw), source)
    for query in queries.values():
        if not query.text:
            raise DataError(f"{query.source}: the query is empty; write its text or remove it and its {judged}")
    return queries


def _refuse_copies(ids: Pile, sources: Sources, name: str) -> None:
    distinct, number_M = ids.distinct()
    for second in copies(number_M)[:1].tolist():
        number = int(number_M[second])
        first = int((number_M == number).argmax())
        raise DataError(_twice(sources[second], name, distinct[number], sources[first]))


def _twice(source: str, name: str, identity: str, first: str) -> str:
    return f"{source}: the {name} {identity[:40]!r} stands in {first} already; give each its own"
