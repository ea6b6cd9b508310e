"""Paths as users type them, and where the program's own files lie."""

import os
import sys
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
"""Where the packages are: a checkout, or the site-packages that a wheel was installed into."""
_IN_WHEEL = Path(__file__).resolve().parents[1] / "shipped"
SHIPPED = _IN_WHEEL if _IN_WHEEL.is_dir() else PROJECT_ROOT
"""Holds configs/, ds_configs/ and examples/."""
IS_CHECKOUT = SHIPPED is PROJECT_ROOT
"""Whether the program runs from its sources, and not from a wheel."""


def user_path(path: str | Path) -> Path:
    """A path as the user typed it, with `~` resolved; as it stands where there is no such user, and so nothing there."""
    return Path(os.path.expanduser(path))


def find_file(path: str) -> Path:
    """A path as the user typed it: against the working folder first, then among the files of the project."""
    given = user_path(path)
    shipped = SHIPPED / given
    return shipped if not os.path.exists(given) and os.path.exists(shipped) else given


def typed(command: str) -> list[str]:
    """How a user starts a command: `python launcher/search.py` in a checkout, `biencoder-search` where it is installed."""
    if not IS_CHECKOUT:
        return [f"biencoder-{command}"]
    python = os.path.relpath(sys.executable) if sys.executable.startswith(os.getcwd()) else "python"
    return [python, f"launcher/{command}.py"]
