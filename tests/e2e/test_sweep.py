"""A sweep on this machine as a user runs it: started again, prolonged, with a trial that fails, stopped in the middle."""

import csv
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from biencoder.config.paths import typed
from tests.commands import records, run, small_run, wait_for
from tests.conftest import WriteCorpus, numbered_corpus
from tests.launch import ROOT

pytestmark = pytest.mark.e2e


def sweep_command(folder: Path, trials: int, definition: Path, settings: list[str]) -> list[str]:
    own = ["local", "--trials", str(trials), "--sweep", str(definition), "--out", str(folder)]
    without_dir = settings[: settings.index("--run.dir")] + settings[settings.index("--run.dir") + 2 :]
    return [sys.executable, "launcher/sweep.py", *own, "--", *without_dir]


def write_definition(file: Path, parameters: dict[str, Any]) -> Path:
    shipped = yaml.safe_load((ROOT / "configs" / "sweep.yaml").read_text())
    file.write_text(yaml.safe_dump({**shipped, "parameters": parameters, "command": ["${program}", "${args}"]}))
    return file


def ranking(folder: Path) -> list[dict[str, str]]:
    with (folder / "ranking.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_goes_on_grows_and_outlives_a_trial_that_fails(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    corpus, folder = write_corpus(numbered_corpus(training=16, validation=8)), tmp_path / "sweep"
    settings = small_run(tiny_bert, corpus, tmp_path, train__epochs=1)
    # A batch of 64 does not fill from 16 pairs, which only the run itself can know.
    definition = write_definition(
        tmp_path / "sweep.yaml", {"train.lr": {"value": 1e-4}, "train.global_batch_size": {"value": 64}}
    )

    first = run(sweep_command(folder, 1, definition, settings))
    assert first.returncode == 0, first.stderr
    before = sorted((path, path.stat().st_mtime_ns) for path in (folder / "trial-000").rglob("*"))
    assert [record["step"] for record in records(folder / "trial-000", "step")] == [1, 2]

    longer = run(sweep_command(folder, 2, definition, settings))
    assert longer.returncode == 1, longer.stderr
    assert longer.stderr == "error: 1 of 2 trials failed; the same command tries these again\n"
    assert sorted((path, path.stat().st_mtime_ns) for path in (folder / "trial-000").rglob("*")) == before
    why = "exit code 2: error: train.global_batch_size 64 is more than the 16 training pairs; choose a smaller batch"
    assert f"failed, {why}" in longer.stdout
    assert why.removeprefix("exit code 2: ") in (folder / "trial-001" / "output.txt").read_text()
    winner, loser = ranking(folder)
    assert (winner["run"], winner["state"], winner["step"]) == ("trial-000", "finished", "2")
    assert (loser["run"], loser["state"], loser["validation"]) == ("trial-001", f"failed: {why}", "")
    assert longer.stdout.splitlines()[-1].startswith(f"The best one again: {shlex.join(typed('train'))} --data.root ")


def test_a_signal_saves_the_running_trial_and_ends_the_sweep(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    corpus, folder = write_corpus(numbered_corpus(training=64, validation=8)), tmp_path / "sweep"
    settings = small_run(tiny_bert, corpus, tmp_path, train__epochs=20, eval__every_epochs=20)
    definition = write_definition(tmp_path / "sweep.yaml", {"loss.margin": {"min": 0.5, "max": 2.0}})
    process = subprocess.Popen(
        sweep_command(folder, 2, definition, settings),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: len(records(folder / "trial-000", "step")) > 2)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, said) == (75, "stopped: SIGTERM; started again, the sweep goes on\n")
    assert "stopped" in starts(folder / "trial-000")[-1], "the trial was told, and has saved"
    assert not (folder / "trial-000" / "failed").exists()
    assert not (folder / "trial-001").exists()

    again = run(sweep_command(folder, 1, definition, settings))
    assert again.returncode == 0, again.stderr
    first, _, second, end = starts(folder / "trial-000")
    assert end["step"] == 160
    assert 0 == first["from_step"] < second["from_step"] < 160
    assert [record["step"] for record in records(folder / "trial-000", "step")] == [*range(1, 161)]


def starts(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "run.jsonl").read_text().splitlines()]
