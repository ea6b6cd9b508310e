"""What a corpus is called, and under which licence it says it stands; for the model card.

Nothing here asks the hub: the card of a dataset is in huggingface_hub's cache once `datasets` has loaded it.
"""

import re
from pathlib import Path

from huggingface_hub import DatasetCard, try_to_load_from_cache

from biencoder.config.paths import find_file
from biencoder.data.hub import hub_repository

_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md")
_HEADING = re.compile(r"^#+ *licen[cs]e[ :]*$\s*(.+)", re.IGNORECASE | re.MULTILINE)
_LONGEST = 160


def corpus_name(root: str) -> str:
    """`owner/name` of a dataset on the hub, else the last part of the path."""
    return hub_repository(root) or Path(root).name


def corpus_licence(root: str) -> str:
    """What its README.md names in the front matter, or below a heading; or the first line of its LICENSE; else empty.

    Args:
        root: as `data.root`.
    """
    repository, folder = hub_repository(root), find_file(root)
    if repository:
        cached = try_to_load_from_cache(repository, "README.md", repo_type="dataset")
        return _stated(Path(cached)) if isinstance(cached, str) else ""
    if not folder.is_dir():
        return ""
    own = (_first_line(folder / name) for name in _LICENCES)
    return _stated(folder / "README.md") or next(filter(None, own), "")


def _stated(readme: Path) -> str:
    """The licence in the front matter, as on the hub, or in the first line below a heading; empty without."""
    try:
        text = readme.read_text(encoding="utf-8")
        data = DatasetCard(text, ignore_metadata_errors=True).data.to_dict()  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - somebody's file, whose YAML may hold anything
        return ""
    found = data.get("license")
    if found == "other":
        found = data.get("license_name") or found
    names = found if isinstance(found, list) else [found]
    below = _HEADING.search(text)
    return _cut(", ".join(name for name in names if isinstance(name, str)) or (below[1] if below else ""))


def _first_line(file: Path) -> str:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return _cut(next((line.strip("# \t") for line in lines if line.strip("# \t")), ""))


def _cut(text: str) -> str:
    """In one cell of a table."""
    return " ".join(text.replace("|", "/").split())[:_LONGEST]
