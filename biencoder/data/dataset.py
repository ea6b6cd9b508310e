"""A dataset: the distinct texts of a corpus, and for each split its pairs as text ids.

P: pairs of a split, C: passages of a corpus.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from biencoder.config.paths import find_file
from biencoder.config.schema import SPLITS
from biencoder.data.beir import Beir, is_beir, read_beir
from biencoder.data.cleaning import tidier
from biencoder.data.columns import ColumnNames
from biencoder.data.further import read_further
from biencoder.data.given import Given
from biencoder.data.ids import Ids
from biencoder.data.pairs import PairColumns, labels_of
from biencoder.data.readers import read_records, read_texts
from biencoder.data.records import Findings, Pair, Record, pair_up, with_negatives, without_negatives
from biencoder.data.texts import Pile, Sources, Texts, terminated
from biencoder.data.triples import by_id, is_triples, read_id_triples, read_triples
from biencoder.errors import DataError


@dataclass(frozen=True, slots=True)
class Judgements:
    """What makes the pairs of a split the answers of queries over a corpus, of which a query may have several."""

    query_P: Ids
    """The number of each pair's query, from 0. Queries with different ids differ, also where their texts are the same."""
    passage_P: Ids
    """The position of each pair's counter in `corpus_text_C`."""
    grade_P: Ids


def _nothing() -> Ids:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Split:
    """The pairs of one split; `*_text_*` hold text ids."""

    name: str
    pairs: Sequence[Pair]
    point_text_P: Ids
    counter_text_P: Ids
    corpus_text_C: Ids = field(default_factory=_nothing)
    """Every passage of the corpus, for queries over one, and further texts that are candidates beside the pairs' own."""
    judgements: Judgements | None = None
    """Of queries over a corpus or over counters only. Without, a pair is a query whose only answer is its own counter."""
    given: Given | None = None
    """The negatives that the data gives, of which none is a right answer of its pair's point; None if there are none."""

    def __len__(self) -> int:
        return len(self.point_text_P)

    @property
    def text_ids(self) -> Ids:
        """The distinct text ids of this split, its candidates and its given negatives, ascending."""
        given_text_X = self.given.text_X if self.given else _nothing()
        return np.unique(np.concatenate([self.point_text_P, self.counter_text_P, self.corpus_text_C, given_text_X]))

    @property
    def negative_pool(self) -> Ids:
        """Texts, with copies, that a random negative is drawn from."""
        if self.judgements:
            return self.corpus_text_C
        return np.concatenate([self.point_text_P, self.counter_text_P, self.corpus_text_C])

    def is_candidate(self, num_texts: int) -> npt.NDArray[np.bool_]:
        """Which of the dataset's texts can be retrieved for a query of this split."""
        is_candidate_N = np.zeros(num_texts, dtype=np.bool_)
        is_candidate_N[self.candidate_text_C] = True
        return is_candidate_N

    @property
    def candidate_text_C(self) -> Ids:
        """What can be retrieved, with copies: the passages of the corpus, or, without one, all counters and all points.

        The queries over a corpus are not among its passages.
        """
        if self.judgements:
            return self.corpus_text_C
        return np.concatenate([self.counter_text_P, self.point_text_P, self.corpus_text_C])

    def over_counters(self) -> "Split":
        """These pairs as queries over their counters. Points of the same text are one query, counters of the same text one
        passage."""
        passage_text_C, passage_P = np.unique(self.counter_text_P, return_inverse=True)
        query_P: Ids = np.unique(self.point_text_P, return_inverse=True)[1]
        judgements = Judgements(query_P, passage_P, np.ones_like(passage_P))
        return replace(self, corpus_text_C=passage_text_C, judgements=judgements)

    def groups(self, kind: str) -> npt.NDArray[np.int64] | None:
        """The group number (P,) of each pair.

        Args:
            kind: `debates` or `themes`, or `other_debates`, which have the numbers of `debates`; for any other the result
                is None.
        """
        if kind not in ("debates", "other_debates", "themes"):
            return None
        _, theme_P = labels_of(self.pairs, "domain")
        if kind == "themes":
            return theme_P
        names, topic_P = labels_of(self.pairs, "topic")
        debate_P: Ids = np.unique(theme_P * len(names) + topic_P, return_inverse=True)[1]
        return debate_P


