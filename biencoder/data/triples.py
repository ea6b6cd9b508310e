"""Triples in the form of MS MARCO: lines of three fields, separated by tabs, without a header or quotation marks.

triples.train.small.tsv        by text: query, right answer, wrong answer
qidpidtriples.train.full.tsv   by id: query, passage that answers it, passage that does not, where the same folder holds
collection.tsv                 a passage a line: id, text
queries.tsv                    a query a line: id, text; or several files such as queries.train.tsv

The file, or the folder that holds it, is data.root. The split stands in the file's name; without one it is training. Lines
with the same query and the same right answer are one pair, whose given negatives are their wrong answers.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from biencoder.data.beir import Beir, Judgement, finished
from biencoder.data.columns import ColumnNames
from biencoder.data.passages import Entry, read_passages, read_queries
from biencoder.data.readers import SPLIT_OF, Records
from biencoder.data.records import Findings, Reading, Record, Role
from biencoder.data.tables import lines_of, regular_file
from biencoder.data.texts import Pile
from biencoder.errors import DataError

_TRIPLES = re.compile(r"(qidpid)?triples(\..+)?\.tsv(\.gz|\.zst)?")
_QUERIES = re.compile(r"queries(\..+)?\.tsv(\.gz|\.zst)?")
_COLLECTION = re.compile(r"collection\.tsv(\.gz|\.zst)?")
_PARTS = {"point": "1", "counter": "2", "negatives": "3"}


def is_triples(path: Path) -> bool:
    """Whether this is a file of triples, or a folder that holds one."""
    if os.path.isdir(path):
        return any(_TRIPLES.fullmatch(name) for name in os.listdir(path))
    return os.path.isfile(path) and _TRIPLES.fullmatch(path.name) is not None


def by_id(path: Path) -> bool:
    """Whether triples are of ids: their folder holds the passages."""
    return bool(_beside(path, _COLLECTION))


def read_triples(path: Path, findings: Findings) -> Records:
    """The records of each split, of triples by text.

    Raises:
        DataError: a file is broken, or holds ids without their texts.
    """
    return ((split, _records(file, findings)) for split, file in _files(path).items())


def read_id_triples(path: Path, tidy: Callable[[str], str], pile: Pile, findings: Findings) -> Beir:
    """The passages, queries and answers of triples by id, with the negatives of each answer.

    Args:
        tidy: cleans a text.
        pile: takes the passages.

    Raises:
        DataError: a file is missing or broken, or an id stands twice or is not there.
    """
    rows = _rows(_beside(path, _COLLECTION), findings)
    passages = read_passages(rows, _judged(path), tidy, pile, findings, name="id")
    queries = read_queries(_rows(_beside(path, _QUERIES), findings), tidy, name="id", judged="triples")
    if not queries:
        raise DataError(f"{_folder(path)} holds collection.tsv, but no queries.tsv with the queries of the triples")
    judgements: dict[str, list[Judgement]] = {}
    negatives: dict[str, dict[tuple[str, str], list[Entry]]] = {}
    for split, file in _files(path).items():
        answers: dict[tuple[str, str], Judgement] = {}
        others = negatives[split] = {}
        for source, (query, answer, other) in _lines(file, findings):
            _check_ids(source, query, (answer, other), queries, passages.judged)
            answers.setdefault((query, answer), Judgement(query, answer, 1, source))
            others.setdefault((query, answer), []).append(Entry(passages.judged[other].text, source))
        judgements[split] = list(answers.values())
    return finished(Beir(passages, queries, judgements, negatives), findings)


def _check_ids(
    source: str, query: str, two: tuple[str, str], queries: dict[str, Entry], passages: dict[str, Entry]
) -> None:
    if query not in queries:
        raise DataError(f"{source}: the query {query[:40]!r} is not in queries.tsv")
    for passage in two:
        if passage not in passages:
            raise DataError(f"{source}: the passage {passage[:40]!r} is not in collection.tsv")


def _folder(path: Path) -> Path:
    return path if os.path.isdir(path) else path.parent


def _beside(path: Path, name: re.Pattern[str]) -> list[Path]:
    """The files of this name in the folder of the triples."""
    return [file for file in sorted(_folder(path).iterdir()) if name.fullmatch(file.name)]


def _files(path: Path) -> dict[str, Path]:
    """The file of each split. Two files of one split are refused."""
    files: dict[str, Path] = {}
    for file in _beside(path, _TRIPLES) if os.path.isdir(path) else [path]:
        split = next((SPLIT_OF[part] for part in file.name.lower().split(".") if part in SPLIT_OF), "training")
        if split in files:
            raise DataError(
                f"{path} holds {files[split].name} and {file.name}, both of the {split} split; keep one of them, or set "
                "data.root to it"
            )
        files[split] = file
    return files


def _lines(file: Path, findings: Findings) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """(source, fields) of every triple."""
    rows, names = 0, ColumnNames()
    for number, line in _numbered(file):
        fields = line.split("\t")
        if number == 1 and all(map(names.knows, fields)):
            continue
        if len(fields) != len(_PARTS):
            raise DataError(
                f"{file}:{number} has {len(fields)} fields, expected a query, a right and a wrong answer, separated by tabs"
            )
        rows += 1
        query, answer, other = (field.strip() for field in fields)
        yield f"{file}:{number}", (query, answer, other)
    findings.readings.append(Reading(str(file), rows, dict(_PARTS), ()))


def _numbered(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, without their ends, and their numbers."""
    try:
        regular_file(file)
        for number, line in enumerate(lines_of(file), start=1):
            if line.strip():
                yield number, line.rstrip("\r\n")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or ' '.join(str(error).split())}") from None


def _records(file: Path, findings: Findings) -> Iterator[Record]:
    number_of: dict[tuple[str, str], int] = {}
    for source, fields in _lines(file, findings):
        query, answer, other = fields
        if not number_of and all(field.isdecimal() for field in fields):
            raise DataError(
                f"{source} holds ids, but collection.tsv is not beside it; put it there, and queries.tsv, for their texts"
            )
        if not query:
            raise DataError(f"{source}: the query is empty; write its text or remove the line")
        texts: list[tuple[Role, str]] = [] if (query, answer) in number_of else [("point", query), ("counter", answer)]
        row = number_of.setdefault((query, answer), len(number_of) + 1)
        for kind, text in [*texts, ("negative", other)]:
            yield Record("", "", "", f"{row:09d}", kind, text, source, row)


def _rows(files: list[Path], findings: Findings) -> Iterator[tuple[str, str, str]]:
    """The id, the text and the source of each line in these files."""
    for file in files:
        count = 0
        for number, line in _numbered(file):
            identity, tab, text = line.partition("\t")
            source, identity = f"{file}:{number}", identity.strip()
            if not tab or not identity:
                raise DataError(f"{source} is no id and text, separated by a tab")
            yield identity, text, source
            count += 1
        findings.readings.append(Reading(str(file), count, {"id": "1", "text": "2"}, ()))


def _judged(path: Path) -> set[str]:
    """The ids of passages in all files of triples, right or wrong."""
    lines = (line for file in _files(path).values() for _, line in _numbered(file))
    return {field.strip() for line in lines for field in line.split("\t")[1:]}
