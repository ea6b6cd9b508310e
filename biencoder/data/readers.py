"""Readers: the files at a path become records, split by split. The layout of the path decides which reader is used.

ArguAna layout   {training,validation,test}/{theme}/{debate}/{pro,con}/{pro,con}NN{a-point,b-counter}.txt
Tables           a folder with train/validation/test files, or one file with a `split` column; see tables.py for the formats
                 and columns.py for the names of columns. `train-00000-of-00002.parquet` and its like are one table.
                 Each row is a pair, whatever its id, and pairs keep the order of their rows. A row whose counter is a list
                 is several pairs
Saved datasets   what `datasets` has written with `save_to_disk`; see saved_folders.py
The hub          hf:owner/name, which `datasets` loads; see hub.py
BEIR             a folder of corpus.jsonl, queries.jsonl and qrels/; see beir.py
Triples          lines of a query, a right and a wrong answer, by text or by id; see triples.py
Texts alone      one table with a column `text` and without pairs: it can be searched, not trained on
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

from biencoder.data.columns import ColumnNames, Roles
from biencoder.data.hub import hub_splits, on_hub
from biencoder.data.records import Findings, Reading, Record, Role
from biencoder.data.saved_folders import is_saved, read_saved, saved_splits
from biencoder.data.tables import SUFFIXES, Row, Table, encodable, read_table, regular_file, table_suffix
from biencoder.data.texts import Pile, Sources
from biencoder.errors import DataError

SPLIT_OF = {
    **dict.fromkeys(["training", "train"], "training"),
    **dict.fromkeys(["validation", "valid", "val", "dev"], "validation"),
    **dict.fromkeys(["test", "testing"], "test"),
}
_ARGUMENT = re.compile(r"(?P<stance>pro|con)(?P<number>\d+)(?P<letter>[a-z])-(?P<kind>point|counter)\.txt")
_NOT_ARGUMENTS = {"thesis.txt", "intro.txt", "metadata.txt", ".DS_Store"}
_SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d+)-of-(?P<count>\d+)(-[0-9a-f]{16})?")
"""Names of the parts of a table; older ones on the hub end in a hash."""
_DEPTH = 3
"""Folders below that of a split: theme, debate, stance."""

Records = Iterator[tuple[str, Iterable[Record]]]
"""Split name (`training`, `validation`, `test`) and records, group by group: those of one pair, or all of a split."""


def table_at(path: Path, names: ColumnNames) -> Table:
    """One table: a file, or a folder that holds one saved dataset."""
    return read_saved(path, names) if is_saved(path) else read_table(path, names)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a split comes from: a folder, or one or more files, or a split of a dataset on the hub."""

    name: str
    """For messages."""
    paths: tuple[Path, ...]
    read: Callable[[Path, ColumnNames], Table] = table_at
    """Reads the table at a path."""


def read_records(root: Path, findings: Findings, names: ColumnNames | None = None) -> Records:
    """Read a corpus in any of the layouts above.

    Args:
        findings: takes what is odd, and how tables were read.
        names: of the columns of tables; None: the names in use.

    Raises:
        DataError: the path does not exist, holds no arguments, or holds a broken file; the message names it.
    """
    names = names or ColumnNames()
    try:
        if on_hub(root):
            yield from _read_hub(root, findings, names)
        elif _is_folder(root) and not is_saved(root):
            yield from _read_folder(root, findings, names)
        else:
            yield from _read_tables({"": _Source(str(root), (root,))}, findings, names)
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be read: {error.strerror or error}") from None


def _is_folder(root: Path) -> bool:
    try:
        return stat.S_ISDIR(root.stat().st_mode)
    except (FileNotFoundError, ValueError):  # a ValueError for a name with a zero byte
        raise DataError(f"data.root {root} does not exist") from None


def read_texts(
    path: Path, names: ColumnNames, tidy: Callable[[str], str], pile: Pile, findings: Findings
) -> Sources | None:
    """Put the texts of a table of texts alone on an empty pile, cleaned.

    Returns:
        Where each was read; None for any other corpus.

    Raises:
        DataError: the table cannot be read.
    """
    if not os.path.isfile(path) and not is_saved(path):
        return None
    table = _with_columns(lambda: table_at(path, names))
    roles = names.texts_alone(table.columns, path)
    if roles is None:
        return None
    sources, column, count = Sources(), roles.of["text"], 0
    for row in table.rows:
        count += 1
        if text := tidy(row.text(column)):
            pile.add(text)
            sources.add(row.source)
        else:
            findings.add("empty text (dropped)", row.source)
    left_out = tuple(other for other in table.columns if other != column)
    findings.readings.append(Reading(str(path), count, {"text": column}, left_out))
    return sources


