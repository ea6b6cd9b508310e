"""Files that are whole or as they were before."""

import os
from pathlib import Path


def replace_file(file: Path, text: str) -> None:
    """Write a file beside its place and move it there: who reads it meanwhile finds the old content or the new one.

    Raises:
        OSError: it cannot be written; what stood there stays.
    """
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, file)
