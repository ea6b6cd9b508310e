"""Every recipe trains: two steps of each, with a small encoder on the embedded debates."""

import json
from pathlib import Path

from biencoder.config.load import load_config
from biencoder.model.folder import has_classifier
from tests.launch import run_ranks

RECIPES = sorted(Path("configs").glob("*.toml"))


def test_each_recipe_trains_and_evaluates(tiny_bert: Path, tmp_path: Path) -> None:
    commands = []
    for recipe in RECIPES:
        batch = load_config(file=recipe).train.global_batch_size
        settings = {
            "config": recipe,
            "run.dir": tmp_path / recipe.stem,
            "model.name": tiny_bert,
            "model.max_length": 32,
            "data.root": "examples/debates",
            "train.global_batch_size": min(batch, 16),
            "train.max_steps": 2,
            "train.log_every": 1,
            "train.precision": "fp32",
            "tracking.wandb": "disabled",
            "tracking.report": "false",
        }
        commands.append([part for key, value in settings.items() for part in (f"--{key}", str(value))])
    (end,), _ = run_ranks("runs.in_turn", 1, timeout_s=240, commands=commands)
    assert end.code == 0, end.stderr[-2000:]
    assert len(RECIPES) >= 9
    for recipe in RECIPES:
        lines = (tmp_path / recipe.stem / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        losses = [record["train/loss"] for record in records if record["kind"] == "step"]
        assert len(losses) == 2, recipe
        assert all(loss > 0 for loss in losses), recipe
        assert any(record["kind"] == "eval" and record["step"] == 2 for record in records), recipe
        best = tmp_path / recipe.stem / "model" / "best"
        assert best.is_dir(), recipe
        assert has_classifier(best) == load_config(file=recipe).has_classifier, recipe
