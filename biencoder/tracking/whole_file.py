"""Atomic replacement of a file."""

import os
from pathlib import Path


def replace_file(file: Path, text: str) -> None:
    """Write beside the file, then rename: readers see the old content or the new content, never a part.

    Raises:
        OSError: it cannot be written; the old content stays.
    """
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, file)
