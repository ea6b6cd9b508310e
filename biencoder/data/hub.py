"""Datasets of the Hugging Face hub, read through the library `datasets`: `hf:owner/name`, or `hf:owner/name:config`.

The library loads them into its own cache, maps them into memory, and reads them from there without a network.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from biencoder.data.columns import ColumnNames
from biencoder.data.tables import Table, refuse_repeats, rows_of_batches
from biencoder.errors import DataError

_PREFIX = "hf:"
_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?")
_BATCH = 4096
"""Rows that are read at once."""
_NO_NETWORK = (OSError, ConnectionError)


def on_hub(path: str | Path) -> bool:
    """Whether this names a dataset of the hub, and no file."""
    return str(path).startswith(_PREFIX)


def hub_repository(path: str) -> str:
    """`owner/name` of what `hf:owner/name:config` names; empty for a path."""
    asked = _NAME.fullmatch(path.removeprefix(_PREFIX)) if on_hub(path) else None
    return asked["name"] if asked else ""


def hub_splits(name: str) -> dict[str, Callable[[Path, ColumnNames], Table]]:
    """A reader of each split of a dataset.

    Args:
        name: such as `hf:owner/name`.

    Raises:
        DataError: the library or the dataset is not there.
    """
    asked = _NAME.fullmatch(name.removeprefix(_PREFIX))
    if asked is None:
        raise DataError(f"{name} is no name on the hub; expected hf:owner/name or hf:owner/name:config")
    loaded = _load(name, asked["name"], asked["config"])
    return {str(split): _reader(f"{name}/{split}", part) for split, part in loaded.items()}


def _load(shown: str, name: str, config: str | None) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(f"{shown} needs the package datasets: pip install datasets") from None
    try:
        return datasets.load_dataset(name, config)
    except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
        reason = f"there is no such dataset, or you may not read it ({_line(error)})"
    except _NO_NETWORK as error:
        reason = f"the hub cannot be reached, and the cache of datasets does not hold it ({_line(error)})"
    except Exception as error:  # noqa: BLE001 - the library's own errors have many classes
        reason = _line(error)
    raise DataError(f"{shown} cannot be loaded: {reason}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _reader(shown: str, part: Any) -> Callable[[Path, ColumnNames], Table]:
    def read(_: Path, names: ColumnNames) -> Table:
        columns, path = list(part.column_names), Path(shown)
        refuse_repeats(columns, shown, names)
        known = part.select_columns([*filter(names.knows, columns)]).with_format("arrow")
        tables = known.iter(batch_size=_BATCH)
        return Table(path, columns, rows_of_batches(path, (batch for table in tables for batch in table.to_batches())))

    return read
