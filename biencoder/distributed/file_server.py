"""What another machine has written into a shared folder is not seen at once."""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from biencoder.distributed.world import World

_WITHIN_S = 5.0
"""In which file servers show it."""
MISSED_NAMES_S = 60.0
"""In which a client of NFS forgets that a name was not there when it looked for it."""


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


def sees_rank_0(folder: Path, world: World) -> bool:
    """Whether rank 0, on another machine, has this very folder. Every rank takes part."""
    if world.ranks_on_this_host == world.size:
        return False
    marker = folder / str(world.on_main(lambda: f".{secrets.token_hex(8)}.seen"))
    if world.is_main:
        with suppress(OSError):
            marker.touch()
    world.together(lambda: None)
    seen = world.hosts[world.rank] != world.hosts[0] and appears(marker.exists)
    world.together(lambda: None)
    if world.is_main:
        with suppress(OSError):
            marker.unlink(missing_ok=True)
    return seen
