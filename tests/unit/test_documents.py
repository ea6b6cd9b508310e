"""What is printed about the program in its documents is what the program is."""

import re
from pathlib import Path

import pytest

import biencoder
from biencoder.config.keys import describe
from biencoder.config.paths import PROJECT_ROOT
from docs import configuration, names

DOCS = PROJECT_ROOT / "docs"
MARKDOWN = [
    *(PROJECT_ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "ds_configs/README.md")),
    *sorted((PROJECT_ROOT / "examples").glob("**/README.md")),
    *sorted(DOCS.rglob("*.md")),
]
LINK = re.compile(r"\]\((?!https?://)([^)\s]+)\)")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def headings(file: Path) -> set[str]:
    """The anchors that a page's headings get."""
    titles = re.findall(r"^#+ (.*)$", without_code(file.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w]+", "-", title.lower()).strip("-") for title in titles}


def test_the_page_of_keys_is_the_one_that_the_code_makes() -> None:
    assert configuration.PAGE.read_text(encoding="utf-8") == configuration.page(), "run `python docs/configuration.py`"


def test_every_key_is_on_it_once_with_its_recipes() -> None:
    rows = configuration.page().splitlines()
    for key in describe():
        (row,) = (row for row in rows if row.startswith(f"| `{key}` |"))
        for recipe in configuration.recipes_of_keys().get(key, []):
            assert Path(f"configs/{recipe}.toml").is_file()
            assert recipe in row


@pytest.mark.parametrize("file", names.PAGES, ids=lambda file: file.stem)
def test_metrics_and_exit_codes_are_those_of_the_code(file: Path) -> None:
    assert file.read_text(encoding="utf-8") == names.PAGES[file](), "run `python docs/names.py`"


def test_every_public_name_is_in_the_reference() -> None:
    page = (DOCS / "reference/python.md").read_text(encoding="utf-8")
    assert [name for name in biencoder.__all__ if name != "__version__" and f"::: biencoder.{name}\n" not in page] == []


@pytest.mark.parametrize("file", MARKDOWN, ids=lambda file: str(file.relative_to(PROJECT_ROOT)))
def test_links_lead_to_files_and_headings_that_exist(file: Path) -> None:
    broken = []
    for target in LINK.findall(without_code(file.read_text(encoding="utf-8"))):
        path, _, heading = target.partition("#")
        to = (file.parent / path).resolve() if path else file
        if not to.exists() or (heading and heading not in headings(to)):
            broken.append(target)
    assert not broken


def test_every_page_has_a_place_in_the_site() -> None:
    places = set(re.findall(r": (\S+\.md)$", (PROJECT_ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert places == {str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md")}


def test_a_diagram_is_one_block_of_html_without_scripts() -> None:
    pytest.importorskip("mermaidx")
    from docs import blocks

    page = blocks.on_page_markdown("before\n\n```mermaid\nflowchart TD\n  a[one] --> b[two]\n```\n\nafter")
    before, drawing, after = page.split("\n\n")
    assert (before, after) == ("before", "after")
    assert drawing.startswith('<div class="diagram"><svg')
    assert "<script" not in drawing
    assert "http" not in drawing.replace("http://www.w3.org/", "")


def test_a_block_that_is_a_file_is_titled_with_its_name() -> None:
    pytest.importorskip("mermaidx")
    from docs import blocks

    page = "```json mine/a.jsonl\n{}\n```\n```bash\nls\n```\n"
    assert blocks.on_page_markdown(page) == page.replace("json mine/a.jsonl", 'json title="mine/a.jsonl"')
