"""How far the memory of this process rises while something runs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_PROCESS = Path("/proc/self")


def peak_growth(work: Callable[[], Any]) -> int:
    """Bytes of resident memory that `work` takes at its peak above what there was. Blocks of over 32 MiB alone are sure to
    be seen: smaller ones may find place in memory that was freed before."""
    try:
        (_PROCESS / "clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        pytest.skip("this system does not tell the peak of a process's memory")
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", (_PROCESS / "status").read_text())
    assert found
    return int(found[1]) * 1024
