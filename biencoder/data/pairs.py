"""The pairs of a split in columns: a pair takes some 100 bytes, and is an object of Python only while somebody looks at it.

    columns = PairColumns(pile)
    columns.add(Pair(point, counter))                               # its texts go to the pile
    columns.pairs(texts, point_text_P, counter_text_P, given)       # a sequence of `Pair`, once the texts have their ids

P: pairs, X: given negatives of all pairs.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, SupportsIndex, get_args, overload

import numpy as np

from biencoder.data.given import Given
from biencoder.data.ids import Ids
from biencoder.data.records import Pair, Record, Role
from biencoder.data.texts import Pile, Sources, Texts

Label = Literal["domain", "topic", "stance"]
LABELS: tuple[Label, ...] = get_args(Label)
_SIDES: tuple[Role, Role] = ("point", "counter")


class Coded:
    """Names that come again and again, as numbers."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._number_of: dict[str, int] = {}
        self._names: list[str] = []
        self._number_P = array("i")
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        number = self._number_of.setdefault(name, len(self._names))
        if number == len(self._names):
            self._names.append(name)
        self._number_P.append(number)

    def __getitem__(self, place: int) -> str:
        return self._names[self._number_P[place]]

    def ascending(self) -> tuple[list[str], Ids]:
        """Each name once, in ascending order, and the number (P,) of each place's among these."""
        order = sorted(self._names)
        rank = np.empty(len(order), dtype=np.int64)
        rank[[self._number_of[name] for name in order]] = np.arange(len(order))
        return order, rank[np.frombuffer(self._number_P, dtype=np.int32)]


class PairColumns:
    """Pairs that are being read. Point and counter of a pair have the same labels."""

    def __init__(self, pile: Pile) -> None:
        """
        Args:
            pile: takes the texts.
        """
        self._pile, self._names = pile, Pile()
        self.labels: dict[Label, Coded] = {label: Coded() for label in LABELS}
        self.sources = (Sources(), Sources())
        self.row_P, self.grade_P = array("q"), array("q")
        self._place_P = (array("q"), array("q"))
        self._place_X, self._count_P = array("q"), array("q")

    def __len__(self) -> int:
        return len(self.grade_P)

    def add(self, pair: Pair) -> None:
        for label, coded in self.labels.items():
            coded.add(getattr(pair.point, label))
        for record, place_P, sources in zip((pair.point, pair.counter), self._place_P, self.sources, strict=True):
            place_P.append(self._pile.add(record.text))
            self._names.add(record.utterance_id)
            sources.add(record.source)
        self.row_P.append(pair.point.row)
        self.grade_P.append(pair.grade)
        self._place_X.extend(map(self._pile.add, pair.negatives))
        self._count_P.append(len(pair.negatives))

    @property
    def places(self) -> tuple[Ids, Ids, Ids]:
        """The places in the pile of points (P,), counters (P,) and given negatives."""
        point_P, counter_P, negative_X = (
            np.frombuffer(places, dtype=np.int64) for places in (*self._place_P, self._place_X)
        )
        return point_P, counter_P, negative_X

    def given(self, text_X: Ids) -> Given | None:
        """The given negatives, whose text ids these are; None if there are none."""
        ends_P = np.cumsum(np.frombuffer(self._count_P, dtype=np.int64))
        return Given.of(np.split(text_X, ends_P[:-1])) if len(text_X) else None

    def pairs(self, texts: Texts, point_text_P: Ids, counter_text_P: Ids, given: Given | None) -> "Pairs":
        """All of them. The columns are used up."""
        names = self._names.distinct()
        return Pairs(
            self.labels, self.sources, names, self.row_P, self.grade_P, texts, (point_text_P, counter_text_P), given
        )


class Pairs(Sequence[Pair]):
    """The pairs that columns held; made by `PairColumns.pairs`."""

    def __init__(
        self,
        labels: Mapping[Label, Coded],
        sources: tuple[Sources, Sources],
        names: tuple[Texts, Ids],
        row_P: Sequence[int],
        grade_P: Sequence[int],
        texts: Texts,
        text_P: tuple[Ids, Ids],
        given: Given | None,
    ) -> None:
        """
        Args:
            names: the distinct ids of points and counters, and the number of each, pair by pair.
        """
        self._labels, self._sources, self._row_P, self._grade_P = labels, sources, row_P, grade_P
        self._names, self._name_X = names
        self._texts, self._text_P, self._given = texts, text_P, given

    def __len__(self) -> int:
        return len(self._grade_P)

    @overload
    def __getitem__(self, place: SupportsIndex) -> Pair: ...
    @overload
    def __getitem__(self, place: slice) -> list[Pair]: ...
    def __getitem__(self, place: SupportsIndex | slice) -> Pair | list[Pair]:
        if isinstance(place, slice):
            return [self[p] for p in range(*place.indices(len(self)))]
        p = range(len(self))[place]
        negatives = self._given.text_X[slice(*self._given.starts_P1[p : p + 2])] if self._given else ()
        texts = tuple(self._texts[text] for text in negatives)
        return Pair(self._record(p, 0), self._record(p, 1), self._grade_P[p], texts)

    def labels(self, label: Label) -> tuple[list[str], Ids]:
        """The names of all domains, say, in ascending order, and the number (P,) of each pair's."""
        return self._labels[label].ascending()

    def _record(self, p: int, side: int) -> Record:
        domain, topic, stance = (self._labels[label][p] for label in LABELS)
        name, text = self._names[self._name_X[2 * p + side]], self._texts[self._text_P[side][p]]
        return Record(domain, topic, stance, name, _SIDES[side], text, self._sources[side][p], self._row_P[p])


def labels_of(pairs: Sequence[Pair], label: Label) -> tuple[list[str], Ids]:
    """The names of all domains, say, in ascending order, and the number (P,) of each pair's."""
    return (
        pairs.labels(label) if isinstance(pairs, Pairs) else Coded(getattr(pair.point, label) for pair in pairs).ascending()
    )
