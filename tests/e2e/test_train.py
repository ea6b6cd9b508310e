"""The main job as a user runs it: one process, torchrun, deepspeed; what it leaves; what uses the result."""

import json
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from biencoder.config.load import load_config
from biencoder.tracking.names import CHECKPOINT, CLOSEST, EVAL, HARDNESS, LOSS_PARTS, MINE, STEP, examples
from tests.commands import records, run, small_run, train
from tests.conftest import WriteCorpus, numbered_corpus
from tests.wandb_file import history, wandb_records

pytestmark = pytest.mark.e2e


def test_a_run_from_start_to_search(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path) -> None:
    corpus, run_dir = write_corpus(numbered_corpus(training=33, validation=12)), tmp_path / "run"
    arguments = small_run(tiny_bert, corpus, run_dir, train__warmup_ratio=0.5)
    done = train(*arguments, fork=False, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0, done.stderr
    imports = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "torch" in imports
    assert imports.isdisjoint({"sklearn", "torch._inductor.compile_fx", "wandb", "plotly"})  # nothing slow without need
    assert "Warning" not in "".join(line for line in done.stderr.splitlines() if not line.startswith("import time:"))
    assert done.stdout.splitlines()[-1].startswith("The best model is in ")

    config = load_config(file=run_dir / "config.toml")
    asked = dict(zip((a[2:] for a in arguments[::2]), arguments[1::2], strict=True))
    assert config == load_config(overrides=asked | {"model.query_prompt": "", "model.document_prompt": ""})  # it has none
    facts, end = map(json.loads, (run_dir / "run.jsonl").read_text().splitlines())
    assert set(end) == {"finished", "step"}
    assert facts["data"]["pairs"] == {"training": 33, "validation": 12}
    assert len(facts["data"]["fingerprint"]) == 64
    assert facts["packages"]["torch"]

    check_records(run_dir)
    for name in ("best", "last"):
        assert "| validation | 12 |" in (run_dir / "model" / name / "README.md").read_text()
    assert not list(run_dir.rglob("*.pt")) + list(run_dir.rglob("*.bin")) + list(run_dir.rglob("*.pkl"))

    last, precision = str(run_dir / "model" / "last"), ["--precision", "fp32"]
    again = run([sys.executable, "launcher/evaluate.py", "--model", last, "--data.root", str(corpus), *precision])
    assert again.returncode == 0, again.stderr
    assert row_of(again.stdout, "last") == row_of(done.stdout, "epoch 2")

    search = [sys.executable, "launcher/search.py", "--model", last, "--data.root", str(corpus), "--top-k", "3", "--rerank"]
    found = run([*search, "fox fox point 0"])
    assert found.returncode == 0, found.stderr
    assert len([line for line in found.stdout.splitlines() if "%" in line]) == 3
    assert found.stdout.count("fox fox point 0") == 1  # as the title, and not among what was found
    assert run(search, stdin="fox fox point 0\n").stdout == found.stdout

    before = sorted((p, p.stat().st_mtime_ns) for p in run_dir.rglob("*"))
    second = train(*arguments, "--run.resume", "never")
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert "holds a run already" in second.stderr
    assert sorted((p, p.stat().st_mtime_ns) for p in run_dir.rglob("*")) == before


def check_records(run_dir: Path) -> None:
    """Of two epochs of four steps, the first half of which warm up."""
    steps = records(run_dir, "step")
    assert [(r["step"], r["epoch"]) for r in steps] == [(s, (s - 1) // 4) for s in range(1, 9)]
    assert all(set(STEP) <= set(r) for r in steps)
    listed = (
        set(STEP)
        | set(MINE)
        | set(CHECKPOINT)
        | {
            name.format(split=split, ranking=ranking, size=8)
            for name in EVAL
            for split in ("training", "validation")
            for ranking in ("embedding", "rerank")
        }
    )
    lines = [line for kind in ("step", "mine", "eval", "checkpoint") for line in records(run_dir, kind)]
    assert {name for line in lines for name in line if "/" in name} <= listed
    assert all(0 < r["train/data_s"] + r["train/forward_s"] < r["train/step_s"] for r in steps)
    assert [r["train/lr"] for r in steps] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3])
    for r in steps:
        assert r["train/loss"] == pytest.approx(
            r["train/loss_triplet"] + r["train/loss_ce_positive"] + r["train/loss_ce_negative"], rel=1e-5
        )
        assert r["train/clip_coef"] == pytest.approx(min(1.0, 1.0 / r["train/grad_norm"]))
        assert r["train/grad_norm_clipped"] == pytest.approx(min(1.0, r["train/grad_norm"]))
    assert [r["epoch"] for r in records(run_dir, "mine")] == [0, 1]
    evaluations = records(run_dir, "eval")
    assert [r["step"] for r in evaluations] == [0, 4, 8]
    assert "eval/validation/rerank/accuracy@1" not in evaluations[0]
    assert evaluations[1]["eval/validation/candidates"] == 23


def row_of(output: str, name: str) -> list[str]:
    """The cells of the last table row with this name."""
    rows = [line.strip() for line in output.splitlines()]
    return [row.removeprefix(name).split() for row in rows if row.startswith(name)][-1]


def comparable(run_dir: Path) -> tuple[list[str], list[list[float]], list[dict[str, Any]]]:
    negatives = [r["detail"] for r in records(run_dir, "event") if r["event"] in ("negatives", "clusters")]
    losses = [[r[name] for name in (*LOSS_PARTS, "train/grad_norm")] for r in records(run_dir, "step")]
    evaluations = [
        {k: v for k, v in r.items() if k.startswith("eval/") and "seconds" not in k} for r in records(run_dir, "eval")
    ]
    return negatives, losses, evaluations


def test_number_of_ranks_and_micro_batches_change_nothing(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    """Same batches, negatives and metrics on 1, 2 and 4 ranks, searching on rank 0 or on all, for an odd corpus.

    The losses may differ by the order in which fp32 gradients are summed: 1e-7 relative in a step, amplified by Adam
    over the run; 1e-4 is a hundred times less than what one swapped sample changes.
    """
    corpus = write_corpus(numbered_corpus(training=101, validation=13))

    def arguments(name: str, **settings: Any) -> list[str]:
        shared = {"loss__contrastive_weight": 0.5, "mining__negatives": 2, "train__batches": "clusters"}
        return small_run(tiny_bert, corpus, tmp_path / name, **shared, **settings)

    runs = {
        "one": train(*arguments("one")),
        "micro": train(*arguments("micro", train__micro_batch_size=2)),
        "two": train(*arguments("two", mining__placement="sharded"), launcher="ranks", ranks=2),
        "four": train(*arguments("four", train__micro_batch_size=1), launcher="ranks", ranks=4),
    }
    for name, done in runs.items():
        assert done.returncode == 0, (name, done.stderr)
    negatives, losses, evaluations = comparable(tmp_path / "one")
    assert len(losses) == 24
    for name in ("micro", "two", "four"):
        other = comparable(tmp_path / name)
        assert other[0] == negatives, name
        for mine, theirs in zip(losses, other[1], strict=True):
            assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-5), name
        for ours, others in zip(evaluations, other[2], strict=True):
            assert others == pytest.approx(ours, abs=1e-3), name  # ranks are equal, the classifier's probabilities nearly


def test_contrastive_learning_alone_needs_no_negatives_and_ends_when_nothing_gets_better(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    corpus, run_dir = write_corpus(numbered_corpus(training=24, validation=8)), tmp_path / "run"
    settings = {
        "loss__contrastive_weight": 1.0,
        "loss__triplet_weight": 0.0,
        "loss__classification_weight": 0.0,
        "mining__negatives": 0,
        "mining__exclude_near_duplicates": "true",
        "train__lr": 1e-9,
        "train__epochs": 9,
        "eval__patience": 2,
    }
    done = train(*small_run(tiny_bert, corpus, run_dir, **settings))
    assert done.returncode == 0, done.stderr
    assert [record["epoch"] for record in records(run_dir, "eval")] == [0, 1, 2, 3]  # the first trained one is the best
    assert records(run_dir, "mine") == []
    steps = records(run_dir, "step")
    assert len(steps) == 9
    assert all(0 < step["train/loss"] == step["train/loss_contrastive"] for step in steps)
    assert (run_dir / "model/last/model.safetensors").is_file()


def test_both_indexes_and_separate_weights_train(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path) -> None:
    corpus = write_corpus(numbered_corpus(training=24))
    shared = {"mining__random_rate": 0.0, "train__epochs": 1, "model__sides": "encoders"}
    for index in ("balltree", "faiss"):
        done = train(*small_run(tiny_bert, corpus, tmp_path / index, mining__index=index, **shared))
        assert done.returncode == 0, done.stderr
    assert comparable(tmp_path / "balltree") == comparable(tmp_path / "faiss")
    assert (tmp_path / "faiss/model/last/router_config.json").is_file()


def test_wandb_records_offline_without_a_login(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path) -> None:
    """What W&B holds on disk is what metrics.jsonl holds, on the right axes, with the final model."""
    corpus, run_dir = write_corpus(numbered_corpus(training=16, validation=4)), tmp_path / "run"
    environment = {"WANDB_MODE": "", "WANDB_API_KEY": "", "NETRC": str(tmp_path / "none"), "HOME": str(tmp_path)}
    done = train(*small_run(tiny_bert, corpus, run_dir, train__lr=1.0), env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    logged, kinds = history(run_dir), ("step", "mine", "eval", "checkpoint")
    mine = [record for kind in kinds for record in records(run_dir, kind)]
    assert len(mine) == 4 + 2 + 3 + 2
    for record in mine:
        metrics = {name: value for name, value in record.items() if "/" in name}
        at = {name: record[name] for name in ("step", "epoch")}
        (entry,) = [line for line in logged if at.items() <= line.items() and metrics.keys() <= line.keys()]
        for name, value in metrics.items():
            assert entry[name] == value or (value is None and str(entry[name]).lower() == "nan"), name
    for name, count in ((HARDNESS, 2), (CLOSEST, 2), (examples("validation"), 3)):
        assert sum(any(key.startswith(name) for key in line) for line in logged) == count, name

    found = wandb_records(run_dir)
    axes = {r.metric.glob_name: r.metric.step_metric for r in found if r.WhichOneof("record_type") == "metric"}
    assert axes.items() >= {"train/*": "step", "mine/*": "epoch", "eval/*": "epoch", "checkpoint/*": "step"}.items()
    alerts = [record.alert.title for record in found if record.WhichOneof("record_type") == "alert"]
    assert alerts == [e["guard"] for e in records(run_dir, "event") if e["event"] == "alert"] != []
    (model,) = [r.artifact for r in found if r.WhichOneof("record_type") == "artifact" and r.artifact.type == "model"]
    assert {"model.safetensors", "README.md", "biencoder.json"} <= {entry.path for entry in model.manifest.contents}
    (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    shown = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert shown["train.lr"] == 1.0
    assert len(shown["data"]["fingerprint"]) == 64
    assert shown["commit"]


def spoilt(name: str, corpus: Path, tmp_path: Path) -> dict[str, Any]:
    match name:
        case "no folder":
            return {"data__root": tmp_path / "nowhere"}
        case "empty folder":
            (tmp_path / "empty").mkdir()
            return {"data__root": tmp_path / "empty"}
        case "bytes":
            bad = tmp_path / "bad"
            shutil.copytree(corpus, bad)
            next(bad.rglob("*a-point.txt")).write_bytes(b"caf\xe9 is not utf-8")
            return {"data__root": bad}
        case "misspelt":
            return {"train__lrr": 1}
        case "range":
            return {"train__lr": -1}
        case "batch":
            return {"train__global_batch_size": 7, "train__micro_batch_size": 2}
        case "big batch":
            return {"train__global_batch_size": 4096}
        case "no model":
            return {"model__name": tmp_path / "no-model"}
        case "unknown words":
            foreign = tmp_path / "foreign"
            shutil.copytree(corpus, foreign)
            for number, file in enumerate(sorted(foreign.rglob("*.txt"))):
                file.write_text(f"налоги растут {number}")
            return {"data__root": foreign}
        case "stage 0 fp16":
            (tmp_path / "ds.json").write_text('{"fp16": {"enabled": true}, "zero_optimization": {"stage": 0}}')
            return {"deepspeed_config": tmp_path / "ds.json", "train__precision": "auto"}
        case "two owners":
            (tmp_path / "ds.json").write_text('{"train_batch_size": 999}')
            return {"deepspeed_config": tmp_path / "ds.json"}
    raise AssertionError(name)


SENTENCES = {
    "no folder": "nowhere does not exist",
    "empty folder": "holds no corpus",
    "bytes": "is not UTF-8 text",
    "misspelt": "the nearest valid one is `train.lr`",
    "range": "expected a number > 0",
    "batch": "is not a multiple of micro_batch_size x ranks",
    "big batch": "is more than the 12 training pairs",
    "no model": "no-model does not exist",
    "unknown words": "are unknown to the tokenizer of model.name",
    "stage 0 fp16": "ZeRO stage 0, where DeepSpeed in fp16",
    "two owners": "sets train_batch_size to 999, but train.global_batch_size makes it 8",
}


@pytest.mark.parametrize(
    ("launcher", "name"),
    [("python", name) for name in SENTENCES]
    + [("ranks", name) for name in ("no folder", "batch", "no model", "bytes")]
    + [("torchrun", "misspelt"), ("deepspeed", "range")],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path, launcher: Any, name: str
) -> None:
    corpus = write_corpus(numbered_corpus(training=12))
    run_dir = tmp_path / "run"
    done = train(*small_run(tiny_bert, corpus, run_dir, **spoilt(name, corpus, tmp_path)), launcher=launcher, timeout_s=150)
    assert done.returncode == (1 if launcher == "torchrun" else 2)  # torchrun makes every failure a 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert SENTENCES[name] in errors[0]
    assert "entry.py" not in done.stderr  # no traceback of ours
    assert not run_dir.exists()


def test_help_explains_every_key_at_once() -> None:
    done = run([sys.executable, "-X", "importtime", "launcher/train.py", "--help"], timeout_s=20, fork=False)
    assert done.returncode == 0
    assert "biencoder.config.keys" in done.stderr
    assert "pydantic" not in done.stderr  # its import alone takes longer than the rest of the help
    for text in ("--train.lr ", "[a number > 0 and <= 10; default: 3e-06]", "--mining.index", "one of balltree, faiss"):
        assert text in done.stdout


@pytest.mark.parametrize("file", sorted(Path("configs").glob("*.toml")), ids=lambda file: file.name)
def test_recipes_are_valid(file: Path) -> None:
    load_config(file=file).check(world_size=1)
    assert tomllib.loads(file.read_text())
