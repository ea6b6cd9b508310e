"""Files of one JSON object a line, appended to by a process that may be killed at any byte.

A line is whole once its newline is written. Readers skip a torn last line; writers cut it off first.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from biencoder.errors import tell

Line = Mapping[str, Any]
"""One JSON object of a record."""


def whole_end(content: bytes) -> int:
    """Where the last whole line ends, a position in bytes."""
    return content.rfind(b"\n") + 1


def parsed_lines(content: bytes) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Number (from 1) and object of every whole line; None for a line that holds no object."""
    for number, line in enumerate(content[: whole_end(content)].split(b"\n")[:-1], 1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        yield number, value if isinstance(value, dict) else None


def whole_lines(content: bytes, name: object) -> Iterator[dict[str, Any]]:
    """The objects of all whole lines. A line that holds none is skipped, with a warning that names it."""
    for number, line in parsed_lines(content):
        if line is None:
            tell(f"warning: line {number} of {name} is no JSON object and is passed over")
        else:
            yield line


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file's whole lines; an empty list if the file does not exist."""
    return list(whole_lines(file.read_bytes(), file)) if file.exists() else []


def append_json_line(file: Path, line: dict[str, Any]) -> None:
    """Write one more line and flush it to the disk; a torn line before it is cut off, with a warning.

    Raises:
        OSError: the file cannot be written.
    """
    file.touch()
    with file.open("r+b") as lines:
        content = lines.read()
        end = whole_end(content)
        if end < len(content):
            say_cut(file, len(content) - end)
        lines.truncate(end)
        lines.seek(end)
        lines.write(json.dumps(line).encode() + b"\n")
        lines.flush()
        os.fsync(lines.fileno())


def say_cut(file: object, num_bytes: int) -> None:
    tell(
        f"warning: the last line of {file} was not whole ({num_bytes} bytes) and is cut off: a start before this one was "
        "killed, or its machine lost power, while it wrote"
    )
