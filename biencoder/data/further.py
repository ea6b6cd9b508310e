"""Further texts of a corpus: those of `data.corpus`, which belong to no query and can be mined, ranked and found.

They stand in one or more tables with a column `text`, and perhaps a `title`, which is put before the text.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from biencoder.config.paths import find_file
from biencoder.data.columns import ColumnNames, listed
from biencoder.data.hub import hub_splits, on_hub
from biencoder.data.readers import table_at
from biencoder.data.records import Findings, Reading
from biencoder.data.saved_folders import is_saved
from biencoder.data.tables import SUFFIXES, Table, table_suffix
from biencoder.data.texts import Pile, Sources
from biencoder.errors import DataError

_TITLE = "title"


def read_further(
    paths: str, names: ColumnNames, tidy: Callable[[str], str], pile: Pile, findings: Findings
) -> tuple[range, Sources]:
    """Put the texts of these tables on a pile, cleaned.

    Args:
        paths: the value of data.corpus: files, or folders of files, separated by commas.
        names: of the columns; only that of `text` counts.
        tidy: cleans a text.

    Returns:
        Their places, and where each was read.

    Raises:
        DataError: a table is missing or broken, or there is no text in all of them.
    """
    start, sources = len(pile), Sources()
    for path, read in _tables(paths):
        for raw, source in _rows(path, read, names.given.get("text", "text"), findings):
            if text := tidy(raw):
                pile.add(text)
                sources.add(source)
            else:
                findings.add("empty text in data.corpus (dropped)", source)
    if len(pile) == start:
        raise DataError(f"data.corpus {paths} holds no text")
    return range(start, len(pile)), sources


def _tables(paths: str) -> Iterator[tuple[Path, Callable[[Path, ColumnNames], Table]]]:
    """The tables, each with what reads it."""
    whole = find_file(paths)
    for path in [whole] if os.path.exists(whole) else [find_file(part.strip()) for part in paths.split(",")]:
        if on_hub(path):
            yield from ((Path(f"{path}/{split}"), read) for split, read in hub_splits(str(path)).items())
            continue
        if not os.path.exists(path):
            raise DataError(f"data.corpus {path} does not exist; expected tables, or folders of them, separated by commas")
        if os.path.isdir(path) and not is_saved(path):
            inside = [file for file in sorted(path.iterdir()) if table_suffix(file)]
            if not inside:
                raise DataError(f"data.corpus {path} holds no table: expected files that end in {SUFFIXES}")
            yield from ((file, table_at) for file in inside)
        else:
            yield path, table_at


def _rows(
    path: Path, read: Callable[[Path, ColumnNames], Table], column: str, findings: Findings
) -> Iterator[tuple[str, str]]:
    """(text, source) of every row of a table."""
    parts, count = [column] if column == _TITLE else [_TITLE, column], 0
    try:
        table = read(path, ColumnNames({"text": column} | ({} if column == _TITLE else {"topic": _TITLE})))
        for row in table.rows:
            count += 1
            yield " ".join(map(row.text, parts)), row.source
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}") from None
    if column not in table.columns:
        has = listed(table.columns) or "nothing"
        raise DataError(
            f"{path} lacks the column {column}; it has {has}; say which column holds the texts of data.corpus with "
            "data.columns, such as text=body"
        )
    columns = [part for part in parts if part in table.columns]
    left_out = tuple(other for other in table.columns if other not in columns)
    findings.readings.append(Reading(str(path), count, {"text": " + ".join(columns)}, left_out))
