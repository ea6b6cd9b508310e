"""The batch scripts on a real Slurm of two nodes."""

import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import EVERY_S, Slurm
from tests.commands import BIN, records, small_run, train, wait_for
from tests.processes import ROOT
from tests.runs import story

pytestmark = pytest.mark.cluster

SCRIPTS = ("slurm/train.sh", "slurm/deepspeed.sh")
MEETING = """
import os, pathlib, time
rank, size = os.environ["RANK"], int(os.environ["WORLD_SIZE"])
here = pathlib.Path(__file__).parent.parent
(here / f"rank-{rank}-of-{size}").touch()
limit = time.monotonic() + 60
while len(list(here.glob("rank-*"))) < size and time.monotonic() < limit:
    time.sleep(0.1)
raise SystemExit(2)
"""
"""A program whose ranks wait for each other, and fail."""
ENVIRONMENT = {"VENV": str(BIN.parent), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module", autouse=True)
def limited(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A job with a real time limit, which waits beside the other tests. Slurm looks at the limits every 30 s: the signal
    comes 10 to 40 s after the start."""
    body = """
import os, signal, sys, time
if os.environ.get("SLURM_RESTART_COUNT"):
    sys.exit("done")
signal.signal(signal.SIGUSR1, lambda *_: sys.exit("saved"))
time.sleep(300)
"""
    environment = stub(tmp_path_factory.mktemp("limited"), body, interpreter=f"{sys.executable} -S")
    options = ["--nodelist=node1", "--time=1", "--signal=B:USR1@50"]  # node2 will crash
    job = slurm.submit("slurm/train.sh", options=["--nodes=1", *options], env=environment)
    yield job
    slurm.cancel(job)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_allocated_gpus_decide_how_many_ranks_start(slurm: Slurm, tmp_path: Path, script: str) -> None:
    """Real launchers of another program, submitted from another folder; the GPUs are not real."""
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher/train.py").write_text(MEETING)
    options = ["--nodes=2", "--gpus-per-node=2"]
    job = slurm.submit(ROOT / script, options=options, env=ENVIRONMENT, folder=tmp_path)
    assert slurm.wait(job) == "FAILED", slurm.output(job)
    assert sorted(file.name for file in tmp_path.glob("rank-*")) == [f"rank-{rank}-of-4" for rank in range(4)]
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
    enough = {"train__epochs": 2, "train__global_batch_size": 2, "checkpoint__every_steps": 5}
    return small_run(tiny_bert, corpus, run_dir, **enough)


@pytest.fixture(scope="module")
def straight(tiny_bert: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted run on two ranks: their sums have only one order, so numbers can be equal."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    done = train(*arguments(tiny_bert, corpus, run_dir), "--train.clip_norm", "0.5", launcher="ranks")
    assert done.returncode == 0, done.stderr
    return run_dir


def wait_for_steps(slurm: Slurm, job: int, run_dir: Path, *, resumes: int) -> None:
    """Until the job has been started again so often, and has made some steps since."""

    def has_stepped() -> bool:
        starts = [0, *resumed(run_dir)]
        return len(starts) == resumes + 1 and any(r["step"] >= starts[-1] + 7 for r in records(run_dir, "step"))

    wait_for(lambda: has_stepped() or slurm.state(job) in ("FAILED", "COMPLETED"), every_s=EVERY_S)
    assert slurm.state(job) == "RUNNING", slurm.output(job)


def resumed(run_dir: Path) -> list[int]:
    return [record["step"] for record in records(run_dir, "event") if record["event"] == "resumed"]


def submit(slurm: Slurm, script: str, tiny_bert: Path, corpus: Path, run_dir: Path) -> int:
    settings = run_dir.parent / "own.toml"
    settings.write_text("[train]\nepochs = 9\nclip_norm = 0.5\n")  # the command line, which says 2, wins
    options, own = ["--nodes=2", "--export=ALL,PROCS_PER_NODE=1"], ["--config", str(settings)]
    return slurm.submit(script, *own, *arguments(tiny_bert, corpus, run_dir), options=options, env=ENVIRONMENT)


def test_a_job_over_two_nodes_goes_on_after_its_time_was_up_and_after_its_node_has_been_away(
    slurm: Slurm, tiny_bert: Path, corpus: Path, straight: Path, tmp_path: Path
) -> None:
    """Slurm itself never notices a node that is back before its SlurmdTimeout."""
    run_dir = tmp_path / "a run"
    job = submit(slurm, "slurm/train.sh", tiny_bert, corpus, run_dir)
    wait_for_steps(slurm, job, run_dir, resumes=0)
    slurm.signal_batch(job, "USR1")
    wait_for_steps(slurm, job, run_dir, resumes=1)
    slurm.crash("node2")
    slurm.boot("node2")
    assert slurm.wait(job) == "COMPLETED", slurm.output(job)
    assert slurm.restarts(job) >= 2
    stopped, _ = resumed(run_dir)
    assert f"stopped: after step {stopped}, as asked" in slurm.output(job)  # nothing was computed twice
    assert story(run_dir) == story(straight)
    assert "2 ranks x 1 x 1 = 2 triplets" in slurm.output(job)
    assert "clip_norm = 0.5" in (run_dir / "config.toml").read_text()
    assert len(records(run_dir, "step")) == 2 * 48
    assert (run_dir / "model/best/model.safetensors").is_file()


def test_under_deepspeed_a_job_whose_time_is_up_saves_and_goes_back_into_the_queue(
    slurm: Slurm, tiny_bert: Path, corpus: Path, straight: Path, tmp_path: Path
) -> None:
    """What its second start does from there, it does under any launcher, or none: here two ranks end the run."""
    run_dir = tmp_path / "a run"
    job = submit(slurm, "slurm/deepspeed.sh", tiny_bert, corpus, run_dir)
    wait_for_steps(slurm, job, run_dir, resumes=0)
    slurm.signal_batch(job, "USR1")
    wait_for(lambda: slurm.restarts(job) == 1, every_s=EVERY_S)
    slurm.cancel(job)
    assert "2 ranks x 1 x 1 = 2 triplets" in slurm.output(job)
    assert f"the time is up: job {job} goes back into the queue" in slurm.output(job)
    assert not (ROOT / f"slurm-{job}.hosts").exists()
    rest = train(*arguments(tiny_bert, corpus, run_dir), "--train.clip_norm", "0.5", launcher="ranks")
    assert rest.returncode == 0, rest.stderr
    (stopped,) = resumed(run_dir)
    assert f"stopped: after step {stopped}, as asked" in slurm.output(job)
    assert story(run_dir) == story(straight)


def stub(folder: Path, body: str, *, interpreter: str = "/bin/sh") -> dict[str, str]:
    """An environment whose launchers do nothing but this."""
    for name in ("torchrun", "deepspeed"):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!{interpreter}\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"VENV": str(folder)}


def test_a_job_is_started_again_after_slurm_has_counted_its_node_as_dead(slurm: Slurm, tmp_path: Path) -> None:
    environment = stub(tmp_path, '[ -z "${SLURM_RESTART_COUNT:-}" ] || exec echo again; echo at work; exec sleep 300')
    job = slurm.submit("slurm/train.sh", options=["--nodes=2"], env=environment)
    wait_for(lambda: slurm.output(job).count("at work") == 2, timeout_s=30)
    slurm.crash("node2")
    wait_for(lambda: slurm.state(job) != "RUNNING", every_s=EVERY_S)
    slurm.boot("node2")
    assert slurm.wait(job) == "COMPLETED", slurm.output(job)
    assert slurm.restarts(job) >= 1
    assert slurm.output(job).count("again") == 2


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


def test_a_real_time_limit_sends_the_job_back_into_the_queue(slurm: Slurm, limited: int) -> None:
    """Comes last, when most of the waiting is over."""
    wait_for(lambda: slurm.state(limited) == "FAILED", timeout_s=180, every_s=EVERY_S)  # its second start ends so
    assert slurm.restarts(limited) == 1
    lines = slurm.output(limited).splitlines()
    back = f"the time is up: job {limited} goes back into the queue, and on from its last checkpoint"
    assert lines.index("saved") < lines.index(back) < lines.index("done"), lines
    assert "TIME LIMIT" not in slurm.output(limited)
