"""Folders that are whole or not there: written beside their place, then moved to it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from biencoder.config import user_path
from biencoder.errors import ConfigError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into. At the end of the block it takes the place of `folder`; until then, and for good if the
    block fails, stays what stood there."""
    fresh, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.rename(folder, old)
        os.rename(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def set_aside(folder: Path) -> None:
    """Move the folder, if there is one, to where `put_back` finds it."""
    if folder.exists():
        shutil.rmtree(_aside(folder), ignore_errors=True)
        os.rename(folder, _aside(folder))


def put_back(folder: Path) -> None:
    """Let what was set aside take its place again; nothing where nothing was."""
    if _aside(folder).exists():
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(_aside(folder), folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.aside")


def output_folder(given: str, mark: str) -> Path:
    """The folder that a command may write to: there is nothing yet, or what the command wrote before.

    Args:
        mark: a file that every such folder has.

    Raises:
        ConfigError: something else stands there.
    """
    folder = user_path(given).resolve()
    if folder.exists() and not (folder / mark).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(
            f"--out {folder} is there already, and without {mark} it is none of this command's; choose another"
        )
    return folder
