"""A sweep on this machine as a user runs it: started again, prolonged, with a trial that fails, stopped in the middle."""

import csv
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from biencoder.config.paths import typed
from tests.commands import records, run, small_run, under_way, wait_for
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


def test_a_sweep_that_was_stopped_goes_on_grows_and_outlives_a_trial_that_fails(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    corpus, folder = write_corpus(numbered_corpus(training=16, validation=8)), tmp_path / "sweep"
    settings = small_run(tiny_bert, corpus, tmp_path, train__epochs=40, eval__every_epochs=40)
    # A batch of 64 does not fill from 16 pairs, which only the run itself can know.
    definition = write_definition(
        tmp_path / "sweep.yaml", {"train.lr": {"value": 1e-4}, "train.global_batch_size": {"value": 64}}
    )
    first = folder / "trial-000"

    with under_way(sweep_command(folder, 2, definition, settings)) as process:
        wait_for(lambda: len(records(first, "step")) > 2)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (75, "stopped: SIGTERM; started again, the sweep goes on\n")
    assert "stopped" in starts(first)[-1], "the trial was told, and has saved"
    assert not (first / "failed").exists()
    assert not (folder / "trial-001").exists()

    again = run(sweep_command(folder, 1, definition, settings))
    assert again.returncode == 0, again.stderr
    begun, _, resumed, end = starts(first)
    assert 0 == begun["from_step"] < resumed["from_step"] < end["step"] == 80
    assert [record["step"] for record in records(first, "step")] == [*range(1, 81)]
    before = sorted((path, path.stat().st_mtime_ns) for path in first.rglob("*"))

    longer = run(sweep_command(folder, 2, definition, settings))
    assert longer.returncode == 1, longer.stderr
    assert longer.stderr == "error: 1 of 2 trials failed; the same command tries these again\n"
    assert sorted((path, path.stat().st_mtime_ns) for path in first.rglob("*")) == before
    why = "exit code 2: error: train.global_batch_size 64 is more than the 16 training pairs; choose a smaller batch"
    assert f"failed, {why}" in longer.stdout
    assert why.removeprefix("exit code 2: ") in (folder / "trial-001" / "output.txt").read_text()
    winner, loser = ranking(folder)
    assert (winner["run"], winner["state"], winner["step"]) == ("trial-000", "finished", "80")
    assert (loser["run"], loser["state"], loser["validation"]) == ("trial-001", f"failed: {why}", "")
    assert longer.stdout.splitlines()[-1].startswith(f"The best one again: {shlex.join(typed('train'))} --data.root ")


def starts(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "run.jsonl").read_text().splitlines()]
