"""Ranks that do not work on the same are refused before anything is written."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands import small_run
from tests.conftest import WriteCorpus, numbered_corpus
from tests.launch import run_ranks

pytestmark = pytest.mark.ranks


def test_ranks_that_differ_are_named_with_what_each_holds(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    """Two ranks in two folders, with one command of relative paths; and before that, with other settings."""
    corpus, host = write_corpus(numbered_corpus(training=20)), socket.gethostname()
    for rank in ("0", "1"):
        shutil.copytree(corpus, tmp_path / rank / "data")
        shutil.copytree(tiny_bert, tmp_path / rank / "model")
        (tmp_path / rank / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": int(rank)}}))
    (text, *_) = (tmp_path / "1/data/training").rglob("*-point.txt")
    text.write_text("another text")
    weights = load_file(tmp_path / "1/model/model.safetensors")
    name = next(name for name in weights if name.endswith("LayerNorm.weight"))
    weights[name] = weights[name] + torch.finfo(torch.float32).eps
    save_file(weights, tmp_path / "1/model/model.safetensors", metadata={"format": "pt"})
    tokenizer = tmp_path / "1/model/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"lowercase": true', '"lowercase": false'))
    arguments = small_run(Path("./model"), Path("data"), Path("run"), deepspeed_config="zero.json")
    wrong = {"train.lr": "0.5", "run.seed": "3"}
    ends, _ = run_ranks("runs.ranks_that_differ", 2, arguments=arguments, folder=str(tmp_path), wrong=wrong)
    assert [end.code for end in ends] == [0, 0], ends
    assert ends[0].stdout == ends[1].stdout
    settings, files = ends[0].stdout.splitlines()
    assert f"train.lr is 0.001 on rank 0 ({host}) and 0.5 on rank 1 ({host})" in settings
    assert f"run.seed is 0 on rank 0 ({host}) and 3 on rank 1 ({host})" in settings
    facts = files.split(": ", 1)[1].split("; ")
    differing = [fact.split(" is ")[0] for fact in facts if f" on rank 0 ({host}) and " in fact]
    assert differing == ["the content of deepspeed_config", "the corpus", "the tokenizer", "the pretrained weights"]
    assert not list(tmp_path.glob("*/run"))
