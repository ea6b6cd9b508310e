"""One process at a time works in a run's folder: a lock file that names its holder, on any file system.

    lock = take_lock(folder, lost=...)      # or a ConfigError that says who holds it
    lock.release()

The file appears at once and whole: it is written under another name and hard-linked, which NFS and Lustre do atomically, or
created exclusively where there are no hard links. A holder that is gone loses it:

- on this machine (same boot, same process namespace) a process is gone when no process has its number and start;
- elsewhere it is gone when it has not touched the file for `STALE_S`. A holder touches it every `HEARTBEAT_S`. Both times
  are the file server's, so clocks of machines do not count.

A holder that finds somebody else's lock in its place, say after it was suspended for minutes, ends its run at once.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from biencoder.errors import ConfigError, tell

NAME = "lock.json"
HEARTBEAT_S = 5.0
STALE_S = 120.0


@dataclass(frozen=True, slots=True)
class Holder:
    host: str
    pid: int
    process_start: str
    """In the kernel's ticks since its boot: with the number, it names one process."""
    kernel: str
    """Boot and process namespace in which `pid` is counted; empty where they are unknown."""
    since: str
    token: str

    @classmethod
    def this_process(cls) -> "Holder":
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        return cls(socket.gethostname(), os.getpid(), _process_start(os.getpid()), _kernel(), since, secrets.token_hex(8))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.since}"

    def is_gone(self) -> bool | None:
        """Whether the process has ended, or is this one; None where that cannot be seen from here."""
        if not self.kernel or self.kernel != _kernel():
            return None
        return self.pid == os.getpid() or _process_start(self.pid) != self.process_start


@dataclass(frozen=True, slots=True)
class _LockFile:
    holder: Holder | None
    """None where the file cannot be understood."""
    touched_ns: int


class RunLock:
    """A lock that is held, from its making to `release`."""

    def __init__(self, file: Path, holder: Holder, lost: Callable[[str], None], *, heartbeat_s: float) -> None:
        self._file, self._holder, self._lost, self._heartbeat_s = file, holder, lost, heartbeat_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        """What stands in this lock's file and in no other."""
        return self._holder.token

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(OSError):
            if self._is_mine():
                self._file.unlink()

    def _is_mine(self) -> bool:
        lock = _look(self._file)
        return lock is not None and lock.holder == self._holder

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_s):
            with suppress(OSError):  # a file server that is away now is asked again
                lock = _look(self._file)
                if lock is None:
                    _place(self._file, self._holder)  # somebody has removed it by hand
                elif lock.holder is None or lock.holder == self._holder:
                    os.utime(self._file)  # to the server's time
                else:
                    self._lost(
                        f"{self._file.parent} was taken over by {lock.holder}, as this process had not been heard of"
                    )
                    return


def take_lock(
    folder: Path, *, lost: Callable[[str], None], heartbeat_s: float = HEARTBEAT_S, stale_s: float = STALE_S
) -> RunLock:
    """Make the folder, and hold it. Waits up to `stale_s` where a holder elsewhere may be gone or not.

    Args:
        lost: called with a sentence, from a thread, should somebody else take over; it ends the run.

    Raises:
        ConfigError: somebody works there, or the folder cannot be written.
    """
    holder, file = Holder.this_process(), folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _acquire(file, holder, stale_s=stale_s)
    except OSError as error:
        raise ConfigError(f"run.dir {folder} cannot be written: {error.strerror}") from None
    return RunLock(file, holder, lost, heartbeat_s=heartbeat_s)


def has_lock(folder: Path, token: str) -> bool:
    """Whether the lock with this token is seen in the folder from here."""
    lock = _look(folder / NAME)
    return lock is not None and lock.holder is not None and lock.holder.token == token


def _acquire(file: Path, holder: Holder, *, stale_s: float) -> None:
    seen: _LockFile | None = None
    while not _place(file, holder):
        lock = _look(file)
        if lock is None:
            continue
        gone = lock.holder.is_gone() if lock.holder else None
        age_s = (_server_time_ns(file.parent) - lock.touched_ns) / 1e9
        if gone or (gone is None and age_s > stale_s):
            _remove(file, lock)
            continue
        if gone is False or (seen and seen != lock):  # it lives: its file was touched while we looked
            raise ConfigError(
                f"run.dir {file.parent} is in use by {lock.holder or 'a process that has just started'}; wait for it, end "
                "it, or choose another run.dir"
            )
        if seen is None:
            tell(
                f"waiting for up to {stale_s - age_s:.0f} s: run.dir {file.parent} was in use by {lock.holder} "
                f"{max(0.0, age_s):.0f} s ago"
            )
        seen = lock
        time.sleep(min(1.0, stale_s / 10))


def _place(file: Path, holder: Holder) -> bool:
    """Put the lock there, whole, unless there is one."""
    content = json.dumps(asdict(holder)).encode()
    beside = file.with_name(f".lock-{holder.token}")
    _write_new(beside, content)
    try:
        os.link(beside, file)
        return True
    except FileExistsError:
        return beside.stat().st_nlink > 1  # NFS: done, but its answer was lost and the call repeated
    except OSError:  # a file system without hard links
        try:
            _write_new(file, content)
        except FileExistsError:
            return False
        return True
    finally:
        beside.unlink(missing_ok=True)


def _write_new(file: Path, content: bytes) -> None:
    with file.open("xb") as new:
        new.write(content)
        new.flush()
        os.fsync(new.fileno())


def _look(file: Path) -> _LockFile | None:
    """What is there; it is opened, as NFS asks the server for a file's times only then."""
    try:
        with file.open("rb") as stream:
            content, touched_ns = stream.read(), os.fstat(stream.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    try:
        return _LockFile(Holder(**json.loads(content)), touched_ns)
    except (ValueError, TypeError):
        return _LockFile(None, touched_ns)


def _remove(file: Path, lock: _LockFile) -> None:
    """Break a lock, and put it back should it be another one by now: of two that break it only one may succeed."""
    aside = file.with_name(f".lock-broken-{secrets.token_hex(8)}")
    with suppress(FileNotFoundError):
        os.rename(file, aside)
        now = _look(aside)
        if now and now.holder != lock.holder:
            with suppress(OSError):
                os.link(aside, file)
        elif lock.holder and lock.holder.pid != os.getpid():
            tell(f"warning: {file.parent} was left by {lock.holder}, which is gone")
        aside.unlink(missing_ok=True)


def _server_time_ns(folder: Path) -> int:
    probe = folder / f".lock-{secrets.token_hex(8)}"
    probe.touch()
    try:
        os.utime(probe)
        return probe.stat().st_mtime_ns
    finally:
        probe.unlink(missing_ok=True)


def _kernel() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Empty where there is no such process, or only what is left of one until its parent looks."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else fields[18]  # field 22 of the whole line
