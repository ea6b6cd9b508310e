"""The doctor before a run, on a sound and on a broken one, and with what is no run."""

import sys
from pathlib import Path

import pytest

from tests.commands import run, small_run
from tests.conftest import WriteCorpus, numbered_corpus

pytestmark = pytest.mark.e2e
DOCTOR = [sys.executable, "launcher/doctor.py"]


def test_before_a_run_it_looks_at_machine_and_data(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path) -> None:
    arguments = numbered_corpus(training=16)
    arguments["training", "theme", "debate-0", "pro", 90, "point"] = "a point that nobody answers"
    corpus = write_corpus(arguments)
    told = run([*DOCTOR, *small_run(tiny_bert, corpus, tmp_path / "run")])
    assert told.returncode == 0, told.stderr
    for name in ("versions", "data", "memory", "disk", "launchers", "GPUs", "slurm", "W&B"):
        assert f"\n{name} " in told.stdout
    assert "point without a counter (dropped)" in told.stdout
    assert not (tmp_path / "run").exists()

    refused = run([*DOCTOR, *small_run(tiny_bert, corpus, tmp_path / "run", train__global_batch_size=64)])
    assert refused.returncode == 2
    assert "64 is more than the 16 training pairs" in refused.stderr


def test_a_folder_without_a_run_is_one_sentence(tmp_path: Path) -> None:
    told = run([*DOCTOR, str(tmp_path)])
    assert (told.returncode, told.stdout) == (2, "")
    assert (
        told.stderr
        == f"error: {tmp_path} is no run's folder: it holds no config.toml; give the folder that run.dir named\n"
    )
