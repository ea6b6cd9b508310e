"""Sweeps: what is drawn, how the definition serves W&B and Slurm too, and that the ranking looks at validation only."""

import csv
import dataclasses
import io
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import yaml
from rich.console import Console

from biencoder.config.load import load_config
from biencoder.config.paths import typed
from biencoder.config.schema import Config
from biencoder.errors import ConfigError
from biencoder.tracking.names import accuracy
from biencoder.training.sweep import command_line, find_runs, rank, ranking_table, read_sweep, write_ranking
from launcher import sweep as launcher
from launcher.entry import parse_run
from tests.launch import ROOT

SHIPPED = ROOT / "configs" / "sweep.yaml"


def definition(tmp_path: Path, **changes: Any) -> Path:
    """The shipped definition with some of its keys changed."""
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(SHIPPED.read_text()), **changes}))
    return file


def draws(file: Path, count: int, seed: int = 0) -> list[dict[str, str]]:
    return read_sweep(file).trials(count, seed=seed, base=Config())


@pytest.mark.slow
def test_the_shipped_ranges_are_kept_and_the_learning_rate_is_log_uniform() -> None:
    baseline, *trials = draws(SHIPPED, 2001)
    assert baseline == {
        "train.lr": "3e-06",
        "train.global_batch_size": "8",
        "loss.margin": "1.0",
        "mining.random_rate": "0.8",
    }
    lr, batch, margin, rate = (np.array([float(trial[key]) for trial in trials]) for key in baseline)
    assert lr.min() >= 1e-6
    assert lr.max() <= 1e-5
    shares, _ = np.histogram(np.log10(lr), bins=10, range=(-6, -5))
    assert shares.min() > 140, "each tenth of the decades gets a tenth of 2000 draws"
    assert np.median(lr) == pytest.approx(10**-5.5, rel=0.05)
    assert {int(value) for value in batch} == {8, 16, 32}
    assert min(np.mean(batch == value) for value in (8, 16, 32)) > 0.3
    for values, low, high in ((margin, 0.5, 2.0), (rate, 0.6, 0.9)):
        assert values.min() >= low
        assert values.max() <= high
        assert np.mean(values) == pytest.approx((low + high) / 2, rel=0.02)
    assert abs(np.corrcoef(margin, rate)[0, 1]) < 0.08, "each key has a stream of its own"


def test_draws_depend_on_seed_and_trial_only(tmp_path: Path) -> None:
    assert draws(SHIPPED, 8) == draws(SHIPPED, 20)[:8]
    assert draws(SHIPPED, 8)[1:] != draws(SHIPPED, 8, seed=1)[1:]
    parameters = yaml.safe_load(SHIPPED.read_text())["parameters"]
    more = definition(tmp_path, parameters={"loss.triplet_weight": {"min": 1.0, "max": 2.0}, **parameters})
    assert [trial["train.lr"] for trial in draws(more, 8)] == [trial["train.lr"] for trial in draws(SHIPPED, 8)]


def test_all_kinds_of_parameters(tmp_path: Path) -> None:
    parameters = {
        "train.epochs": {"min": 2, "max": 4},
        "run.seed": {"value": 7},
        "model.normalize": {"values": [True, False]},
        "train.clip_norm": {"min": 1, "max": 1.5},
    }
    _, *trials = draws(definition(tmp_path, parameters=parameters), 200)
    assert {trial["train.epochs"] for trial in trials} == {"2", "3", "4"}
    assert {trial["run.seed"] for trial in trials} == {"7"}
    assert {trial["model.normalize"] for trial in trials} == {"true", "false"}
    assert len({trial["train.clip_norm"] for trial in trials}) > 100
    for trial in trials[:10]:
        load_config(overrides=trial)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"train.lr": {"distribution": "q_normal", "mu": 1}}}, r"`parameters.train.lr` .* expected `value`"),
        ({"parameters": {"train.lr": {"distribution": "log_uniform", "min": -13, "max": -11}}}, "log_uniform_values"),
        ({"parameters": {"train.lr": {"min": "1e-6", "max": 1.0}}}, "YAML wants 1.0e-6"),
        ({"parameters": {"train.lr": {"min": 2.0, "max": 1.0}}}, "expected `value`"),
        ({"parameters": {"train.lr": {"distribution": "log_uniform_values", "min": 0.0, "max": 1.0}}}, "expected `value`"),
        ({"parameters": {"train.lr": {"values": []}}}, "expected `value`"),
        ({"parameters": {"train.lr": {"values": [1], "probabilities": [1]}}}, "expected `value`"),
        ({"parameters": {"train.lrr": {"value": 1}}}, "unknown key `train.lrr` in .*; the nearest valid one is `train.lr`"),
        ({"parameters": None}, "has no `parameters`"),
        ({"method": "bayes"}, "`method` in .* is bayes, but here trials are drawn at random"),
        ({"metric": {"name": "train/loss", "goal": "minimize"}}, "is not eval/validation/embedding/accuracy@1"),
        ({"command": ["python", "train.py"]}, "has no \\$\\{program\\}"),
    ],
)
def test_what_is_not_drawn_is_refused_in_one_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        draws(definition(tmp_path, **changes), 2)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_sweep(tmp_path / "missing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_sweep(tmp_path / "bad.yaml")


@pytest.mark.slow
def test_the_command_that_wandb_makes_of_the_definition_is_understood() -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    shipped = yaml.safe_load(SHIPPED.read_text())
    drawn = {"train.lr": 1e-5, "train.global_batch_size": 16, "loss.margin": 0.5, "mining.random_rate": 0.6}
    assert set(drawn) == set(shipped["parameters"])
    macros = create_sweep_command_args({"args": {key: {"value": value} for key, value in drawn.items()}})
    macros |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [shipped["program"]]}
    command = [
        part
        for chunk in create_sweep_command(shipped["command"])
        for part in (macros[chunk[2:-1]] if chunk.startswith("${") else [chunk])
    ]
    assert command[:3] == ["/usr/bin/env", "python", "launcher/train.py"]
    assert "--train.lr=1e-05" in command
    config = parse_run(command[3:], prog="", description="").config
    assert config.flat().items() >= drawn.items()
    assert config.model == load_config(file=ROOT / "configs" / "reference.toml").model


