"""Files of rows, read strictly: what is no table, no UTF-8 or no text is refused with its file and line.

.jsonl     an object a line; lines end at a line feed and nowhere else
.csv       a header, and as many fields in every row; fields are separated by commas, or by the semicolons or tabs that
           separate those of the header
.tsv       the same with tabs
.parquet   any schema; messages give the number of the row as the line

The first three may be compressed: .jsonl.gz, .jsonl.zst and so on. Names (ids, topics) are read as they are written in the
file. Texts must be text: a number or bytes are refused, and so is a list where one text belongs.
"""

import codecs
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, cast

from biencoder.data.columns import ColumnNames, listed, may_hold_lists
from biencoder.errors import DataError

_DELIMITERS = ",;\t"
_CODECS = {".gz": "gzip", ".zst": "zstd"}


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

    def texts(self, column: str) -> list[str]:
        """The texts of this cell: of its list, or the one that it holds, which is empty where the cell is missing.

        Raises:
            DataError: the cell is neither, or is a list where the column's name promises one text.
        """
        value = self.cells.get(column)
        if not isinstance(value, list) or not may_hold_lists(column):
            text = self.text(column)
            if may_hold_lists(column) and text.startswith(('["', "['")) and text.endswith("]"):
                raise DataError(
                    f"{self.source}: {column} is a list that was written as text; save it as .jsonl or .parquet"
                )
            return [text]
        return [Row(self.source, {column: item}).text(column) for item in value]

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
    """All columns of the file, in its order. They are complete with the first row, or with the last, if `ragged`."""
    rows: Iterable[Row]
    """To be read once; what is wrong with the file is raised meanwhile."""
    split: str = ""
    """The split that the table itself names for all its rows, if any."""
    ragged: bool = False
    """Whether a later row may have other columns than the first."""


def read_table(path: Path, names: ColumnNames | None = None) -> Table:
    """One file, which is read as far as its rows are.

    Args:
        names: of the columns whose cells are wanted; None: the names in use.

    Raises:
        DataError: here or with a row: it cannot be read, or its content does not fit its suffix.
    """
    suffix = table_suffix(path)
    if suffix is None:
        raise DataError(f"data.root {path} is a file of unknown type; expected one of {SUFFIXES}")
    columns: list[str] = []
    read = _READERS["." + suffix.split(".")[1]]
    return Table(path, columns, _rows(path, names or ColumnNames(), columns, read), ragged=read is _read_jsonl)


def _rows(path: Path, names: ColumnNames, columns: list[str], read: "_Reader") -> Iterator[Row]:
    try:
        regular_file(path)
        yield from read(path, names, columns)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or ' '.join(str(error).split())}") from None


def table_suffix(path: Path) -> str | None:
    """The end of a table's name in lower case, such as `.csv` or `.jsonl.gz`; None for any other file."""
    *_, first, last = ["", *(suffix.lower() for suffix in path.suffixes)] if path.suffixes else ["", ""]
    if last in _CODECS:
        return first + last if first in _READERS and first != ".parquet" else None
    return last if last in _READERS else None


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


