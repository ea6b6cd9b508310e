"""Readers: the files at a path become records, split by split. The layout of the path decides which reader is used.

ArguAna layout   {training,validation,test}/{theme}/{debate}/{pro,con}/{pro,con}NN{a-point,b-counter}.txt
Tables           a folder with train/validation/test files, or one file with a `split` column: .jsonl, .csv or .parquet,
                 columns `point` and `counter` (texts), optional `domain`, `topic`, `stance`, `id`, `split`; see tables.py.
                 Each row is a pair, whatever its id, and pairs keep the order of their rows
Texts alone      one such file with a column `text` and without pairs: it can be searched, not trained on
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

from biencoder.data.records import Findings, Record, Role
from biencoder.data.tables import SUFFIXES, Table, encodable, listed, read_table, regular_file
from biencoder.errors import DataError

_SPLIT_OF = {
    **dict.fromkeys(["training", "train"], "training"),
    **dict.fromkeys(["validation", "valid", "val", "dev"], "validation"),
    **dict.fromkeys(["test", "testing"], "test"),
}
_ARGUMENT = re.compile(r"(?P<stance>pro|con)(?P<number>\d+)(?P<letter>[a-z])-(?P<kind>point|counter)\.txt")
_NOT_ARGUMENTS = {"thesis.txt", "intro.txt", "metadata.txt", ".DS_Store"}
_DEPTH = 3
"""Folders below that of a split: theme, debate, stance."""

Records = dict[str, list[Record]]
"""Split name (`training`, `validation`, `test`) → its records in the order of their sources."""


def read_records(root: Path, findings: Findings) -> Records:
    """Read a corpus in any of the layouts above.

    Raises:
        DataError: the path does not exist, holds no arguments, or holds a broken file; the message names it.
    """
    try:
        return _read_folder(root, findings) if _is_folder(root) else _read_tables({"": root}, findings)
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be read: {error.strerror or error}") from None


def _is_folder(root: Path) -> bool:
    try:
        return stat.S_ISDIR(root.stat().st_mode)
    except (FileNotFoundError, ValueError):  # a ValueError for a name with a zero byte
        raise DataError(f"data.root {root} does not exist") from None


def read_texts(path: Path) -> list[tuple[str, str]] | None:
    """(text, source) of every row of a file of texts alone; None for any other corpus.

    Raises:
        DataError: the file cannot be read.
    """
    if not os.path.isfile(path):
        return None
    table = read_table(path)
    if "text" not in table.columns or {"point", "counter"} <= set(table.columns):
        return None
    return [(row.text("text"), row.source) for row in table.rows]


def _read_folder(root: Path, findings: Findings) -> Records:
    """Read the layout that a folder holds. Two layouts, or two sources of one split, are refused."""
    debates, tables = _sources_of_splits(root, findings)
    if debates and tables:
        raise DataError(
            f"data.root {root} holds both folders ({_names(debates)}) and tables ({_names(tables)}); "
            "keep one layout there, and move the other away"
        )
    for split, paths in (debates or tables).items():
        if len(paths) > 1:
            raise DataError(
                f"data.root {root} holds {_names({split: paths})}, all of which are the {split} split; keep one of them"
            )
    if debates:
        return {split: list(_read_debates(folder, findings)) for split, (folder,) in debates.items()}
    if tables:
        return _read_tables({split: file for split, (file,) in tables.items()}, findings)
    raise DataError(
        f"data.root {root} holds no corpus: expected folders training/, validation/, test/ in the ArguAna layout, or "
        f"files train, validation, test ending in {', '.join(SUFFIXES)}"
    )


def _sources_of_splits(root: Path, findings: Findings) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """The folders of debates of each split, and the tables of each split."""
    debates: dict[str, list[Path]] = {}
    tables: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()):
        split = _SPLIT_OF.get(path.name.split(".")[0].lower())
        if split is None:
            continue
        if path.is_dir():
            if "." not in path.name:
                debates.setdefault(split, []).append(path)
        elif path.suffix.lower() in SUFFIXES and path.stem.lower() in _SPLIT_OF:
            tables.setdefault(split, []).append(path)
        else:
            findings.add("file of a split that is no table (ignored)", str(path))
    return debates, tables


def _names(sources: dict[str, list[Path]]) -> str:
    return ", ".join(path.name + ("/" if path.is_dir() else "") for paths in sources.values() for path in paths)


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
        yield Record(theme, debate, stance, match["number"], role, _read_text(path), str(path))


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


def _read_text(path: Path) -> str:
    regular_file(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}); convert or remove it"
        ) from None


def _read_tables(tables: dict[str, Path], findings: Findings) -> Records:
    records: Records = {}
    for split, path in tables.items():
        for name, record in _read_pairs(read_table(path), split):
            if record.text:
                records.setdefault(name, []).append(record)
            else:
                findings.add(f"empty {record.kind} (dropped)", record.source)
    return records


def _read_pairs(table: Table, split: str) -> Iterable[tuple[str, Record]]:
    """(split, record) of every cell that should be an argument; `split` is empty if a column names it."""
    missing = {"point", "counter"} - set(table.columns)
    if missing:
        has = f"it has {listed(table.columns)}" if table.columns else "it is empty"
        raise DataError(f"{table.path} lacks the column {' and '.join(sorted(missing))}; {has}")
    for number, row in enumerate(table.rows, start=1):
        label = row.name("split") if "split" in table.columns and not split else split or "training"
        name = _SPLIT_OF.get(label.lower())
        if name is None:
            raise DataError(f"{row.source}: split is {label!r}, expected one of {', '.join(sorted(_SPLIT_OF))}")
        names = {key: row.name(key) for key in ("domain", "topic", "stance")}
        utterance_id = row.name("id") or f"{number:09d}"
        for kind in get_args(Role):
            yield (
                name,
                Record(**names, utterance_id=utterance_id, kind=kind, text=row.text(kind), source=row.source, row=number),
            )
