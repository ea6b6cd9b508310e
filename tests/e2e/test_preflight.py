"""`--preflight` as a user types it: one table, one sentence where something is wrong, and nothing left behind."""

import socket
import sys
from pathlib import Path

import pytest

from tests.commands import small_run, train
from tests.conftest import WriteCorpus, numbered_corpus
from tests.launch import rank_environment
from tests.processes import free_port, start

pytestmark = pytest.mark.e2e

NAMES = (
    "ranks",
    "versions",
    "round trip",
    "bandwidth",
    "clocks",
    "shared filesystem",
    "configuration",
    "data",
    "model",
    "memory",
    "disk",
)


def rows_of(output: str) -> dict[str, tuple[str, str]]:
    """Name → (verdict, finding) of the printed table; a finding goes on in lines that begin with spaces."""
    rows: dict[str, tuple[str, str]] = {}
    last = ""
    for line in output.splitlines():
        name = next((name for name in NAMES if line.startswith(f"{name}  ")), None)
        if name:
            last, (verdict, *words) = name, line.removeprefix(name).split()
            rows[name] = (verdict, " ".join(words))
        elif last and line.startswith(" "):
            rows[last] = (rows[last][0], f"{rows[last][1]} {line.strip()}")
    return rows


def test_two_ranks_are_checked_and_nothing_is_left(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path) -> None:
    corpus, run_dir = write_corpus(numbered_corpus(training=24)), tmp_path / "run"
    before = sorted(tmp_path.rglob("*"))
    done = train(*small_run(tiny_bert, corpus, run_dir), "--preflight", launcher="ranks")
    assert done.returncode == 0, done.stderr
    assert "error:" not in done.stderr
    rows = rows_of(done.stdout)
    assert tuple(rows) == NAMES
    assert {name: verdict for name, (verdict, _) in rows.items() if name not in ("ranks", "disk")} == dict.fromkeys(
        set(NAMES) - {"ranks", "disk"}, "ok"
    )
    assert "2 on 1 host; " in rows["ranks"][1]
    assert "ranks 0-1 (" in rows["ranks"][1]
    assert "control group (gloo)" in rows["round trip"][1]
    assert "GB/s" in rows["bandwidth"][1]
    assert "2 x 1 x 4 = 8 triplets; ZeRO stage 1 in fp32" in rows["configuration"][1]
    assert "24 training, 4 validation" in rows["data"][1]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bad_batch_is_a_row_and_one_sentence(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path) -> None:
    corpus, run_dir = write_corpus(numbered_corpus(training=12)), tmp_path / "run"
    wrong = small_run(tiny_bert, corpus, run_dir, train__global_batch_size=7, train__micro_batch_size=2)
    done = train(*wrong, "--preflight")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: 1 of 11 checks failed: configuration (train.global_batch_size 7 is not a multiple"
    )
    assert done.stderr.count("\n") == 1
    rows = rows_of(done.stdout)
    assert tuple(rows) == NAMES
    assert rows["configuration"][0] == "fail"
    assert rows["round trip"] == ("ok", "one rank: nothing to measure")
    assert rows["data"][0] == rows["model"][0] == "ok"
    assert not run_dir.exists()


def test_what_fails_on_one_rank_is_told_by_rank_0(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path) -> None:
    """The ranks of two nodes whose data and settings differ: neither waits for the other."""
    corpus, run_dir, port = write_corpus(numbered_corpus(training=12)), tmp_path / "run", free_port()
    settings = [{}, {"data__root": tmp_path / "nowhere", "run__seed": 1}]
    processes = [
        start(
            [sys.executable, "launcher/train.py", *small_run(tiny_bert, corpus, run_dir, **own), "--preflight"],
            environment=rank_environment(rank, 2, port),
        )
        for rank, own in enumerate(settings)
    ]
    try:
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [2, 2]
    assert ends[1] == ("", "")
    table, error = ends[0]
    assert error.startswith("error: 2 of 11 checks failed: configuration (data.root is ")
    host = socket.gethostname()
    assert f"run.seed is 0 on rank 0 ({host}) and 1 on rank 1 ({host})" in error
    assert "nowhere does not exist" in error
    assert error.count("\n") == 1
    rows = rows_of(table)
    assert [name for name, (verdict, _) in rows.items() if verdict == "fail"] == ["configuration", "data"]
    assert rows["data"][1].startswith("rank 1 (")
    assert not run_dir.exists()
