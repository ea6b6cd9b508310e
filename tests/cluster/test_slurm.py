"""The batch scripts on a real Slurm of two nodes."""

from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.conftest import WriteCorpus, numbered_corpus
from tests.e2e.commands import BIN, records, small_run

pytestmark = pytest.mark.cluster

SCRIPTS = ("slurm/train.sh", "slurm/deepspeed.sh")
ENVIRONMENT = {"VENV": str(BIN.parent), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_job_trains_over_two_nodes(
    slurm: Slurm, tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path, script: str
) -> None:
    corpus, run_dir = write_corpus(numbered_corpus(training=33)), tmp_path / "a run"
    settings = tmp_path / "own.toml"
    settings.write_text("[train]\nepochs = 9\nclip_norm = 0.5\n")  # the command line, which says 2 epochs, wins
    job = slurm.submit(
        script,
        "--config",
        str(settings),
        *small_run(tiny_bert, corpus, run_dir),
        options=["--nodes=2", "--export=ALL,PROCS_PER_NODE=1"],
        env=ENVIRONMENT,
    )
    assert slurm.wait(job) == "COMPLETED", slurm.output(job)
    assert "2 ranks x 1 x 4 = 8 triplets" in slurm.output(job)
    assert len(records(run_dir, "step")) == 8
    assert "clip_norm = 0.5" in (run_dir / "config.toml").read_text()
    assert (run_dir / "model/best/model.safetensors").is_file()
    assert not list(Path.cwd().glob("slurm-*.hosts"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_allocated_gpus_decide_how_many_ranks_start(
    slurm: Slurm, tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path, script: str
) -> None:
    """The GPUs are not real, so the ranks find none and train on the CPU. A bad batch size says how many they were."""
    corpus = write_corpus(numbered_corpus(training=33))
    arguments = small_run(tiny_bert, corpus, tmp_path / "run", train__global_batch_size=7)
    job = slurm.submit(script, *arguments, options=["--nodes=2", "--gpus-per-node=2"], env=ENVIRONMENT)
    assert slurm.wait(job) == "FAILED", slurm.output(job)
    (error,) = [line for line in slurm.output(job).splitlines() if line.startswith("error: ")]
    assert "(1 x 4 = 4)" in error, error
    assert slurm.exit_code(job) != 0  # which one, depends on whether srun ends the other node before it has left by itself


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_missing_environment_is_one_sentence(slurm: Slurm, tmp_path: Path, script: str) -> None:
    job = slurm.submit(script, options=["--nodes=2"], env={"VENV": tmp_path / "nowhere"})
    assert slurm.wait(job, timeout_s=30) == "FAILED"
    assert slurm.exit_code(job) == 2
    (sentence,) = slurm.output(job).splitlines()
    assert sentence.startswith("error: no environment ")
    assert str(tmp_path / "nowhere") in sentence
