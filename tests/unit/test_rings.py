"""The rings of tests (unit, ranks, e2e, cluster) share what stands in tests/ itself, and nothing of each other."""

import re
from pathlib import Path

import pytest

RINGS = ("unit", "ranks", "e2e", "cluster")


@pytest.mark.parametrize("ring", RINGS)
def test_a_ring_imports_no_other(ring: str) -> None:
    others = "|".join(other for other in RINGS if other != ring)
    for file in Path("tests", ring).rglob("*.py"):
        assert not re.search(rf"^\s*(from|import) tests\.({others})\b", file.read_text(encoding="utf-8"), re.MULTILINE), (
            file
        )
