"""What another machine has written into a shared folder is not seen at once."""

import time
from collections.abc import Callable

_WITHIN_S = 5.0
"""In which file servers show it."""


def appears(is_there: Callable[[], bool], *, within_s: float = _WITHIN_S) -> bool:
    """Whether something comes to be seen from here in time. An OSError of `is_there` counts as not yet."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if is_there():
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