@dataclass(frozen=True, slots=True)
class Dataset:
    """A corpus: its pairs in memory, and its texts in memory or in a mapped file."""

    texts: Texts
    """Each distinct text once; a text id is a position here."""
    splits: dict[str, Split]
    """By name; splits without pairs are missing."""
    findings: Findings
    fingerprint: str
    """SHA-256 over splits, names and cleaned texts, in their order. It is equal for two corpora exactly when training sees
    the same data."""

    @property
    def candidate_text_ids(self) -> Ids:
        """The texts that can be retrieved in any split, each once, ascending."""
        return np.unique(np.concatenate([split.candidate_text_C for split in self.splits.values()]))

    @property
    def deciding_split(self) -> str:
        """The split whose metric decides which model is the best."""
        return "validation" if "validation" in self.splits else "training"


def load_dataset(
    root: str,
    *,
    clean: bool,
    columns: str = "",
    corpus: str = "",
    candidates: str = "auto",
    needs_training: bool = True,
    given: bool = False,
) -> Dataset:
    """Read, clean, check and pair a corpus. Oddities do not raise; `findings` counts them.

    Args:
        columns: the names of a table's columns, as data.columns gives them.
        corpus: tables of further texts, as data.corpus gives them.
        candidates: auto or counters, as data.candidates gives them.
        given: whether the training pairs keep the negatives that a table gives.

    Raises:
        ConfigError: `columns` is not written as data.columns must be.
        DataError: the corpus is missing, broken or too small.
    """
    findings, pile, names = Findings(), Pile(), ColumnNames.parse(columns)
    path, tidy = find_file(root), tidier(clean)
    further = read_further(corpus, names, tidy, pile, findings) if corpus else None
    names = _without_text(names) if corpus else names
    if names.given and (is_beir(path) or is_triples(path)):
        form = "is a BEIR folder" if is_beir(path) else "holds triples"
        raise DataError(f"data.columns is set, but data.root {root} {form} and no table; leave it out")
    beir = _queries_over_corpus(path, tidy, pile, findings)
    pairs = {split: PairColumns(pile) for split in SPLITS}
    for split, pair in _pairs(beir, path, names, tidy, findings, given=given):
        pairs[split].add(pair)
    _check(pairs, root, findings, needs_training=needs_training)
    texts, splits, others = _numbered(pile, beir, pairs, further, findings, over_counters=candidates == "counters")
    _count_duplicates(splits, findings, share_passages=beir is not None)
    return Dataset(texts, splits, findings, _fingerprint(splits, (texts[text] for text in others)))


def _pairs(
    beir: Beir | None, path: Path, names: ColumnNames, tidy: Callable[[str], str], findings: Findings, *, given: bool
) -> Iterator[tuple[str, Pair]]:
    """Every pair, in the order of its split.

    Args:
        given: whether training pairs keep the negatives that they are given, for which all of them have to be there.
    """
    found: Iterable[tuple[str, list[tuple[Pair, list[tuple[str, str]]]]]]
    if beir:
        found = ((split, _answers(beir, split, findings)) for split in SPLITS)
    else:
        records = read_triples(path, findings) if is_triples(path) else read_records(path, findings, names)
        found = ((split, pair_up(_cleaned(group, tidy, findings), findings)) for split, group in records)
    kept = []
    for split, pairs in found:
        if given and split == "training":
            kept += pairs
        else:
            yield from ((split, pair) for pair in without_negatives(pairs, findings))
    yield from (("training", pair) for pair in with_negatives(kept, findings))


def _numbered(
    pile: Pile,
    beir: Beir | None,
    pairs: dict[str, PairColumns],
    further: tuple[range, Sources] | None,
    findings: Findings,
    *,
    over_counters: bool,
) -> tuple[Texts, dict[str, Split], Ids]:
    """The distinct texts: those of passages, then of pairs, then further ones, and last of given negatives; the splits; and
    the text ids of passages, with copies, and of further texts.

    Args:
        over_counters: whether pairs without passages are queries over the counters of their split.
    """
    there = {split: columns for split, columns in pairs.items() if len(columns)}
    point_and_counter = [places for columns in there.values() for places in columns.places[:2]]
    corpora = (np.asarray(beir.passages.place_C if beir else range(0)), np.asarray(further[0] if further else range(0)))
    blocks = [corpora[0], *point_and_counter, corpora[1], pairs["training"].places[2]]
    texts, text_id_O = pile.distinct(np.concatenate(blocks).astype(np.int64))
    passage_text_C, *of_pairs, further_text_C, given_text_X = np.split(text_id_O, np.cumsum([*map(len, blocks)])[:-1])
    splits = {}
    for name, columns in there.items():
        (point_text_P, counter_text_P), of_pairs = of_pairs[:2], of_pairs[2:]
        given = columns.given(given_text_X) if name == "training" else None
        rows = columns.pairs(texts, point_text_P, counter_text_P, given)
        split = Split(name, rows, point_text_P, counter_text_P, passage_text_C, given=given)
        if beir:
            split = replace(split, judgements=_judgements(rows, beir.passages.position))
        splits[name] = split.over_counters() if over_counters and not beir else split
    if further:
        further_text_C = _each_once(further_text_C, further[1], "repeated text in data.corpus (dropped)", findings)
        splits = {name: _with_further(split, further_text_C) for name, split in splits.items()}
        _count_further(splits, further_text_C, findings)
    return texts, splits, np.concatenate([passage_text_C, further_text_C])