def _with_columns(read: Callable[[], Table]) -> Table:
    """A table all of whose columns are known. For that a ragged one is read twice."""
    table = read()
    if table.ragged:
        for _ in table.rows:
            pass
        return replace(table, rows=read().rows)
    rows = iter(table.rows)
    first = list(islice(rows, 1))
    return replace(table, rows=chain(first, rows))


def _read_hub(root: Path, findings: Findings, names: ColumnNames) -> Records:
    sources: dict[str, _Source] = {}
    for name, read in hub_splits(str(root)).items():
        split = SPLIT_OF.get(name.lower())
        if split is None:
            findings.add("split of another name (ignored)", f"{root}/{name}")
        elif split in sources:
            raise DataError(f"data.root {root} has two {split} splits, {sources[split].name} and {root}/{name}")
        else:
            sources[split] = _Source(f"{root}/{name}", (root,), read)
    if not sources:
        raise DataError(f"data.root {root} has no split of these names: {', '.join(sorted(SPLIT_OF))}")
    return _read_tables(sources, findings, names)


def _read_folder(root: Path, findings: Findings, names: ColumnNames) -> Records:
    """Read the layout that a folder holds. Two layouts, or two sources of one split, are refused."""
    debates, tables = sources_of_splits(root, findings)
    if debates and tables:
        raise DataError(
            f"data.root {root} holds both folders ({_names(debates)}) and tables ({_names(tables)}); "
            "keep one layout there, and move the other away"
        )
    for split, sources in (debates or tables).items():
        if len(sources) > 1:
            raise DataError(
                f"data.root {root} holds {_names({split: sources})}, all of which are the {split} split; keep one of them"
            )
    if debates and names.given:
        raise DataError(f"data.columns is set, but data.root {root} holds folders of debates and no table; leave it out")
    if debates:
        return ((split, list(_read_debates(source.paths[0], findings))) for split, (source,) in debates.items())
    if tables:
        return _read_tables({split: source for split, (source,) in tables.items()}, findings, names)
    raise DataError(
        f"data.root {root} holds no corpus: expected folders training/, validation/, test/ in the ArguAna layout, "
        f"files train, validation, test ending in {SUFFIXES}, corpus.jsonl with queries.jsonl and qrels/, or triples.tsv"
    )


def sources_of_splits(root: Path, findings: Findings) -> tuple[dict[str, list[_Source]], dict[str, list[_Source]]]:
    """The folders of debates of each split, and the tables of each split."""
    debates: dict[str, list[_Source]] = {}
    tables: dict[str, list[_Source]] = {}
    shards: dict[str, list[Path]] = {}
    _count_other_splits(root, findings)
    for path in sorted(root.iterdir()):
        stem = path.name.split(".")[0].lower()
        shard = _SHARD.fullmatch(stem)
        split = SPLIT_OF.get(shard["name"] if shard else stem)
        if split is None:
            continue
        if path.is_dir() and not is_saved(path):
            if not shard and "." not in path.name:
                debates.setdefault(split, []).append(_Source(f"{path.name}/", (path,)))
        elif not is_saved(path) and path.name.lower() != stem + (table_suffix(path) or "?"):
            findings.add("file of a split that is no table (ignored)", str(path))
        elif shard:
            shards.setdefault(f"{shard['name']}-*-of-{shard['count']}{table_suffix(path) or ''}", []).append(path)
        else:
            tables.setdefault(split, []).append(_Source(path.name + "/" * path.is_dir(), (path,)))
    for name, paths in shards.items():
        tables.setdefault(SPLIT_OF[name.split("-")[0]], []).append(_whole(root, name, paths))
    return debates, tables


def _count_other_splits(root: Path, findings: Findings) -> None:
    for split in saved_splits(root) or []:
        if split.lower() not in SPLIT_OF:
            findings.add("saved split of another name (ignored)", str(root / split))


def _whole(root: Path, name: str, paths: list[Path]) -> _Source:
    """The files of one table, in their order.

    Raises:
        DataError: some are missing, or one is there twice.
    """
    numbers = []
    for path in paths:
        shard = _SHARD.fullmatch(path.name.split(".")[0].lower())
        assert shard
        numbers.append((int(shard["number"]), path))
    count = int(name.split("-of-")[1].split(".")[0])
    first = min(1, min(numbers)[0]) if len(numbers) == count else 0
    missing = sorted(set(range(first, first + min(count, 100_000))) - {number for number, _ in numbers})
    if missing or len(numbers) != count:
        lacking = f" (number {missing[0]:05d} is missing)" if missing else ""
        raise DataError(
            f"data.root {root} holds {len(numbers)} of the {count} files {name}{lacking}; copy all of them there"
        )
    return _Source(name, tuple(path for _, path in sorted(numbers)))


def _names(sources: dict[str, list[_Source]]) -> str:
    return ", ".join(source.name for several in sources.values() for source in several)


