"""Readers: from what lies at a path to records, split by split. The path itself says which reader it needs.

ArguAna layout   {training,validation,test}/{theme}/{debate}/{pro,con}/{pro,con}NN{a-point,b-counter}.txt
Tables           a folder with train/validation/test files, or one file with a `split` column: .jsonl, .csv or .parquet,
                 columns `point` and `counter` (texts), optional `domain`, `topic`, `stance`, `id`, `split`
Texts alone      one such file with a column `text` and without pairs: nothing to train on, but to search
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from biencoder.data.records import Findings, Kind, Record
from biencoder.errors import DataError

if TYPE_CHECKING:
    import pandas

_SPLIT_OF = {
    **dict.fromkeys(["training", "train"], "training"),
    **dict.fromkeys(["validation", "valid", "val", "dev"], "validation"),
    **dict.fromkeys(["test", "testing"], "test"),
}
_ARGUMENT = re.compile(r"(?P<stance>pro|con)(?P<number>\d+)(?P<letter>[a-z])-(?P<kind>point|counter)\.txt")
_NOT_ARGUMENTS = {"thesis.txt", "intro.txt", "metadata.txt", ".DS_Store"}

Records = dict[str, list[Record]]
"""Split name (`training`, `validation`, `test`) → its records in the order of their sources."""


def read_records(root: Path, findings: Findings) -> Records:
    """Read a corpus in any of the layouts above.

    Raises:
        DataError: nothing is there, nothing in it is readable as arguments, or a file is broken; the message names it.
    """
    if not root.exists():
        raise DataError(f"data.root {root} does not exist")
    if root.is_file():
        return _read_tables({"": root}, findings)
    folders = {_SPLIT_OF[p.name.lower()]: p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in _SPLIT_OF}
    if folders:
        return {split: list(_read_debates(folder, findings)) for split, folder in folders.items()}
    tables = {
        _SPLIT_OF[p.stem.lower()]: p
        for p in sorted(root.iterdir())
        if p.suffix in _TABLE_READERS and p.stem.lower() in _SPLIT_OF
    }
    if tables:
        return _read_tables(tables, findings)
    raise DataError(
        f"data.root {root} holds no corpus: expected folders training/, validation/, test/ in the ArguAna layout, or "
        "files train, validation, test ending in .jsonl, .csv or .parquet"
    )


def read_texts(path: Path) -> list[tuple[str, str]] | None:
    """(text, source) of every row of a file of texts alone; None for any other corpus.

    Raises:
        DataError: the file cannot be read.
    """
    if not path.is_file():
        return None
    table = _table(path)
    if "text" not in table.columns or {"point", "counter"} <= set(table.columns):
        return None
    return [(_cell(row, "text"), f"{path}:{line}") for line, row in enumerate(table.to_dict("records"), start=1)]


def _read_debates(folder: Path, findings: Findings) -> Iterator[Record]:
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name in _NOT_ARGUMENTS:
            continue
        match = _ARGUMENT.fullmatch(path.name)
        parts = path.relative_to(folder).parts
        if match is None or len(parts) != 4 or parts[2] != match["stance"]:
            findings.add("file that is no argument (ignored)", str(path))
            continue
        theme, debate, stance, _ = parts
        kind: Kind = "point" if match["kind"] == "point" else "counter"
        yield Record(theme, debate, stance, match["number"], kind, _read_text(path), str(path))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}); convert or remove it"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _read_tables(tables: dict[str, Path], findings: Findings) -> Records:
    records: Records = {}
    for split, path in tables.items():
        for line, row in enumerate(_rows(path), start=1):
            source = f"{path}:{line}"
            name = split or _SPLIT_OF.get(str(row.get("split", "training")).lower(), "")
            if not name:
                raise DataError(f"{source}: split is {row['split']!r}, expected one of {', '.join(sorted(_SPLIT_OF))}")
            common = {key: _cell(row, key) for key in ("domain", "topic", "stance")}
            utterance_id = _cell(row, "id") or f"{line:09d}"
            for kind in get_args(Kind):
                text = _cell(row, kind)
                if text:
                    records.setdefault(name, []).append(
                        Record(**common, utterance_id=utterance_id, kind=kind, text=text, source=source)
                    )
                else:
                    findings.add(f"empty {kind} (dropped)", source)
    return records


def _rows(path: Path) -> list[dict[str, Any]]:
    table = _table(path)
    missing = {"point", "counter"} - set(table.columns)
    if missing:
        raise DataError(f"{path} lacks the column {' and '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    return [{str(column): value for column, value in row.items()} for row in table.to_dict("records")]


def _table(path: Path) -> "pandas.DataFrame":
    reader = _TABLE_READERS.get(path.suffix)
    if reader is None:
        raise DataError(f"data.root {path} is a file of unknown type; expected one of {', '.join(_TABLE_READERS)}")
    try:
        return reader(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except ValueError as error:  # pandas, pyarrow and json all derive their syntax errors from it
        raise DataError(f"{path} is not a valid {path.suffix[1:]} file: {' '.join(str(error).split())}") from None


def _cell(row: Mapping[Any, Any], key: str) -> str:
    value = row.get(key)
    return "" if value is None or value != value else str(value)  # NaN is the only value unequal to itself


def _read_jsonl(path: Path) -> "pandas.DataFrame":
    import pandas

    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(rows[-1], dict):
                raise ValueError(f"line {number}: expected an object with point and counter, or with text")
    return pandas.DataFrame(rows)


def _read_csv(path: Path) -> "pandas.DataFrame":
    import pandas

    return pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")


def _read_parquet(path: Path) -> "pandas.DataFrame":
    import pandas

    return pandas.read_parquet(path)


_TABLE_READERS: dict[str, Callable[[Path], "pandas.DataFrame"]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
