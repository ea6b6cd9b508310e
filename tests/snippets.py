"""The blocks of code in README.md, CONTRIBUTING.md and docs/, and what a command in one of them says."""

import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ds_configs/README.md", *sorted(ROOT.glob("docs/**/*.md")))
_BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LAUNCHER = re.compile(r"(?:biencoder-|(?:launcher/)?)(\w+?)(?:\.py)?")
COMMANDS = {path.stem for path in ROOT.glob("launcher/*.py")} - {"__init__", "entry"}


class Snippet(NamedTuple):
    page: Path
    line: int
    kind: str
    name: str
    """Of the file that the block is the content of; mostly empty."""
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets(*kinds: str) -> list[Snippet]:
    """The blocks of these kinds on all pages, in their order."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in _BLOCK.finditer(text):
            if block[1] in kinds:
                found.append(Snippet(page, text[: block.start()].count("\n") + 1, block[1], block[2], block[3]))
    return found


def commands(block: Snippet) -> list[list[str]]:
    """The commands of a bash block, without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def launched(words: list[str]) -> tuple[str, list[str]] | None:
    """The launcher that a command starts by itself, say `search`, and its arguments; None for other commands."""
    if os.path.basename(words[0]) in ("python", "python3"):
        words = words[1:]
    name = _LAUNCHER.fullmatch(words[0])
    return (name[1], words[1:]) if name and name[1] in COMMANDS else None
