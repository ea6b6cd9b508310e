"""A micro-batch that does not fit: half of it, with the same global batch, by itself."""

from pathlib import Path

import pytest

from tests.commands import records, small_run
from tests.conftest import WriteCorpus, numbered_corpus
from tests.launch import run_ranks

pytestmark = pytest.mark.ranks


@pytest.fixture
def arguments(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path) -> list[str]:
    corpus = write_corpus(numbered_corpus(training=33, validation=9))
    return small_run(tiny_bert, corpus, tmp_path / "run", train__epochs=1, model__dropout=0.0)


def test_one_process_starts_again_with_half_until_it_fits(arguments: list[str], tmp_path: Path) -> None:
    (end,), _ = run_ranks("runs.run_on_a_small_gpu", 1, arguments=arguments, room=2)
    assert end.code == 0, end.stderr[-2000:]
    stopped = [line for line in end.stderr.splitlines() if line.startswith("stopped: ")]
    assert [line.split("does not fit")[0] for line in stopped] == [
        "stopped: a micro-batch of 8 triplets ",
        "stopped: a micro-batch of 4 triplets ",
    ]
    events = [e["detail"] for e in records(tmp_path / "run", "event") if e["event"] == "smaller micro-batch"]
    assert events == ["of 2 triplets, as more did not fit"]
    other = [*arguments, "--run.dir", str(tmp_path / "straight"), "--train.micro_batch_size", "2"]
    (end,), _ = run_ranks("runs.run_on_a_small_gpu", 1, arguments=other, room=2)
    assert (end.code, "does not fit" in end.stderr) == (0, False), end.stderr[-2000:]
    losses, expected = ([r["train/loss"] for r in records(tmp_path / name, "step")] for name in ("run", "straight"))
    assert losses == expected
    assert len(losses) == 4


def test_all_ranks_end_with_one_sentence_and_the_next_start_takes_half(arguments: list[str], tmp_path: Path) -> None:
    ends, _ = run_ranks("runs.run_on_a_small_gpu", 2, arguments=arguments, room=3)
    assert [end.code for end in ends] == [76, 76], ends[0].stderr[-2000:]
    said = [line for end in ends for line in end.stderr.splitlines() if "does not fit the GPU" in line]
    assert len(said) == 1, said
    assert "rank 1: a micro-batch of 4 triplets" in said[0]
    assert "the next start takes 2 with the same global batch" in said[0]
    ends, _ = run_ranks("runs.run_on_a_small_gpu", 2, arguments=arguments, room=3)
    assert [end.code for end in ends] == [0, 0], ends[0].stderr[-2000:]
    assert len(records(tmp_path / "run", "step")) == 4


def test_one_triplet_too_many_is_an_error_with_advice(arguments: list[str]) -> None:
    (end,), _ = run_ranks("runs.run_on_a_small_gpu", 1, arguments=[*arguments, "--train.micro_batch_size", "1"], room=0)
    assert (end.code, end.stderr.count("error: not even one triplet fits the GPU")) == (2, 1), end.stderr[-2000:]
