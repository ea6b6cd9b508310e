"""Training over two machines with a network between them: the same numbers as on one, and an end when the network fails."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.nodes import Cluster, Job
from tests.cluster.ssh import open_ssh
from tests.commands import BIN, records, small_run, train
from tests.conftest import WriteCorpus, numbered_corpus
from tests.needs import need

pytestmark = pytest.mark.cluster

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # two nodes share the cores of one machine
SILENCE_S = 6


def test_deepspeed_over_two_nodes_and_ssh_equals_one_process(
    two_nodes: Cluster, tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    need("pdsh")
    open_ssh(two_nodes)
    corpus = write_corpus(numbered_corpus(training=33))
    alone = train(*small_run(tiny_bert, corpus, tmp_path / "alone"))
    assert alone.returncode == 0, alone.stderr

    hostfile, exported = tmp_path / "hostfile", tmp_path / "deepspeed_env"
    hostfile.write_text("node1 slots=1\nnode2 slots=1\n")
    exported.write_text("OMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\nHF_HUB_OFFLINE=1\nWANDB_MODE=disabled\n")
    deepspeed = [str(BIN / "deepspeed"), f"--hostfile={hostfile}", "launcher/train.py"]
    deepspeed += small_run(tiny_bert, corpus, tmp_path / "deepspeed")
    job = two_nodes.node("node1").start(deepspeed, env={"DS_ENV_FILE": exported})
    assert job.wait(120) == 0, job.output
    assert opening(job.output) == "2 ranks x 1 x 4 = 8 triplets"
    for name, rank in (("node1", 0), ("node2", 1)):  # pdsh writes the host's name before each line
        lines = [line for line in job.output.splitlines() if line.startswith(f"{name}: ")]
        assert any(f"nnodes=2, num_local_procs=1, node_rank={rank}" in line for line in lines), job.output

    (negatives, losses), (others, other_losses) = (history(tmp_path / name) for name in ("alone", "deepspeed"))
    assert len(losses) == 8
    assert others == negatives
    assert other_losses == pytest.approx(losses, rel=1e-4)
    assert (tmp_path / "deepspeed/model/best/model.safetensors").is_file()


def opening(output: str) -> str:
    """The part of the program's opening that tells the ranks and the batch."""
    (line,) = [line for line in output.splitlines() if "steps    " in line]
    return line.split("steps    ")[1].split(";")[0]


def history(run_dir: Path) -> tuple[list[Any], list[float]]:
    """All mined negatives, and the loss of every step."""
    negatives = [record["detail"] for record in records(run_dir, "event") if record["event"] == "negatives"]
    return negatives, [record["train/loss"] for record in records(run_dir, "step")]


def test_a_cut_cable_ends_both_sides_and_names_who_fell_silent(
    two_nodes: Cluster, tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    """The ranks are started without a launcher, whose own exit would hide theirs: torchrun's agent on the side that is
    cut off from its rendezvous waits there for minutes, also after its rank has ended."""
    corpus, run_dir = write_corpus(numbered_corpus(training=33)), tmp_path / "run"
    arguments = small_run(tiny_bert, corpus, run_dir, train__epochs=1000, distributed__silence_s=SILENCE_S)
    world = {**ONE_THREAD, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "node1", "MASTER_PORT": "29400"}
    jobs = [
        node.start([BIN / "python", "launcher/train.py", *arguments], env={**world, "RANK": str(rank)})
        for rank, node in enumerate(two_nodes.nodes)
    ]
    wait_for_steps(run_dir, jobs)
    two_nodes.unplug(two_nodes.node("node2"))
    cut = time.monotonic()
    for job, silent in zip(jobs, ("rank 1 (node2)", "rank 0 (node1)"), strict=True):
        assert job.wait(max(1.0, cut + SILENCE_S + 10 - time.monotonic())) == 1, job.output
        errors = [line for line in job.output.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, job.output
        assert errors[0].startswith(f"error: {silent} has not answered"), job.output
        assert "Traceback" not in job.output


def wait_for_steps(run_dir: Path, jobs: list[Job], *, steps: int = 3, timeout_s: float = 90) -> None:
    """Until a run has taken some steps."""
    limit = time.monotonic() + timeout_s
    while not (run_dir / "metrics.jsonl").is_file() or len(records(run_dir, "step")) < steps:
        ended = [job.output for job in jobs if job.process.poll() is not None]
        assert not ended, "\n".join(ended)
        assert time.monotonic() < limit, "\n".join(job.output for job in jobs)
        time.sleep(0.2)
