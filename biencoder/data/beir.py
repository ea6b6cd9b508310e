"""Queries over a corpus, in the form of the BEIR benchmark (Thakur et al. 2021): a folder of

corpus.jsonl     a passage a line: `_id`, `text`, and perhaps a `title`, which is put before the text
queries.jsonl    a query a line: `_id`, `text`; those of all splits
qrels/*.tsv      train, dev and test, or other names of these splits: a judgement a line, `query-id`, `corpus-id`, `score`
                 below a header of these names. A score above 0 is the grade of an answer; 0 is a wrong answer
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from biencoder.data.columns import ColumnNames, listed
from biencoder.data.passages import Entry, Passages, read_passages, read_queries
from biencoder.data.readers import SPLIT_OF, read_text, sources_of_splits
from biencoder.data.records import Findings, Reading
from biencoder.data.tables import read_table
from biencoder.data.texts import Pile
from biencoder.errors import DataError

_CORPUS, _QUERIES, _QRELS = "corpus.jsonl", "queries.jsonl", "qrels"
_NAMES = ColumnNames({"id": "_id", "topic": "title"})
_HEADER = ["query-id", "corpus-id", "score"]
_ROLES = ["query", "answer", "grade"]


class Judgement(NamedTuple):
    """An answer of a query."""

    query: str
    passage: str
    """Their ids."""
    grade: int
    """At least 1; the higher, the better the answer."""
    source: str


@dataclass(frozen=True, slots=True)
class Beir:
    passages: Passages
    queries: dict[str, Entry]
    """By id, in the order of their file, with cleaned texts."""
    judgements: dict[str, list[Judgement]]
    """Split → its answers, in the order of the file."""
    negatives: dict[str, dict[tuple[str, str], list[Entry]]] = field(default_factory=dict)
    """Split → (query, passage) of an answer → its given negatives, where the form has some."""


def is_beir(path: Path) -> bool:
    """Whether this is such a folder, perhaps an incomplete one."""
    corpus, *others = (os.path.join(path, name) for name in (_CORPUS, _QUERIES, _QRELS))
    return os.path.isfile(corpus) and any(map(os.path.exists, others))  # these return False for impossible names


def read_beir(root: Path, tidy: Callable[[str], str], pile: Pile, findings: Findings) -> Beir:
    """Read such a folder.

    Args:
        tidy: cleans a text.
        pile: takes the passages.

    Raises:
        DataError: a file is missing or broken, an id is missing, stands twice or is judged without being there.
    """
    try:
        if any(sources_of_splits(root, Findings())):
            raise DataError(
                f"data.root {root} holds both {_CORPUS} and folders or tables of splits; keep one layout there, and "
                "move the other away"
            )
        rows = _rows(root / _CORPUS, findings)
        passages = read_passages(rows, _judged(root / _QRELS), tidy, pile, findings, name="_id")
        queries = read_queries(_rows(root / _QUERIES, findings), tidy, name="_id", judged="judgements")
        judgements = {
            split: _judgements(file, passages.judged, queries, findings) for split, file in _files(root / _QRELS).items()
        }
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be read: {error.strerror or error}") from None
    return finished(Beir(passages, queries, judgements), findings)


def finished(beir: Beir, findings: Findings) -> Beir:
    """What was read, without empty passages, and with all that the data check shows of it counted."""
    _drop_empty(beir.passages.judged, beir.judgements, findings)
    _count(beir.passages, beir.queries, beir.judgements, findings)
    return beir


def _rows(path: Path, findings: Findings) -> Iterator[tuple[str, str, str]]:
    """The id, the text and the source of each line."""
    if not path.exists():
        raise DataError(f"{path} is missing: a BEIR folder holds {_CORPUS}, {_QUERIES} and {_QRELS}/")
    table, count = read_table(path, _NAMES), 0
    for row in table.rows:
        count += 1
        identity = row.name("_id")
        if not identity:
            raise DataError(f"{row.source} has no _id")
        if "text" not in row.cells:
            raise DataError(f"{row.source} has no text")
        yield identity, f"{row.text('title')} {row.text('text')}", row.source
    text = " + ".join(column for column in ("title", "text") if column in table.columns)
    left_out = tuple(column for column in table.columns if column not in ("_id", "title", "text"))
    findings.readings.append(Reading(str(path), count, {"id": "_id", "text": text}, left_out))


def _judged(folder: Path) -> set[str]:
    """The ids of passages in all files of judgements, right or wrong."""
    lines = (line for path in sorted(folder.glob("*.tsv")) for line in read_text(path).split("\n"))
    return {line.split("\t")[1].strip() for line in lines if "\t" in line}


def _files(folder: Path) -> dict[str, Path]:
    """The file of each split. Two files of one split are refused."""
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.tsv")):
        split = SPLIT_OF.get(path.stem.lower())
        if split is None:
            raise DataError(f"{path} is of no split; expected one of {', '.join(sorted(SPLIT_OF))}, ending in .tsv")
        if split in files:
            raise DataError(
                f"{folder} holds {files[split].name} and {path.name}, both of the {split} split; keep one of them"
            )
        files[split] = path
    if not files:
        raise DataError(f"{folder} holds no judgements: expected train.tsv, dev.tsv, test.tsv, or some of them")
    return files


def _judgements(path: Path, passages: dict[str, Entry], queries: dict[str, Entry], findings: Findings) -> list[Judgement]:
    """The answers in a file of judgements."""
    answers: list[Judgement] = []
    judged: set[tuple[str, str]] = set()
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        fields, source = line.rstrip("\r").split("\t"), f"{path}:{number}"
        if number == 1 and fields == _HEADER:
            continue
        if not line.strip():
            continue
        judgement = _judgement(fields, source)
        for name, identity, known in (("query-id", judgement.query, queries), ("corpus-id", judgement.passage, passages)):
            if identity not in known:
                file = _QUERIES if known is queries else _CORPUS
                raise DataError(f"{source}: the {name} {identity!r} is not in {file}")
        if (judgement.query, judgement.passage) in judged:
            findings.add("second judgement of the same query and passage (dropped)", source)
            continue
        judged.add((judgement.query, judgement.passage))
        if judgement.grade < 1:
            findings.add("judgement with the score 0 or below (no answer)", source)
        else:
            answers.append(judgement)
    findings.readings.append(Reading(str(path), len(judged), dict(zip(_ROLES, _HEADER, strict=True)), ()))
    return answers


def _judgement(fields: list[str], source: str) -> Judgement:
    if len(fields) != len(_HEADER):
        raise DataError(f"{source} has {len(fields)} fields, expected {', '.join(_HEADER)}, separated by tabs")
    query, passage, score = (field.strip() for field in fields)
    try:
        return Judgement(query, passage, int(score), source)
    except ValueError:
        hint = f"the header is {listed(_HEADER)}" if source.endswith(":1") else "expected a whole number"
        raise DataError(f"{source}: the score is {score[:40]!r}; {hint}") from None


def _drop_empty(judged: dict[str, Entry], judgements: dict[str, list[Judgement]], findings: Findings) -> None:
    empty = {identity for identity, passage in judged.items() if not passage.text}
    for identity in empty:
        del judged[identity]
    for split, answers in judgements.items() if empty else ():
        for answer in answers:
            if answer.passage in empty:
                findings.add("answer that is an empty passage (dropped)", answer.source)
        judgements[split] = [answer for answer in answers if answer.passage not in empty]


def _count(
    passages: Passages, queries: dict[str, Entry], judgements: dict[str, list[Judgement]], findings: Findings
) -> None:
    """What the data check shows of the folder."""
    splits_of: dict[str, set[str]] = {}
    for split, answers in judgements.items():
        for answer in answers:
            splits_of.setdefault(answer.query, set()).add(split)
    answering = {answer.passage for answers in judgements.values() for answer in answers}
    if alone := len(passages.place_C) - len(answering):
        judged = [passage.source for identity, passage in passages.judged.items() if identity not in answering]
        findings.add("passage that answers no query (a candidate only)", *passages.others, *judged, count=alone)
    for identity, query in queries.items():
        count = len(splits_of.get(identity, ()))
        if count == 0:
            findings.add("query without an answer (left out)", query.source)
        elif count > 1:
            findings.add("query that stands in two splits", query.source)