def _read_debates(folder: Path, findings: Findings) -> Iterator[Record]:
    for path in sorted(_files(folder, findings)):
        if path.name in _NOT_ARGUMENTS:
            continue
        match = _ARGUMENT.fullmatch(path.name)
        parts = path.relative_to(folder).parts
        if match is None or len(parts) != _DEPTH + 1 or parts[2] != match["stance"]:
            findings.add("file that is no argument (ignored)", str(path))
            continue
        theme, debate, stance, _ = parts
        if not encodable(theme + debate):
            raise DataError(f"the name of {str(path.parent)!a} is not UTF-8; rename the folder")
        role: Role = "point" if match["kind"] == "point" else "counter"
        yield Record(theme, debate, stance, match["number"], role, read_text(path), str(path))


def _files(folder: Path, findings: Findings) -> Iterator[Path]:
    """The files of a split, also behind links to folders. A folder that cannot be listed raises an OSError."""

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        if len(Path(place).relative_to(folder).parts) == _DEPTH:  # links may form a cycle
            for name in folders:
                findings.add("folder below those of arguments (ignored)", os.path.join(place, name))
            folders.clear()
        yield from (Path(place, name) for name in files)


def read_text(path: Path) -> str:
    regular_file(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}); convert or remove it"
        ) from None


def _read_tables(tables: dict[str, _Source], findings: Findings, names: ColumnNames) -> Records:
    for split, source in tables.items():
        for name, records in _read_source(split, source, findings, names):
            for record in records:
                if not record.text:
                    findings.add(f"empty {record.kind} (dropped)", record.source)
            yield name, [record for record in records if record.text]


def _read_source(split: str, source: _Source, findings: Findings, names: ColumnNames) -> Iterator[tuple[str, list[Record]]]:
    """(split, records) of every pair; `split` is empty if the table names it."""
    num_rows, num_pairs = 0, 0
    readings: dict[Path, Roles] = {}
    for path in source.paths:
        table = _with_columns(partial(source.read, path, names))
        roles = readings[path] = names.roles(table.columns, path)
        _refuse_other_columns(readings)
        for row in table.rows:
            num_rows += 1
            name = _split_of(row, split, table.split, roles)
            for records in _records_of(row, roles, num_rows, num_pairs):
                num_pairs += 1
                yield name, records
    left_out = dict.fromkeys(column for roles in readings.values() for column in roles.left_out)
    columns = dict(pair for roles in readings.values() for pair in roles.of.items())
    if negatives := dict.fromkeys(column for roles in readings.values() for column in roles.negatives):
        columns["negatives"] = ", ".join(negatives)
    if split:
        left_out |= {columns.pop("split"): None} if "split" in columns else {}
    findings.readings.append(Reading(source.name, num_rows, columns, tuple(left_out)))


def _refuse_other_columns(readings: dict[Path, Roles]) -> None:
    """Raise a DataError if the last file of a table takes its pairs from other columns than the first one."""
    (first, *_), (last, *_) = readings, reversed(readings)
    pairs = [[readings[path].of[role] for role in ("point", "counter")] for path in (first, last)]
    if pairs[0] != pairs[1]:
        raise DataError(
            f"{first} has pairs of {' and '.join(pairs[0])}, but {last} of {' and '.join(pairs[1])}; "
            "give both the same columns"
        )


def _split_of(row: Row, split: str, of_table: str, roles: Roles) -> str:
    """The split of a row: that of the file's name, of the column, of the saved dataset, or training."""
    if split:
        return split
    if "split" not in roles.of:
        return SPLIT_OF.get(of_table.lower(), "training")
    label = row.name(roles.of["split"])
    if label.lower() not in SPLIT_OF:
        raise DataError(f"{row.source}: split is {label!r}, expected one of {', '.join(sorted(SPLIT_OF))}")
    return SPLIT_OF[label.lower()]


def _records_of(row: Row, roles: Roles, number: int, num_pairs: int) -> Iterator[list[Record]]:
    """The point, the counter and the given negatives of each pair of a row.

    Args:
        number: of the row in its split, counted from 1.
        num_pairs: pairs of the rows before.
    """
    labels = {role: row.name(roles.of[role]) if role in roles.of else "" for role in ("domain", "topic", "stance")}
    name = (row.name(roles.of["id"]) if "id" in roles.of else "") or f"{number:09d}"
    point = row.text(roles.of["point"])
    negatives = [text for column in roles.negatives for text in row.texts(column) if text.strip()]
    for pair, counter in enumerate(row.texts(roles.of["counter"]) or [""], start=num_pairs + 1):
        texts: list[tuple[Role, str]] = [("point", point), ("counter", counter)]
        yield [
            Record(**labels, utterance_id=name, kind=kind, text=text, source=row.source, row=pair)
            for kind, text in [*texts, *(("negative", text) for text in negatives)]
        ]
