"""A hook of mkdocs: draws the Mermaid diagrams of a page when the site is built, so that reading it needs no script."""

import re
from typing import Any

import mermaidx

_BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each block of a page by its drawing."""
    return _BLOCK.sub(lambda block: drawing(block[1]), markdown)


def drawing(source: str) -> str:
    """An SVG in a box, as one block of HTML without empty lines, at which Markdown would end it."""
    lines = (line for line in str(mermaidx.render(source).svg()).splitlines() if line.strip())
    return '<div class="diagram">' + "".join(lines) + "</div>"
