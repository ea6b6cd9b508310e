"""Folders that are complete or absent: written beside their final path, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from biencoder.config.paths import user_path
from biencoder.errors import ConfigError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which replaces `folder` at the end of the block. If the block raises, `folder` stays."""
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
    """Move the folder, if it exists, aside for `put_back`."""
    if folder.exists():
        shutil.rmtree(_aside(folder), ignore_errors=True)
        os.rename(folder, _aside(folder))


def put_back(folder: Path) -> None:
    """Restore a folder that was set aside; do nothing if there is none."""
    if _aside(folder).exists():
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(_aside(folder), folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.aside")


def output_folder(path: str, mark: str) -> Path:
    """The folder that a command may write to: it does not exist, is empty, or holds an earlier output of the command.

    Args:
        mark: a file that every output of the command has.

    Raises:
        ConfigError: the folder holds something else.
    """
    folder = user_path(path).resolve()
    if folder.exists() and not (folder / mark).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"--out {folder} exists and is no output of this command (it has no {mark}); choose another")
    return folder
