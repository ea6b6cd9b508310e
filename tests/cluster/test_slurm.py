"""The batch scripts on a real Slurm of two nodes."""

import json
import stat
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.commands import BIN, records, small_run, train, wait_for
from tests.conftest import WriteCorpus, numbered_corpus
from tests.runs import story

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
    assert slurm.restarts(job) == 0
    assert slurm.exit_code(job) != 0  # which one, depends on whether srun ends the other node before it has left by itself


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_missing_environment_is_one_sentence(slurm: Slurm, tmp_path: Path, script: str) -> None:
    job = slurm.submit(script, options=["--nodes=2"], env={"VENV": tmp_path / "nowhere"})
    assert slurm.wait(job, timeout_s=30) == "FAILED"
    assert slurm.exit_code(job) == 2
    (sentence,) = slurm.output(job).splitlines()
    assert sentence.startswith("error: no environment ")
    assert str(tmp_path / "nowhere") in sentence


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for split, count in (("train", 96), ("validation", 9)):
        pairs = [{kind: f"{kind} {i} of {split}" for kind in ("point", "counter")} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder


def arguments(tiny_bert: Path, corpus: Path, run_dir: Path) -> list[str]:
    """Enough steps to interrupt them: 48 an epoch."""
    return small_run(tiny_bert, corpus, run_dir, train__global_batch_size=2, checkpoint__every_steps=5)


@pytest.fixture(scope="module")
def straight(tiny_bert: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted run on two ranks: their sums have only one order, so numbers can be equal."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    done = train(*arguments(tiny_bert, corpus, run_dir), launcher="torchrun", env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return run_dir


def submit(slurm: Slurm, script: str, *arguments: str, options: tuple[str, ...] = ()) -> int:
    """A job of one rank on each of the two nodes."""
    two = ("--nodes=2", "--export=ALL,PROCS_PER_NODE=1")
    return slurm.submit(script, *arguments, options=[*two, *options], env=ENVIRONMENT)


def wait_for_steps(slurm: Slurm, job: int, run_dir: Path) -> None:
    wait_for(lambda: any(r["step"] >= 7 for r in records(run_dir, "step")) or slurm.state(job) == "FAILED")
    assert slurm.state(job) == "RUNNING", slurm.output(job)


def resumed(run_dir: Path) -> list[int]:
    return [record["step"] for record in records(run_dir, "event") if record["event"] == "resumed"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_job_told_that_its_time_is_up_goes_on_in_the_queue(
    slurm: Slurm, tiny_bert: Path, corpus: Path, straight: Path, tmp_path: Path, script: str
) -> None:
    run_dir = tmp_path / "run"
    job = submit(slurm, script, *arguments(tiny_bert, corpus, run_dir))
    wait_for_steps(slurm, job, run_dir)
    slurm.signal_batch(job, "USR1")
    assert slurm.wait(job) == "COMPLETED", slurm.output(job)
    assert slurm.restarts(job) == 1
    (step,) = resumed(run_dir)
    assert f"stopped: after step {step}, as asked" in slurm.output(job)  # nothing was computed twice
    assert story(run_dir) == story(straight)
    assert not list(Path.cwd().glob("slurm-*.hosts"))


def test_a_real_time_limit_sends_the_job_back_into_the_queue(
    slurm: Slurm, tiny_bert: Path, corpus: Path, tmp_path: Path
) -> None:
    """Slurm looks at the limits every 30 s: the signal comes 10 to 40 s before the end of the minute."""
    run_dir = tmp_path / "run"
    endless = [*arguments(tiny_bert, corpus, run_dir), "--train.epochs", "1000"]
    job = submit(slurm, "slurm/train.sh", *endless, options=("--time=1", "--signal=B:USR1@10"))
    try:
        wait_for(lambda: resumed(run_dir), timeout_s=240)
        assert slurm.restarts(job) >= 1
        assert "goes back into the queue" in slurm.output(job)
        assert "TIME LIMIT" not in slurm.output(job)
    finally:
        slurm.cancel(job)


@pytest.mark.parametrize("back", ["at once", "later"])
def test_a_job_whose_node_dies_goes_on_from_its_last_checkpoint(
    slurm: Slurm, tiny_bert: Path, corpus: Path, straight: Path, tmp_path: Path, back: str
) -> None:
    """Slurm itself notices a dead node after its SlurmdTimeout, and never one that is back before."""
    run_dir = tmp_path / "run"
    job = submit(slurm, "slurm/train.sh", *arguments(tiny_bert, corpus, run_dir))
    wait_for_steps(slurm, job, run_dir)
    slurm.crash("node2")
    if back == "later":
        wait_for(lambda: slurm.state(job) != "RUNNING", timeout_s=120)
    slurm.boot("node2")
    assert slurm.wait(job) == "COMPLETED", slurm.output(job)
    assert slurm.restarts(job) >= 1
    assert resumed(run_dir)
    assert story(run_dir) == story(straight)


def stub(folder: Path, body: str) -> dict[str, str]:
    """An environment whose launchers do nothing but this."""
    for name in ("torchrun", "deepspeed"):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"VENV": str(folder)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_task_of_a_sweep_gets_its_line_and_a_folder_of_its_own(slurm: Slurm, tmp_path: Path, script: str) -> None:
    sweep = tmp_path / "sweep.txt"
    sweep.write_text("--run.seed 0\n--run.seed 1 --train.lr 1e-5\n")
    environment = stub(tmp_path, 'echo "given: $*"; exit 7') | {"SWEEP": str(sweep)}
    job = slurm.submit(script, "--data.root", "a folder", options=["--nodes=1", "--array=1"], env=environment)
    assert slurm.wait(job, timeout_s=30) == "FAILED"
    (given,) = [line for line in slurm.output(job).splitlines() if line.startswith("given: ")]
    assert given.endswith(f"--run.dir runs/slurm-{job}_1 --data.root a folder --run.seed 1 --train.lr 1e-5"), given
    assert (slurm.exit_code(job), slurm.restarts(job)) == (7, 0)  # a failure of its own stays one
    job = slurm.submit(script, options=["--nodes=1", "--array=2"], env=environment)
    assert slurm.wait(job, timeout_s=30) == "FAILED"
    assert slurm.output(job).splitlines() == [f"error: task 2 of the array wants line 3 of {sweep}, which is empty"]


def test_a_job_that_ends_well_after_the_signal_is_not_started_again(slurm: Slurm, tmp_path: Path) -> None:
    environment = stub(tmp_path, "echo at work; sleep 5; echo done")
    job = slurm.submit("slurm/train.sh", options=["--nodes=1"], env=environment)
    wait_for(lambda: "at work" in slurm.output(job), timeout_s=30)
    slurm.signal_batch(job, "USR1")
    assert slurm.wait(job, timeout_s=30) == "COMPLETED", slurm.output(job)
    assert "done" in slurm.output(job)
    assert slurm.restarts(job) == 0