def _open(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed. A damaged file raises an OSError, here or while it is read."""
    codec = _CODECS.get(path.suffix.lower())
    if codec is None:
        return path.open("rb")
    import pyarrow

    return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), codec)))


def _read_jsonl(path: Path, names: ColumnNames, columns: list[str]) -> Iterator[Row]:
    known: dict[str, bool] = {}
    for number, line in enumerate(lines_of(path), start=1):
        if not line.strip():
            continue
        cells = _parse(line, f"{path}:{number}")
        for column in cells:
            if column not in known:
                known[column] = names.knows(column)
                columns.append(column)
        yield Row(f"{path}:{number}", {column: cell for column, cell in cells.items() if known[column]})


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a file, decompressed, without a byte-order mark.

    Only line feeds end a line; U+2028 and its like are ordinary characters.
    """
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode()
            except UnicodeDecodeError as error:
                byte = f"byte {error.start} of the line is 0x{error.object[error.start]:02x}"
                raise DataError(f"{path}:{number} is not UTF-8 text ({byte}); convert the file") from None


def _parse(line: str, source: str) -> dict[str, Any]:
    try:
        cells = _DECODER.decode(line)
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


_DECODER = json.JSONDecoder(
    parse_int=_Number, parse_float=_Number, parse_constant=_constant, object_pairs_hook=_without_repeats
)


def _read_csv(path: Path, names: ColumnNames, columns: list[str]) -> Iterator[Row]:
    return _read_separated(path, names, columns, _DELIMITERS)


def _read_tsv(path: Path, names: ColumnNames, columns: list[str]) -> Iterator[Row]:
    return _read_separated(path, names, columns, "\t")


def _read_separated(path: Path, names: ColumnNames, columns: list[str], delimiters: str) -> Iterator[Row]:
    """Read fields that one of these delimiters separates: the one that fits the header."""
    csv.field_size_limit(sys.maxsize)  # a text may have any length
    try:
        with _open_text(path) as file:
            header = file.readline()
        with _open_text(path) as file:
            delimiter = _delimiter(header, delimiters, names)
            yield from _read_fields(path, csv.reader(file, delimiter=delimiter, strict=True), names, columns)
    except UnicodeDecodeError as error:
        for _ in lines_of(path):  # raises at the wrong bytes, and names the line
            pass
        raise DataError(f"{path} is not UTF-8 text: {error.reason}") from None


def _open_text(path: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="")


def _delimiter(header: str, delimiters: str, names: ColumnNames) -> str:
    """The delimiter that separates most of the columns that this program knows."""

    def fitness(delimiter: str) -> tuple[int, int]:
        columns = {name.strip(' "\r\n') for name in header.split(delimiter)}
        return sum(names.knows(column) for column in columns), header.count(delimiter)

    return max(delimiters, key=fitness)


def _read_fields(path: Path, reader: Any, names: ColumnNames, columns: list[str]) -> Iterator[Row]:
    """The rows that a reader of the csv module gives."""
    line = 1
    try:
        for fields in reader:
            source, line = f"{path}:{line}", reader.line_num + 1
            if not fields:
                continue
            if not columns:
                columns += [name.strip() for name in fields]
                refuse_repeats(columns, source, names)
                known = [(column, place) for place, column in enumerate(columns) if names.knows(column)]
            elif len(fields) != len(columns):
                raise DataError(
                    f"{source} has another number of fields ({len(fields)}) than the header has columns ({len(columns)}: "
                    f"{listed(columns)}); put texts that hold the separator, or a quotation mark, in quotation marks"
                )
            else:
                yield Row(source, {column: fields[place] for column, place in known})
    except csv.Error as error:
        raise DataError(f"{path}:{line} is not valid CSV: {error}; the row starts in this line") from None


def refuse_repeats(columns: list[str], source: str, names: ColumnNames) -> None:
    """Raise a DataError for a column that the file has twice."""
    for column in filter(names.knows, columns):
        if columns.count(column) > 1:
            raise DataError(f"{source} has the column {column} {columns.count(column)} times")


def _read_parquet(path: Path, names: ColumnNames, columns: list[str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns += file.schema_arrow.names
            refuse_repeats(columns, str(path), names)
            yield from rows_of_batches(path, file.iter_batches(columns=[*filter(names.knows, columns)]))
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{path} is not a valid Parquet file: {' '.join(str(error).split())[:300]}") from None


def rows_of_batches(path: Path, batches: Iterable[Any]) -> Iterator[Row]:
    """The rows of pyarrow's record batches."""
    start = 1
    for batch in batches:
        cells = {name: _values(batch.column(name), path, name, start) for name in batch.schema.names}
        for place in range(batch.num_rows):
            yield Row(f"{path}:{start + place}", {name: values[place] for name, values in cells.items()})
        start += batch.num_rows


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


_Reader = Callable[[Path, ColumnNames, list[str]], Iterator[Row]]
"""Reads the rows of a file, and fills the list of its columns."""
_READERS: dict[str, _Reader] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
SUFFIXES = ".jsonl, .csv, .tsv (each also .gz or .zst), .parquet"
"""For messages."""
