"""Folders that `datasets` has written with `save_to_disk`: `state.json` names the Arrow files of one dataset, and
`dataset_dict.json` the folders of several splits."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from biencoder.data.columns import ColumnNames
from biencoder.data.tables import Row, Table, refuse_repeats, regular_file, rows_of_batches
from biencoder.errors import DataError

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def is_saved(folder: Path) -> bool:
    """Whether a folder holds one saved dataset."""
    return os.path.isfile(folder / _STATE)


def saved_splits(folder: Path) -> list[str] | None:
    """The splits of a folder of several saved datasets, all of which are there; None for any other folder.

    Raises:
        DataError: the list of splits cannot be read, or the folder lacks one of them.
    """
    file = folder / _SPLITS
    if not os.path.isfile(file):
        return None
    splits = _read_json(file).get("splits")
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise DataError(f"{file} has no list of splits; save the data again with save_to_disk")
    for split in splits:
        if not is_saved(folder / split):
            raise DataError(f"{file} names the split {split}, but {folder / split / _STATE} does not exist; copy it there")
    return splits


def read_saved(folder: Path, names: ColumnNames) -> Table:
    """One saved dataset, which is read as far as its rows are.

    Raises:
        DataError: here or with a row: it cannot be read, or a file of it is missing or damaged.
    """
    state, columns = _read_json(folder / _STATE), list[str]()
    if state.get("_indices_data_files"):
        raise DataError(f"{folder} was saved with indices by an old version of datasets; load it and save it again")
    rows = _rows(_data_files(folder, state), names, columns)
    return Table(folder, columns, rows, split=str(state.get("_split") or ""))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        regular_file(file)
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise DataError(f"{file} is not what datasets writes with save_to_disk")
    return value


def _data_files(folder: Path, state: dict[str, Any]) -> list[Path]:
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError):
        raise DataError(f"{folder / _STATE} names no data files; save the data again with save_to_disk") from None
    for name in names:
        if Path(name).name != name or not os.path.isfile(folder / name):
            raise DataError(f"{folder / _STATE} names {name}, which is not a file in that folder; copy it there")
    return [folder / name for name in names]


def _rows(files: list[Path], names: ColumnNames, columns: list[str]) -> Iterator[Row]:
    """The rows of Arrow streams with the same columns, which are filled in."""
    import pyarrow

    for file in files:
        try:
            with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as reader:
                columns += [] if columns else reader.schema.names
                if reader.schema.names != columns:
                    raise DataError(
                        f"{file} has other columns than the files before it; save the data again with save_to_disk"
                    )
                refuse_repeats(columns, str(file), names)
                known = [*filter(names.knows, columns)]
                yield from rows_of_batches(file, (batch.select(known) for batch in reader))
                source.seek(source.size() - len(_END_OF_STREAM))
                whole = source.read() == _END_OF_STREAM  # pyarrow takes a stream that is cut between two batches as whole
        except (pyarrow.ArrowException, ValueError, OSError) as error:
            raise DataError(f"{file} is not a valid Arrow file: {' '.join(str(error).split())[:300]}") from None
        if not whole:
            raise DataError(f"{file} is cut off: its end is missing; copy it again")
