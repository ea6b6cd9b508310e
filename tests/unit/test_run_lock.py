"""One process at a time works in a run's folder; a lock whose holder is gone is broken."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from biencoder.errors import ConfigError
from biencoder.training.recovery.run_lock import NAME, Holder, has_lock, take_lock
from tests.processes import ROOT

HOLD = """
import sys, time
from pathlib import Path
from biencoder.errors import ConfigError
from biencoder.training.recovery.run_lock import take_lock
try:
    lock = take_lock(Path(sys.argv[1]), lost=print)
except ConfigError as error:
    print("refused", error, flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
    lock.release()
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().split(" ")[0].strip()


def never(sentence: str) -> None:
    raise AssertionError(sentence)


def names_left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_lock_is_seen_in_its_own_folder_alone(tmp_path: Path) -> None:
    lock, other = (take_lock(tmp_path / name, lost=never) for name in ("mine", "other"))
    assert has_lock(tmp_path / "mine", lock.token)
    assert not has_lock(tmp_path / "other", lock.token)
    assert not has_lock(tmp_path / "nowhere", lock.token)
    lock.release()
    other.release()
    assert not has_lock(tmp_path / "mine", lock.token)


def test_the_second_start_is_told_who_holds_it_until_that_one_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"
    with holder(folder) as first:
        assert said(first) == "held"
        with pytest.raises(ConfigError) as refused:
            take_lock(folder, lost=never)
        since = json.loads((folder / NAME).read_text())["since"]
        for word in (str(folder), f"process {first.pid} on {os.uname().nodename}", f"started {since}"):
            assert word in str(refused.value)
        os.kill(first.pid, signal.SIGKILL)
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie, as under a launcher that does not look
        start = time.monotonic()
        lock = take_lock(folder, lost=never)
        assert time.monotonic() - start < 1
    with holder(folder) as third:
        assert said(third) == "refused"
    lock.release()
    assert names_left(folder) == []
    with holder(folder) as fourth:
        assert said(fourth) == "held"


def test_of_many_that_find_a_lock_without_a_holder_one_gets_it(tmp_path: Path) -> None:
    with holder(tmp_path) as gone:
        assert said(gone) == "held"
        gone.kill()
    processes = [holder(tmp_path) for _ in range(6)]
    try:
        assert sorted(map(said, processes)) == ["held"] + 5 * ["refused"]
    finally:
        for process in processes:
            process.communicate()
    assert names_left(tmp_path) == []


def test_a_process_that_starts_itself_anew_keeps_it(tmp_path: Path) -> None:
    """As after too large a micro-batch: `exec` leaves its number and its start."""
    mine = Holder.this_process()
    (tmp_path / NAME).write_text(json.dumps(asdict(mine)))
    take_lock(tmp_path, lost=never).release()


@contextmanager
def elsewhere(file: Path, *, beats: bool) -> Iterator[None]:
    """A lock of a process that cannot be seen from here, say on another node."""
    there = replace(Holder.this_process(), host="node7", pid=12, kernel="another")
    file.write_text(json.dumps(asdict(there)))
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            os.utime(file)

    thread = threading.Thread(target=beat)
    if beats:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if beats:
            thread.join()


@pytest.mark.slow
def test_a_holder_on_another_node_is_known_by_its_heartbeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / NAME
    with elsewhere(file, beats=True), pytest.raises(ConfigError, match="in use by process 12 on node7"):
        take_lock(tmp_path, lost=never, stale_s=2)
    with elsewhere(file, beats=False):
        start = time.monotonic()
        take_lock(tmp_path, lost=never, stale_s=1).release()
        assert 0.8 < time.monotonic() - start < 3
    with elsewhere(file, beats=False):
        os.utime(file, (time.time() - 500, time.time() - 500))
        start = time.monotonic()
        take_lock(tmp_path, lost=never).release()
        assert time.monotonic() - start < 0.5
    told = capsys.readouterr().err
    assert "waiting for up to 1 s" in told
    assert "left by process 12 on node7" in told
    file.write_text("")  # as a crash of its node may leave it
    take_lock(tmp_path, lost=never, stale_s=0.3).release()
    assert names_left(tmp_path) == []


@pytest.mark.slow
def test_a_holder_beats_and_ends_when_another_has_taken_over(tmp_path: Path) -> None:
    lost: list[str] = []
    lock, file = take_lock(tmp_path, lost=lost.append, heartbeat_s=0.05), tmp_path / NAME
    os.utime(file, (0, 0))
    time.sleep(0.5)
    assert file.stat().st_mtime > 0
    file.unlink()
    time.sleep(0.5)
    assert json.loads(file.read_text())["pid"] == os.getpid()  # somebody has cleaned up, but nobody else works there
    with elsewhere(file, beats=False):
        time.sleep(0.5)
        assert [sentence for sentence in lost if "taken over by process 12 on node7" in sentence]
        lock.release()
        assert file.exists()


def test_it_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    lock = take_lock(tmp_path, lost=never)
    with holder(tmp_path) as other:
        assert said(other) == "refused"
    lock.release()
    with holder(tmp_path) as other:
        assert said(other) == "held"
        with pytest.raises(ConfigError, match="in use"):
            take_lock(tmp_path, lost=never)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        take_lock(tmp_path / "file" / "run", lost=never)