def test_a_slurm_task_gets_its_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep.txt"
    launcher.main(["slurm", "--trials", "3", "--out", str(out), "--", "--data.root", "a b"])
    said = capsys.readouterr().out
    assert f"--array=0-2 --export=ALL,SWEEP={out} slurm/train.sh --config configs/reference.toml" in said
    assert "--data.root 'a b'" in said
    script = 'source slurm/job.sh; prepare torchrun --config configs/reference.toml; printf "%s\\n" "${arguments[@]}"'
    task = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "2", "SLURM_SUBMIT_DIR": str(ROOT)}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "torchrun").touch(mode=0o755)
    environment = {**os.environ, **task, "SWEEP": str(out), "VENV": str(tmp_path)}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    config = parse_run(done.stdout.splitlines(), prog="", description="").config
    assert config.run.dir == "runs/slurm-9_2"
    trial = draws(SHIPPED, 3)[2]
    assert config == load_config(file=ROOT / "configs" / "reference.toml", overrides={**trial, "run.dir": "runs/slurm-9_2"})


def test_a_file_of_trials_may_grow_but_never_change(tmp_path: Path) -> None:
    out = tmp_path / "sub" / "sweep.txt"
    launcher.main(["slurm", "--trials", "4", "--out", str(out)])
    four = out.read_text()
    launcher.main(["slurm", "--trials", "2", "--out", str(out)])
    assert out.read_text() == four
    launcher.main(["slurm", "--trials", "6", "--out", str(out)])
    assert out.read_text().startswith(four)
    assert out.read_text().count("\n") == 6
    with pytest.raises(ConfigError, match="holds the trials of another sweep; choose another --out"):
        launcher.main(["slurm", "--trials", "6", "--seed", "1", "--out", str(out)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "--train.lrr", "1"], "unknown key `train.lrr`"),
        (["--", "--run.dir", "here"], "each trial has a folder of its own"),
        (["--", "--loss.triplet_weight", "0", "--loss.classification_weight", "0"], "trial 0 of .*are all 0"),
        (["--trials", "0"], "--trials is 0, expected an integer >= 1"),
        (["--seed", "-1"], "--seed is -1, expected an integer >= 0"),
    ],
)
def test_nothing_is_written_before_all_trials_are_valid(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        launcher.main(["slurm", "--trials", "2", "--out", str(tmp_path / "out"), *arguments])
    with pytest.raises(ConfigError, match=message):
        launcher.main(["local", "--trials", "2", "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_a_drawn_value_out_of_range_names_its_trial(tmp_path: Path) -> None:
    file = definition(tmp_path, parameters={"loss.margin": {"value": -1.0}})
    with pytest.raises(ConfigError, match=r"trial 1 of .*sweep.yaml \(--loss.margin -1.0\): `loss.margin` is \"-1.0\""):
        launcher.main(["slurm", "--trials", "2", "--sweep", str(file), "--out", str(tmp_path / "out")])


def test_a_value_with_blanks_is_not_for_slurm(tmp_path: Path) -> None:
    file = definition(tmp_path, parameters={"data.root": {"value": "a b"}})
    with pytest.raises(ConfigError, match="empty or holds a blank"):
        launcher.main(["slurm", "--trials", "2", "--sweep", str(file), "--out", str(tmp_path / "out")])


def recorded(folder: Path, evaluations: list[tuple[float, float | None]], *, data: str = "d", **overrides: Any) -> Path:
    """A run's folder with a (validation, test) accuracy@1 after each epoch, zero-shot first; 10 steps an epoch."""
    folder.mkdir(parents=True)
    config = load_config(overrides={"run.dir": str(folder), **{k.replace("__", "."): str(v) for k, v in overrides.items()}})
    (folder / "config.toml").write_text(tomli_w.dumps(dataclasses.asdict(config)))
    (folder / "run.jsonl").write_text(json.dumps({"from_step": 0, "data": {"fingerprint": data}}) + "\n")
    with (folder / "metrics.jsonl").open("w") as lines:
        for epoch, (validation, test) in enumerate(evaluations):
            line = {
                "kind": "eval",
                "step": 10 * epoch,
                "epoch": epoch,
                "time": 0.0,
                accuracy("validation", "embedding"): validation,
            }
            lines.write(json.dumps(line | ({} if test is None else {accuracy("test", "embedding"): test})) + "\n")
    return folder


def test_validation_ranks_even_where_test_would_choose_otherwise(tmp_path: Path) -> None:
    first = recorded(tmp_path / "a", [(0.9, 0.9), (0.5, 0.30), (0.7, 0.35), (0.7, 0.99)], train__lr=1e-5)
    second = recorded(tmp_path / "b", [(0.9, 0.9), (0.6, 0.95)], train__lr=2e-5, run__seed=3)
    rows = rank([second, first])
    assert [(row.folder, row.validation, row.step, row.test) for row in rows] == [
        (first, 0.7, 20, 0.35),  # the earliest best, without the zero-shot evaluation
        (second, 0.6, 10, 0.95),
    ]
    write_ranking(rows, tmp_path / "ranking.csv")
    with (tmp_path / "ranking.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert cells[0] == {
        "rank": "1",
        "validation": "0.7",
        "step": "20",
        "test": "0.35",
        "run": "a",
        "train.lr": "1e-05",
        "run.seed": "0",
        "state": "unfinished",
    }
    shown = io.StringIO()
    Console(width=200, file=shown).print(ranking_table(rows))
    assert "it ranks nothing" in shown.getvalue()
    assert "70.0" in shown.getvalue().split("60.0")[0]


def test_trials_without_a_result_are_rows_too(tmp_path: Path) -> None:
    good = recorded(tmp_path / "trial-000", [(0.1, None), (0.2, None)])
    started = recorded(tmp_path / "trial-001", [(0.1, None)])
    broken = recorded(tmp_path / "trial-002", [(0.9, None), (0.9, None)])
    (broken / "metrics.jsonl").write_text("not JSON\n")
    failed = tmp_path / "trial-003"
    failed.mkdir()
    (failed / "failed").write_text("exit code 2: error: no such folder\n")
    (tmp_path / "trial-004").mkdir()
    rows = rank(find_runs([tmp_path]))
    assert [row.folder for row in rows] == [good, started, broken, failed]
    assert [row.validation for row in rows] == [0.2, None, None, None]
    assert rows[0].test is None
    assert rows[2].state.startswith("unreadable: ")
    assert rows[3].state == "failed: exit code 2: error: no such folder"
    write_ranking(rows, tmp_path / "ranking.csv")
    assert (tmp_path / "ranking.csv").read_text().splitlines()[
        4
    ] == ",,,,trial-003,failed: exit code 2: error: no such folder"


def test_rank_prints_a_command_that_trains_the_winner_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(tmp_path / "slurm-9_0", [(0.1, 0.1), (0.2, 0.2)])
    winner = recorded(
        tmp_path / "slurm-9_1", [(0.1, 0.1), (0.3, 0.1)], data="other", data__root="a b", model__normalize=True
    )
    launcher.main(["rank", *map(str, sorted(tmp_path.glob("slurm-9_*")))])
    said = capsys.readouterr().out
    assert f"The table is in {tmp_path / 'ranking.csv'}." in said
    assert "cannot be compared" in said
    config = load_config(file=winner / "config.toml")
    assert said.splitlines()[-1] == f"The best one again: {command_line(config)}"
    assert command_line(config) == f"{shlex.join(typed('train'))} --data.root 'a b' --model.normalize true"


def test_nothing_to_rank(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run; give the folders of runs"):
        launcher.main(["rank", str(tmp_path)])
    recorded(tmp_path / "run", [(0.1, 0.1)])
    with pytest.raises(ConfigError, match="there is no best one"):
        launcher.main(["rank", str(tmp_path / "run")])
