"""Runs that are driven into each trouble on purpose: the right guard says so, with advice; a sound run hears none."""

import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands import records, small_run
from tests.commands import run as run_command
from tests.conftest import WriteCorpus, numbered_corpus
from tests.launch import run_ranks

pytestmark = pytest.mark.ranks


@dataclass(frozen=True, slots=True)
class Trouble:
    guard: str
    advice: str
    """A part of it."""
    settings: dict[str, Any] = field(default_factory=dict)
    injected: str = ""
    sign: str = ""


TROUBLES = {
    "a learning rate of 1": Trouble("exploding gradients", "train.lr 0.1 (now 1)", {"train__lr": 1.0}),
    "a margin beyond reach": Trouble(
        "active triplets",
        "loss.margin 0.5 (now 3)",
        {"loss__margin": 3.0, "model__normalize": "true", "train__epochs": 4},
        sign="at most 2 apart",
    ),
    "constant embeddings": Trouble(
        "embedding collapse", "see that model.name is a pretrained encoder", sign="nearly the same embedding"
    ),
    "a learning rate of nearly 0": Trouble(
        "no progress", "train.lr 3e-09 (now 1e-09)", {"train__lr": 1e-9, "train__epochs": 4}
    ),
    "texts that differ in capitals": Trouble("close negatives", "remove near-duplicates"),
    "slow data": Trouble("data stall", "more CPU cores", injected="slow data"),
    "a loss scale that doubles every second step": Trouble(
        "fp16 overflow", "train.precision bf16", {"train__epochs": 20, "train__precision": "auto"}, injected="fp16"
    ),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_a_trouble_is_named_with_advice(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path, name: str) -> None:
    trouble, arguments = TROUBLES[name], numbered_corpus(training=33, validation=9)
    settings = dict(trouble.settings)
    match name:
        case "constant embeddings":
            tiny_bert = constant(tiny_bert, tmp_path / "constant")
        case "texts that differ in capitals":
            arguments |= {(s, "shout", d, c, n, k): t.upper() for (s, _, d, c, n, k), t in arguments.items()}
        case "a loss scale that doubles every second step":
            file = tmp_path / "fp16.json"
            fp16 = {"enabled": True, "initial_scale_power": 24, "loss_scale_window": 2, "hysteresis": 1}
            file.write_text(json.dumps({"fp16": fp16, "zero_optimization": {"stage": 1}}))
            settings["deepspeed_config"] = file
    run = small_run(tiny_bert, write_corpus(arguments), tmp_path / "run", **settings)
    (end,), _ = run_ranks("runs.troubled_run", 1, arguments=run, trouble=trouble.injected)
    assert end.code == 0, end.stderr[-2000:]
    raised = alerts(tmp_path / "run")
    assert trouble.guard in raised, raised
    sign, advice = raised[trouble.guard]
    assert trouble.sign in sign
    assert trouble.advice in advice
    assert f"! {trouble.guard} at step" in end.stdout
    if name == "a learning rate of 1":
        told = run_command([sys.executable, "launcher/doctor.py", str(tmp_path / "run")]).stdout
        assert "finished at step 8, epoch 2" in told
        assert all(sign in told and advice in told for sign, advice in raised.values())


def alerts(run_dir: Path) -> dict[str, tuple[str, str]]:
    """Guard → its first sign and advice."""
    events = [event for event in records(run_dir, "event") if event["event"] == "alert"]
    return {event["guard"]: (event["detail"], event["advice"]) for event in reversed(events)}


def constant(tiny_bert: Path, folder: Path) -> Path:
    """The tiny BERT with a last layer that says the same of every text."""
    shutil.copytree(tiny_bert, folder)
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.output.LayerNorm.weight"] = torch.zeros(32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_sound_run_raises_none(two_layer_bert: Path, write_corpus: WriteCorpus, tmp_path: Path) -> None:
    corpus = write_corpus(numbered_corpus(training=49, validation=9))
    (end,), _ = run_ranks(
        "runs.troubled_run", 1, arguments=small_run(two_layer_bert, corpus, tmp_path / "run", train__epochs=3), trouble=""
    )
    assert end.code == 0, end.stderr[-2000:]
    assert alerts(tmp_path / "run") == {}


def test_a_poisoned_batch_is_named(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path) -> None:
    corpus = write_corpus(numbered_corpus(training=33, validation=9))
    arguments = small_run(tiny_bert, corpus, tmp_path / "run", train__epochs=1)
    (end,), _ = run_ranks("runs.poisoned_run", 1, arguments=arguments, poisoned=[2], healed_by_lr=0)
    assert end.code == 0, end.stderr[-2000:]
    sign, advice = alerts(tmp_path / "run")["non-finite gradient"]
    assert "a-point.txt" in sign
    assert "train.lr 0.00033 (now 0.001)" in advice


def test_a_rank_that_is_slow_is_named(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path) -> None:
    """Its forward passes take half a second longer; the other waits for it in the backward pass."""
    corpus, run_dir = write_corpus(numbered_corpus(training=65, validation=9)), tmp_path / "run"
    arguments = small_run(tiny_bert, corpus, run_dir, train__epochs=1)
    ends, _ = run_ranks("runs.troubled_run", 2, timeout_s=180, arguments=arguments, trouble="slow rank")
    assert [end.code for end in ends] == [0, 0], ends[0].stderr[-2000:]
    sign, advice = alerts(run_dir)["slow rank"]
    assert sign.startswith("rank 1 took")
    assert "look for another program, heat or a slower GPU" in advice
