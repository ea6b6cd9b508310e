"""The programs and the cheap commands of the documents, run one after the other in one process, in a folder of their own.

Recipes are the project's, cut down to two steps of a tiny BERT. `DIR` and `examples/debates` are small corpora.
tests/unit/test_snippets.py checks the others without running them: commands of other programs, and those in `TOO_LONG`.
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from biencoder.config.load import load_config
from tests.commands import run
from tests.conftest import WriteCorpus, numbered_corpus
from tests.snippets import ROOT, Snippet, commands, launched, snippets

pytestmark = pytest.mark.e2e

PAGES = ("README.md", *(f"docs/{name}.md" for name in ("index", "see", "evaluate", "reference/files")))
TOO_LONG = {
    "train": "tests/e2e/test_train.py",
    "export": "tests/e2e/test_export.py",
    "sweep local": "tests/e2e/test_sweep.py",
    "sweep rank": "tests/e2e/test_sweep.py",
    "dashboard --entity": "tests/unit/test_dashboard.py",
    "doctor --config": "tests/e2e/test_doctor.py",
}
"""Beginnings of commands that only these tests run."""
PROGRAM = """
import importlib, json, os, sys
import datasets
from biencoder import train
from biencoder.model.pretrained import locate
from launcher.entry import parse_run

os.chdir(sys.argv[1])
datasets.config.HF_DATASETS_CACHE = os.getcwd()
names = {}
for where, content in json.load(sys.stdin):
    print("---", where, flush=True)
    if isinstance(content, str):
        exec(compile(content, where, "exec"), names.setdefault(where.split(":")[0], {"base": locate("minilm")}))
    elif content[0] == "train":
        train(parse_run(content[1:], prog="train.py", description="").config)
    else:
        importlib.import_module(f"launcher.{content[0]}").main(content[1:])
"""


@pytest.fixture
def place(tiny_bert: Path, tmp_path: Path, write_corpus: WriteCorpus) -> Path:
    """A folder that looks like the project's to a command."""
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs/sweep.yaml", tmp_path / "configs")
    for recipe in (ROOT / "configs").glob("*.toml"):
        config = dataclasses.asdict(load_config(file=recipe))
        config["model"] |= {"name": str(tiny_bert), "max_length": 32, "embedding_dim": 0, "pooling": "mean"}
        config["train"] |= {"max_steps": 2, "precision": "fp32"}
        (tmp_path / "configs" / recipe.name).write_text(tomli_w.dumps(config))
    (tmp_path / "ds_configs").symlink_to(ROOT / "ds_configs")
    numbered = numbered_corpus(training=67)
    texts = {at: text if at[0] == "training" else " ".join(reversed(text.split())) for at, text in numbered.items()}
    for corpus in ("DIR", "examples/debates"):
        write_corpus(texts, folder=corpus)
    (tmp_path / "runs").mkdir()
    for name in ("A", "B"):
        (tmp_path / "runs" / name).symlink_to("RUN")
    return tmp_path


def cheap(block: Snippet) -> list[Any]:
    """What a block has to run: a program as it stands, commands as words."""
    if block.kind == "python":
        return [block.text]
    own = [found for words in commands(block) if (found := launched(words))]
    return [[name, *arguments] for name, arguments in own if not " ".join([name, *arguments]).startswith(tuple(TOO_LONG))]


def run_all(place: Path, pages: tuple[str, ...]) -> None:
    blocks = [block for page in pages for block in snippets("python", "bash", "json") if block.page == ROOT / page]
    for block in blocks:
        if block.kind == "json":
            (place / block.name).parent.mkdir(exist_ok=True)
            (place / block.name).write_text(block.text)
    work = [(str(block), each) for block in blocks if block.kind != "json" for each in cheap(block)]
    a_run = ["train", "--config", "configs/quickstart.toml", "--data.root", "DIR", "--run.dir", "runs/RUN"]
    work.insert(0, ("a run", a_run))
    done = run([sys.executable, "-c", PROGRAM, str(place)], stdin=json.dumps(work), timeout_s=240)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert done.stdout.count("--- ") == len(work) > 3


def test_commands_and_programs_of_the_pages_run(place: Path) -> None:
    run_all(place, PAGES)
    assert (place / "results.json").is_file()
    assert (place / "index").is_dir()


def test_scripts_of_sentence_transformers_and_ours_run(place: Path) -> None:
    pytest.importorskip("datasets")
    run_all(place, ("docs/sentence-transformers.md",))
    assert (place / "theirs/final/model.safetensors").is_file()
    assert (place / "ours/model/best/model.safetensors").is_file()


def test_long_commands_have_tests_of_their_own() -> None:
    for beginning, file in TOO_LONG.items():
        assert beginning.split()[0] in (ROOT / file).read_text(encoding="utf-8")