def _each_once(text_M: Ids, sources: Sources, kind: str, findings: Findings) -> Ids:
    """These texts without copies, which are counted."""
    is_first_M = np.zeros(len(text_M), dtype=np.bool_)
    is_first_M[np.unique(text_M, return_index=True)[1]] = True
    repeated = np.flatnonzero(~is_first_M)
    if len(repeated):
        findings.add(kind, *(sources[place] for place in repeated[:3].tolist()), count=len(repeated))
    return text_M[is_first_M]


def _check(pairs: dict[str, PairColumns], root: str, findings: Findings, *, needs_training: bool) -> None:
    """Raise a DataError where there are too few pairs, and count the splits that have none."""
    if not any(map(len, pairs.values())):
        raise DataError(f"data.root {root} holds no pair of a point and its counter in any split")
    if needs_training and len(pairs["training"]) < 2:
        raise DataError(f"data.root {root} holds {len(pairs['training'])} training pairs; at least 2 are needed")
    for split in SPLITS:
        if not len(pairs[split]):
            findings.add("split without pairs (skipped)", f"{split}: `Splits` in docs/data.md says how to give one")


def _without_text(names: ColumnNames) -> ColumnNames:
    """The names of columns in data.root: with data.corpus the role `text` is about its tables."""
    return ColumnNames({role: column for role, column in names.given.items() if role != "text"})


def _with_further(split: Split, further_text_C: Ids) -> Split:
    """The split with further candidates. A text that is a candidate already is no second one."""
    own_C = split.candidate_text_C
    return replace(
        split, corpus_text_C=np.concatenate([split.corpus_text_C, further_text_C[~np.isin(further_text_C, own_C)]])
    )


def _count_further(splits: dict[str, Split], further_text_C: Ids, findings: Findings) -> None:
    pairs = np.concatenate([ids for split in splits.values() for ids in (split.point_text_P, split.counter_text_P)])
    among_pairs = int(np.isin(further_text_C, pairs).sum())
    if among_pairs < len(further_text_C):
        findings.add("text of data.corpus (a candidate only)", "data.corpus", count=len(further_text_C) - among_pairs)
    if among_pairs:
        findings.add("text of data.corpus that stands in a pair", "data.corpus", count=among_pairs)


def _queries_over_corpus(path: Path, tidy: Callable[[str], str], pile: Pile, findings: Findings) -> Beir | None:
    """Passages, queries and judgements, where this is a form that has them."""
    if is_beir(path):
        return read_beir(path, tidy, pile, findings)
    return read_id_triples(path, tidy, pile, findings) if is_triples(path) and by_id(path) else None


def _answers(beir: Beir, split: str, findings: Findings) -> list[tuple[Pair, list[tuple[str, str]]]]:
    """A pair of each query and each of its answers, in the order of the judgements, with the negatives that it is given."""
    pairs = []
    negatives = beir.negatives.get(split, {})
    for row, answer in enumerate(beir.judgements.get(split, []), start=1):
        query, passage = beir.queries[answer.query], beir.passages.judged[answer.passage]
        if query.text == passage.text:
            findings.add("query and answer are the same text (pair dropped)", answer.source)
            continue
        point = Record("", "", "", answer.query, "point", query.text, answer.source, row)
        counter = Record("", "", "", answer.passage, "counter", passage.text, answer.source, row)
        others = [(text, source) for text, source in negatives.get((answer.query, answer.passage), []) if text]
        pairs.append((Pair(point, counter, answer.grade), others))
    return pairs


