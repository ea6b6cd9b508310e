"""Models and baselines side by side, as a user asks for them."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from biencoder.errors import BiencoderError
from launcher.evaluate import main
from tests.commands import run
from tests.conftest import WriteCorpus, numbered_corpus
from tests.models import export

pytestmark = pytest.mark.e2e


def test_models_and_baselines_stand_in_one_table_and_one_file(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    leaking = {("training", "theme", "debate-9", "con", 1, kind): f"fox fox {kind} 0" for kind in ("point", "counter")}
    corpus = write_corpus(numbered_corpus(training=0, validation=13) | leaking)
    export(tiny_bert, tmp_path / "ours", normalize=True, pooling="mean")
    shutil.copytree(tmp_path / "ours", tmp_path / "theirs", ignore=shutil.ignore_patterns("biencoder.json"))
    out = tmp_path / "results.json"
    options = ["--baselines", "--leak-free", "--tasks", "epa,sda,beir", "--out", str(out)]
    models = [part for name in ("ours", "theirs") for part in ("--model", str(tmp_path / name))]
    done = run([sys.executable, "launcher/evaluate.py", *models, "--data.root", str(corpus), *options])
    assert (done.returncode, done.stderr) == (0, "")
    assert "leak-free: 7 of 13 validation queries stay; 1 of 3 debates" in done.stdout

    told = json.loads(out.read_text())
    base = f"zero-shot {tiny_bert.name}, 16 tokens"
    assert [row["name"] for row in told["rows"]] == ["ours", "ours, re-ranked", "theirs", base, "BM25", "TF-IDF"]
    assert told["rows"][0]["figures"] == told["rows"][2]["figures"]
    assert (told["queries"], told["leak_free"]["queries"], told["split"]) == (7, 13, "validation")
    assert told["tasks"]["epa"]["mean_candidates"] == 25
    assert told["tasks"]["beir"]["mean_candidates"] == 25

    sections = done.stdout.split("\nsda: ")[1].split("\nepa: ")
    assert len(sections) == 2
    for line in [line for line in sections[0].splitlines() if line.startswith(("BM25", "ours "))]:
        (row,) = [row for row in told["rows"] if line.startswith(f"{row['name']} ")]
        value, low, high = row["figures"]["sda"]["accuracy@1"]
        assert line.removeprefix(row["name"]).split()[:2] == [f"{100 * value:.1f}", f"{100 * low:.1f}–{100 * high:.1f}"]
    assert max(len(line.rstrip()) for line in done.stdout.split("beir: ")[1].splitlines()[:-1]) <= 80


def test_a_foreign_model_alone_gets_the_table_of_training(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = str(write_corpus(numbered_corpus(training=12, validation=13)))
    export(tiny_bert, tmp_path / "ours", normalize=True, pooling="mean")
    shutil.copytree(tmp_path / "ours", tmp_path / "theirs", ignore=shutil.ignore_patterns("biencoder.json"))
    rows = []
    for name in ("ours", "theirs"):
        main(["--model", str(tmp_path / name), "--data.root", corpus])
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(name)]
        rows.append(line.split()[1:])
    assert [rows[0][0], rows[0][2]] == [rows[1][0], rows[1][2]]
    assert rows[1][1] == rows[1][3] == "–"  # nothing to re-rank with


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give --model DIR, or --baselines"),
        (["--baselines", "--split", "test"], "--split is 'test', but {corpus} has training, validation"),
        (["--baselines", "--tasks", "epq"], "--tasks epq: epq is no task"),
        (["--baselines", "--out", "{corpus}/none/results.json"], "the folder {corpus}/none does not exist"),
        (["--baselines", "--out", "{corpus}"], "{corpus} cannot be written"),
        (["--model", "{corpus}", "--model", "{corpus}"], "it has no biencoder.json"),
        (["--model", "x", "--top-k", "0"], "--top-k is 0, expected an integer >= 1"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(write_corpus: WriteCorpus, arguments: list[str], sentence: str) -> None:
    corpus = str(write_corpus(numbered_corpus(training=12)))
    with pytest.raises(BiencoderError) as error:
        main([*(argument.format(corpus=corpus) for argument in arguments), "--data.root", corpus])
    assert sentence.format(corpus=corpus) in str(error.value)
    assert "\n" not in str(error.value)
