"""Real processes: collectives, errors that reach every rank with one message, and ranks that vanish or fall silent."""

import ast
import os
import sys
import time
from pathlib import Path

import pytest

from tests.commands import under_way
from tests.launch import Ended, run_ranks
from tests.processes import Forked

pytestmark = pytest.mark.ranks


def messages(ends: list[Ended]) -> list[str]:
    return [line for end in ends for line in end.stderr.splitlines() if line.startswith("error: ")]


def test_a_command_of_the_tests_is_forked_and_ends_like_a_new_interpreter() -> None:
    """One environment variable of the tests that a library reads at its import, and every start would take 10 s."""
    with under_way(
        [sys.executable, "-c", "import os, sys; print(os.getsid(0), *sys.argv[1:]); sys.exit(7)", "a"]
    ) as process:
        assert isinstance(process, Forked)
        out, err = process.communicate(timeout=30)
        assert (out, err, process.returncode) == (f"{process.pid} a\n", "", 7)
        assert process.pid != os.getpid()


@pytest.mark.parametrize("size", [1, 3])
def test_collectives(size: int) -> None:
    ends, _ = run_ranks("world.collectives", size)
    assert [end.code for end in ends] == [0] * size, ends
    for rank, end in enumerate(ends):
        assert ast.literal_eval(end.stdout) == {
            "together": rank,
            "on_main": "from 0",
            "ids": [0, 7, 14, 21, 28],
            "mean": sum(range(size)) / size,
            "sum": sum(range(size)),
            "kept": "by 0" if rank == 0 else None,
            "gathered": [float(r) for r in range(size)] if rank == 0 else None,
        }


@pytest.mark.parametrize("other", [False, True])
def test_the_ranks_of_a_machine_share_one_file_of_texts(tmp_path: Path, other: bool) -> None:
    ends, _ = run_ranks("world.texts_shared", 3, cache=str(tmp_path), other=other)
    assert [end.code for end in ends] == [0, 0, 0], ends
    before, after, texts = zip(*(ast.literal_eval(end.stdout) for end in ends), strict=True)
    assert len(set(before)) == 3
    assert after == (before[0], before[0], before[2] if other else before[0])
    assert texts == (["a", "b", "d"], ["a", "b", "d"], ["a", "b", "c" if other else "d"])


@pytest.mark.parametrize("shared", [False, True])
def test_machines_that_share_a_folder_make_tokens_once(tmp_path: Path, tiny_bert: Path, shared: bool) -> None:
    ends, _ = run_ranks("world.tokens_shared", 3, cache=str(tmp_path), model=str(tiny_bert), shared=shared)
    assert [end.code for end in ends] == [0, 0, 0], ends
    made, tokens, left = zip(*(ast.literal_eval(end.stdout) for end in ends), strict=True)
    assert made == ((2, 0, 0) if shared else (2, 2, 2))
    assert tokens[0] == tokens[1] == tokens[2]
    assert left == ([""], [""], [""])  # the entry alone


@pytest.mark.parametrize("rank", [0, 2])
def test_a_user_error_on_one_rank_is_one_sentence_and_exit_code_2_on_all(rank: int) -> None:
    ends, _ = run_ranks("world.one_fails_together", 3, rank=rank, kind="user")
    assert [end.code for end in ends] == [2, 2, 2]
    assert messages(ends) == ["error: file x is bad"]
    assert not any("Traceback" in end.stderr for end in ends)


def test_a_bug_on_one_rank_is_named_once_on_all() -> None:
    ends, _ = run_ranks("world.one_fails_together", 3, rank=1, kind="bug")
    assert [end.code for end in ends] == [1, 1, 1]
    assert messages(ends) == ["error: rank 1: ZeroDivisionError: surprise"]
    assert [end.stderr.count("Traceback") for end in ends] == [0, 1, 0]


def test_an_exception_in_rank_0s_search_ends_four_ranks_within_15_seconds() -> None:
    ends, _ = run_ranks("world.main_fails", 4)
    seconds = time.time() - float(ends[0].stdout)
    assert [end.code for end in ends] == [1] * 4
    assert messages(ends) == ["error: rank 0: MemoryError: index does not fit"]
    assert seconds < 15


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_alone_ends_the_others_though_they_wait(rank: int) -> None:
    ends, seconds = run_ranks("world.one_fails_alone", 3, rank=rank)
    assert all(end.code != 0 for end in ends)
    assert sum("ValueError: step went wrong" in end.stderr for end in ends) == 1
    assert seconds < 45


@pytest.mark.parametrize(("rank", "where"), [(1, "training"), (0, "training"), (2, "mining"), (0, "mining")])
def test_a_killed_rank_is_named_and_ends_the_others(rank: int, where: str) -> None:
    ends, _ = run_ranks("world.one_is_killed", 3, rank=rank, where=where)
    seconds = time.time() - float(ends[rank].stdout)
    assert ends[rank].code == -9
    assert all(end.code not in (0, -9) for r, end in enumerate(ends) if r != rank)
    assert len(messages(ends)) == 1
    assert messages(ends)[0].startswith(f"error: rank {rank} (")
    assert seconds < 30


def test_a_rank_that_stops_answering_is_named_with_what_it_did() -> None:
    ends, seconds = run_ranks("world.one_stops_answering", 3, rank=1, left_behind=1)
    assert len(messages(ends)) == 1
    assert "rank 1 (" in messages(ends)[0]
    assert seconds < 50
    assert "last: training step 12" in messages(ends)[0]


def test_rank_0_may_work_longer_than_the_training_limit() -> None:
    ends, _ = run_ranks("world.main_works_longer_than_the_training_limit", 2)
    assert [(end.code, end.stdout.strip()) for end in ends] == [(0, "mined")] * 2