def _judgements(pairs: Sequence[Pair], place_of: dict[str, int]) -> Judgements:
    """
    Args:
        place_of: the position of each passage in the corpus, by its id.
    """
    number_of: dict[str, int] = {}
    return Judgements(
        np.array([number_of.setdefault(pair.point.utterance_id, len(number_of)) for pair in pairs], dtype=np.int64),
        np.array([place_of[pair.counter.utterance_id] for pair in pairs], dtype=np.int64),
        np.array([pair.grade for pair in pairs], dtype=np.int64),
    )


def load_texts(
    root: str, *, clean: bool, columns: str = "", corpus: str = "", candidates: str = "auto"
) -> tuple[Texts, Findings]:
    """The distinct texts of a corpus to search: the texts of all its pairs or their counters alone, the passages of a BEIR
    folder, or the rows of a table that has texts alone; and the further texts of data.corpus.

    Args:
        columns, corpus, candidates: as those of `load_dataset`.

    Raises:
        ConfigError: `columns` is not written as data.columns must be.
        DataError: the corpus is missing or broken, or holds nothing.
    """
    path, findings, pile, tidy = find_file(root), Findings(), Pile(), tidier(clean)
    names, sources = ColumnNames.parse(columns), None
    beir = _queries_over_corpus(path, tidy, pile, findings)
    if not beir:
        sources = read_texts(path, names, tidy, pile, findings)
        if sources is None:
            dataset = load_dataset(
                root, clean=clean, columns=columns, corpus=corpus, candidates=candidates, needs_training=False
            )
            return dataset.texts.of(dataset.candidate_text_ids), dataset.findings
    if not len(pile):
        raise DataError(f"data.root {root} holds no text")
    further = read_further(corpus, names, tidy, pile, findings) if corpus else None
    texts, text_id_M = pile.distinct()
    if sources:
        _each_once(text_id_M[: further[0].start if further else None], sources, "repeated text (dropped)", findings)
    if further:
        _each_once(text_id_M[further[0].start :], further[1], "repeated text in data.corpus (dropped)", findings)
    return texts, findings


def _cleaned(records: Iterable[Record], tidy: Callable[[str], str], findings: Findings) -> Iterator[Record]:
    for record in records:
        if text := tidy(record.text):
            yield replace(record, text=text)
        else:
            findings.add(f"empty {record.kind} (dropped)", record.source)


def _count_duplicates(splits: dict[str, Split], findings: Findings, *, share_passages: bool) -> None:
    """
    Args:
        share_passages: whether all splits have the same corpus, so that only their queries can be compared.
    """
    corpus_text_C = next(iter(splits.values())).corpus_text_C
    if repeats := len(corpus_text_C) - len(np.unique(corpus_text_C)):
        findings.add("passage with the text of another", "corpus", count=repeats)
    texts_of = {name: _own_texts(split, share_passages=share_passages) for name, split in splits.items()}
    for name, texts in texts_of.items():
        if repeats := len(texts) - len(np.unique(texts)):
            findings.add("text repeated within a split", name, count=repeats)
    names = list(splits)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = np.intersect1d(texts_of[first], texts_of[second])
            if len(shared):
                findings.add("text that stands in two splits", f"{first} and {second}", count=len(shared))


def _own_texts(split: Split, *, share_passages: bool) -> Ids:
    """The texts, with copies, that no other split should have."""
    if not split.judgements:
        return np.concatenate([split.point_text_P, split.counter_text_P])
    query_text_Q = split.point_text_P[np.unique(split.judgements.query_P, return_index=True)[1]]
    return query_text_Q if share_passages else np.concatenate([query_text_Q, np.unique(split.counter_text_P)])


def _fingerprint(splits: dict[str, Split], others: Iterable[str]) -> str:
    """
    Args:
        others: passages and further texts, with copies.
    """
    digest = hashlib.sha256()
    for split in splits.values():
        for pair in split.pairs:
            for part in (split.name, *pair.point.name, pair.point.text, pair.counter.text):
                digest.update(terminated(part))
        if split.judgements:
            digest.update(split.judgements.grade_P.tobytes() + split.judgements.passage_P.tobytes())
        for pair in split.pairs if split.given else ():
            digest.update(b"".join(map(terminated, pair.negatives)) + b"\x00")
    for text in others:
        digest.update(terminated(text))
    return digest.hexdigest()
