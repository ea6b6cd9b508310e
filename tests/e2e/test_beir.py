"""A run on the embedded BEIR folder: trained, measured and searched."""

import sys
from pathlib import Path

import pytest

from tests.commands import records, run, small_run, train, training, wait_for
from tests.runs import same_weights, story

pytestmark = pytest.mark.e2e


def test_two_steps_on_the_handbook_are_measured_per_query_and_its_passages_searched(
    tiny_bert: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    contrastive = {"loss__contrastive_weight": 0.5, "loss__symmetric": "true", "loss__matryoshka_dims": "4,8"}
    arguments = small_run(tiny_bert, Path("examples/handbook"), run_dir, train__max_steps=2, train__epochs=1, **contrastive)
    done = train(*arguments)
    assert done.returncode == 0, done.stderr
    assert "passage that answers no query" in done.stdout
    (mined,) = records(run_dir, "mine")
    assert mined["mine/forbidden"] == 0
    last = records(run_dir, "eval")[-1]
    for split, queries in {"training": 100, "validation": 30, "test": 30}.items():
        assert (last[f"eval/{split}/queries"], last[f"eval/{split}/candidates"]) == (queries, 264)
        figures = {name: last[f"eval/{split}/embedding/{name}"] for name in ("accuracy@10", "recall@10", "recall@100")}
        assert 0 <= figures["recall@10"] <= figures["accuracy@10"] <= 1
        assert figures["recall@10"] <= figures["recall@100"]
        assert 0 < figures["recall@100"] == last[f"eval/{split}/embedding/recall@100_text"] <= 1
        assert 0 < last[f"eval/{split}/embedding/map@100"] < 1
        assert {f"dim{n}" for n in (4, 8)} <= {name.split("/")[2] for name in last if name.startswith(f"eval/{split}/")}
    assert done.stdout.count("8 dims") >= 3  # a column for each split

    model = ["--model", str(run_dir / "model" / "best"), "--data.root", "examples/handbook"]
    found = run([sys.executable, "launcher/evaluate.py", *model])
    assert found.returncode == 0, found.stderr
    refused = run([sys.executable, "launcher/evaluate.py", *model, "--baselines"])
    assert refused.returncode == 2
    assert "there are none in queries over a corpus" in refused.stderr
    found = run([sys.executable, "launcher/search.py", *model, "--top-k", "3", "--dim", "4", "may my dog come in?"])
    assert found.returncode == 0, found.stderr


def test_a_run_on_the_handbook_that_was_killed_ends_as_if_uninterrupted(tiny_bert: Path, tmp_path: Path) -> None:
    settings = {
        "loss__contrastive_weight": 0.5,
        "mining__negatives": 2,
        "checkpoint__every_steps": 4,
        "mining__every_epochs": 2,
        "train__max_steps": 24,
    }
    straight, broken = (
        small_run(tiny_bert, Path("examples/handbook"), tmp_path / name, **settings) for name in ("straight", "broken")
    )
    done = train(*straight)
    assert done.returncode == 0, done.stderr
    assert len(records(tmp_path / "straight", "mine")) == 1
    with training(*broken) as process:
        wait_for(
            lambda: any(record["step"] >= 21 for record in records(tmp_path / "broken", "step"))
        )  # in an epoch that keeps its negatives
        process.kill()
        process.communicate()
    done = train(*broken)
    assert done.returncode == 0, done.stderr
    assert ", going on from step " in done.stdout
    assert story(tmp_path / "broken") == story(tmp_path / "straight")
    assert same_weights(tmp_path / "broken", tmp_path / "straight")
