"""A hook of mkdocs for the blocks of a page that it does not know.

A Mermaid diagram is drawn when the site is built, so that reading it needs no script. A block that is the content of a file
(```json mine/train.jsonl) gets the file's name as its title.
"""

import re
from typing import Any

import mermaidx

_DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"^```(\w+) ([\w./-]+)$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page in Markdown that mkdocs knows."""
    numbered = iter(range(len(markdown)))
    drawn = _DIAGRAM.sub(lambda block: drawing(block[1], name=f"diagram-{next(numbered)}"), markdown)
    return _FILE.sub(r'```\1 title="\2"', drawn)


def drawing(source: str, *, name: str) -> str:
    """An SVG in a box, as one block of HTML without empty lines, at which Markdown would end it.

    Args:
        name: an id that no other drawing of the page has, since the drawing's style refers to it.
    """
    lines = str(mermaidx.render(source).svg()).replace("my-svg", name).splitlines()
    return '<div class="diagram">' + "".join(line for line in lines if line.strip()) + "</div>"
