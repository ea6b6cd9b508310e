"""Files of rows, read strictly: what is no table, no UTF-8 or no text is refused with its file and line.

.jsonl     an object a line; lines end at a line feed and nowhere else
.csv       a header, and as many fields in every row; fields are separated by commas, or by the semicolons or tabs that
           separate those of the header
.parquet   any schema; messages give the number of the row as the line

Names (ids, topics) are read as they are written in the file. Texts must be text: a number, a list or bytes are refused.
"""

import codecs
import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from biencoder.errors import DataError

_COLUMNS = ("point", "counter", "text", "domain", "topic", "stance", "id", "split")
_DELIMITERS = ",;\t"


class _Number(str):
    """A number in a JSON file, as it is written there."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Row:
    source: str
    """`file:line`."""
    cells: dict[str, Any]
    """The cells of the columns that this program knows; None and NaN count as missing."""

    def text(self, column: str) -> str:
        """The text of this cell; empty where it is missing.

        Raises:
            DataError: the cell is no text.
        """
        value = self._value(column)
        if type(value) is not str:
            raise DataError(f"{self.source}: {column} is {_kind(value)}, expected text")
        return value

    def name(self, column: str) -> str:
        """The text of this cell, or its number as text; empty where it is missing.

        Raises:
            DataError: the cell is neither.
        """
        value = self._value(column)
        if not isinstance(value, str | int | float | Decimal):
            raise DataError(f"{self.source}: {column} is {_kind(value)}, expected text or a number")
        return str(value).lower() if isinstance(value, bool) else str(value)

    def _value(self, column: str) -> Any:
        value = self.cells.get(column)
        if value is None or (isinstance(value, float) and value != value):
            return ""
        if isinstance(value, str) and not encodable(value):
            raise DataError(
                f"{self.source}: {column} holds half of a surrogate pair, which is no character; correct the text"
            )
        return value


@dataclass(frozen=True, slots=True)
class Table:
    path: Path
    columns: list[str]
    """All columns of the file, in its order."""
    rows: list[Row]


def read_table(path: Path) -> Table:
    """Read one file.

    Raises:
        DataError: it cannot be read, or its content does not fit its suffix.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"data.root {path} is a file of unknown type; expected one of {', '.join(SUFFIXES)}")
    try:
        regular_file(path)
        return reader(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or ' '.join(str(error).split())}") from None


def regular_file(path: Path) -> None:
    """Raise a DataError for a pipe, a socket or a device: reading it might never end."""
    if not os.path.isfile(path) and os.path.exists(path):
        raise DataError(f"{path} is not a regular file")


def encodable(text: str) -> bool:
    """Whether UTF-8 can hold the text: half of a surrogate pair cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def listed(columns: Iterable[str]) -> str:
    """The columns' names for a message, in one line."""
    return " ".join(", ".join(columns).split())[:200]


def _kind(value: Any) -> str:
    """The type of a cell's value in words, for messages."""
    kinds: list[tuple[type | tuple[type, ...], str]] = [
        (bool, "true or false"),
        ((_Number, int, float, Decimal), "a number"),
        (list, "a list"),
        (dict, "an object"),
        (bytes, "bytes"),
    ]
    return next((words for kind, words in kinds if isinstance(value, kind)), f"a {type(value).__name__}")


def _known(columns: Iterable[str]) -> set[str]:
    return set(_COLUMNS).intersection(columns)


def _read_jsonl(path: Path) -> Table:
    columns: dict[str, None] = {}
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            cells = _parse(line, f"{path}:{number}")
            columns |= dict.fromkeys(cells)
            rows.append(Row(f"{path}:{number}", {column: cells[column] for column in _known(cells)}))
    return Table(path, list(columns), rows)


def _lines(path: Path) -> Iterator[str]:
    """The lines without a byte-order mark. Only line feeds end a line; U+2028 and its like are ordinary characters."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode()
            except UnicodeDecodeError as error:
                byte = f"byte {error.start} of the line is 0x{error.object[error.start]:02x}"
                raise DataError(f"{path}:{number} is not UTF-8 text ({byte}); convert the file") from None


def _parse(line: str, source: str) -> dict[str, Any]:
    try:
        cells = json.loads(
            line, parse_int=_Number, parse_float=_Number, parse_constant=_constant, object_pairs_hook=_without_repeats
        )
    except json.JSONDecodeError as error:
        raise DataError(f"{source} is not valid JSON: {error.msg} at character {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(cells, dict):
        raise DataError(f"{source} is not an object with point and counter, or with text")
    return cells


def _constant(name: str) -> _Number | None:
    return None if name == "NaN" else _Number(name)  # data frames write missing values as NaN


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return cells


def _read_csv(path: Path) -> Table:
    csv.field_size_limit(sys.maxsize)  # a text may have any length
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(file.readline())
            file.seek(0)
            return _read_fields(path, csv.reader(file, delimiter=delimiter, strict=True))
    except UnicodeDecodeError as error:
        for _ in _lines(path):  # raises at the wrong bytes, and names the line
            pass
        raise DataError(f"{path} is not UTF-8 text: {error.reason}") from None


def _delimiter(header: str) -> str:
    """The delimiter that separates most of the columns that this program knows."""

    def fitness(delimiter: str) -> tuple[int, int]:
        return len(_known(name.strip(' "\r\n') for name in header.split(delimiter))), header.count(delimiter)

    return max(_DELIMITERS, key=fitness)


def _read_fields(path: Path, reader: Any) -> Table:
    """The rows that a reader of the csv module gives."""
    columns: list[str] = []
    rows, line = [], 1
    try:
        for fields in reader:
            source, line = f"{path}:{line}", reader.line_num + 1
            if not fields:
                continue
            if not columns:
                columns = [name.strip() for name in fields]
                _refuse_repeats(columns, source)
                known = [(column, columns.index(column)) for column in _known(columns)]
            elif len(fields) != len(columns):
                raise DataError(
                    f"{source} has another number of fields ({len(fields)}) than the header has columns ({len(columns)}: "
                    f"{listed(columns)}); put texts that hold the separator, or a quotation mark, in quotation marks"
                )
            else:
                rows.append(Row(source, {column: fields[place] for column, place in known}))
    except csv.Error as error:
        raise DataError(f"{path}:{line} is not valid CSV: {error}; the row starts in this line") from None
    return Table(path, columns, rows)


def _refuse_repeats(columns: list[str], source: str) -> None:
    for column in _COLUMNS:
        if columns.count(column) > 1:
            raise DataError(f"{source} has the column {column} {columns.count(column)} times")


def _read_parquet(path: Path) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = list(file.schema_arrow.names)
            _refuse_repeats(columns, str(path))
            rows: list[Row] = []
            for batch in file.iter_batches(columns=sorted(_known(columns))):
                start = len(rows) + 1
                cells = {name: _values(batch.column(name), path, name, start) for name in batch.schema.names}
                rows += [
                    Row(f"{path}:{start + place}", {name: values[place] for name, values in cells.items()})
                    for place in range(batch.num_rows)
                ]
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{path} is not a valid Parquet file: {' '.join(str(error).split())[:300]}") from None
    return Table(path, columns, rows)


def _values(column: Any, path: Path, name: str, start: int) -> list[Any]:
    """The values of a column, whose first row has the number `start`."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        for row, value in enumerate(column, start=start):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{row}: {name} is not UTF-8 text (byte {error.start})") from None
        raise
    return values


_READERS: dict[str, Callable[[Path], Table]] = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
SUFFIXES = tuple(_READERS)
