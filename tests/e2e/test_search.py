"""A corpus is embedded once, and answers from its folder from then on, as a user does it."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from biencoder.config.paths import typed
from biencoder.errors import BiencoderError
from launcher import evaluate, index, search
from tests.commands import run
from tests.conftest import WriteCorpus, numbered_corpus
from tests.models import export

pytestmark = pytest.mark.e2e
QUERY = "fox taxes point 3"


def test_an_index_answers_without_the_corpus_as_a_search_of_the_corpus_does(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    corpus, model, folder = write_corpus(numbered_corpus(training=30)), tmp_path / "model", tmp_path / "index"
    export(tiny_bert, model, sides="heads", pooling="mean")
    anew = ["launcher/search.py", "--model", str(model), "--data.root", str(corpus), "--top-k", "4", QUERY]
    make = ["launcher/index.py", "--model", str(model), "--data.root", str(corpus), "--out", str(folder), "--kind", "ivf"]
    expected, made = run([sys.executable, *anew]), run([sys.executable, *make])
    assert (made.returncode, made.stderr) == (0, "")
    again = shlex.join([*typed("search"), "--index", str(folder), "your argument"])
    assert made.stdout.endswith(f" is in {folder}: 0.0 MiB, finds 100.0 % of the 10 nearest.\nSearch it: {again}\n")
    shutil.rmtree(corpus)
    found = run([sys.executable, "launcher/search.py", "--index", str(folder), "--top-k", "4", QUERY])
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.count("%") == 4
    assert found.stdout == expected.stdout


def test_texts_alone_can_be_searched_and_reranked(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder, texts = tmp_path / "model", tmp_path / "index", tmp_path / "texts.jsonl"
    export(tiny_bert, model)
    lines = [f"{a} against {b}" for a in ("fox", "dog", "taxes", "votes") for b in ("quick", "lazy", "brown")]
    texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in [*lines, lines[0], ""]))
    index.main(["--model", str(model), "--data.root", str(texts), "--out", str(folder)])
    told = capsys.readouterr().out
    assert "repeated text (dropped)" in told
    assert "empty text (dropped)" in told
    orders = []
    for rerank in ("--no-rerank", "--rerank"):
        search.main(["--index", str(folder), "--data.root", str(texts), "--top-k", "12", rerank, "a lazy dog"])
        rows = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines() if "%" in line]
        assert sorted(row[3].strip() for row in rows) == sorted(lines)
        orders.append([(float(row[0]), int(row[1])) for row in rows])
    nearest, reranked = orders
    assert [distance for distance, _ in nearest] == sorted(distance for distance, _ in nearest)
    assert [probability for _, probability in reranked] == sorted((p for _, p in nearest), reverse=True)


def test_an_index_knows_the_corpus_that_it_was_made_of_and_the_way_it_was_read(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of pairs and further texts: with the points, and without them."""
    model, folder, pairs, more = (tmp_path / name for name in ("model", "index", "pairs.csv", "more.csv"))
    export(tiny_bert, model)
    pairs.write_text("q,a\nfox,dog\nlazy,quick\n")
    more.write_text("text\nvotes\n")
    read = ["--data.root", str(pairs), "--data.columns", "point=q,counter=a", "--data.corpus", str(more)]
    for candidates, count in (("counters", 3), ("auto", 5)):
        told = [*read, "--data.candidates", candidates]
        index.main(["--model", str(model), *told, "--out", str(folder)])
        capsys.readouterr()
        search.main(["--index", str(folder), *told, "--top-k", "9", "taxes"])
        assert capsys.readouterr().out.count("%") == count
    with pytest.raises(BiencoderError, match=r"is of other texts \(5\) than data.root holds now \(3\)"):
        search.main(["--index", str(folder), *read, "--data.candidates", "counters", "taxes"])


def test_without_a_classifier_there_is_no_probability_and_no_reranking(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, model = str(write_corpus(numbered_corpus(training=4))), tmp_path / "model"
    export(tiny_bert, model)
    (model / "classifier.safetensors").unlink()
    command = ["--model", str(model), "--data.root", corpus, "--top-k", "3", QUERY]
    search.main(command)
    told = capsys.readouterr().out
    assert "%" not in told
    assert "is a counter" not in told
    with pytest.raises(BiencoderError, match="--rerank wants a pair classifier, and the model has none"):
        search.main(["--rerank", *command])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("retrained", "was made by a model with other weights"),
        ("moved", "{tmp}/model, the model of the index in {tmp}/index, is not there; say where it is with --model"),
        ("grown", "is of other texts (8) than data.root holds now (10)"),
        ("no index", "{tmp}/index is no index: it has no index.json; make one with {index}"),
        ("nothing", "nothing to search with: give --model and --data.root, or --index"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path, change: str, sentence: str
) -> None:
    corpus, model, folder = str(write_corpus(numbered_corpus(training=4))), tmp_path / "model", tmp_path / "index"
    export(tiny_bert, model)
    index.main(["--model", str(model), "--data.root", corpus, "--out", str(folder)])
    command = ["--index", str(folder), "--data.root", corpus, QUERY]
    match change:
        case "retrained":
            export(tiny_bert, model, pooling="mean")
        case "moved":
            model.rename(tmp_path / "elsewhere")
        case "grown":
            write_corpus(numbered_corpus(training=5))
        case "no index":
            (folder / "index.json").unlink()
        case "nothing":
            command = [QUERY]
    with pytest.raises(BiencoderError) as error:
        search.main(command)
    assert sentence.format(tmp=tmp_path, index=" ".join(typed("index"))) in str(error.value)
    assert "\n" not in str(error.value)
    if change == "moved":
        search.main(["--model", str(tmp_path / "elsewhere"), *command])


def test_texts_and_queries_are_taken_as_in_the_model_s_training(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, model, folder = tmp_path / "texts.jsonl", tmp_path / "model", tmp_path / "index"
    texts.write_text('{"text": "fox &amp; dog.[1]"}\n{"text": "taxes &amp; votes"}\n')
    for clean in (True, False):
        export(tiny_bert, model, clean=clean)
        of_model = ["--model", str(model), "--data.root", str(texts)]
        index.main([*of_model, "--out", str(folder)])
        capsys.readouterr()
        shown = "taxes & votes" if clean else "taxes &amp; votes"
        for command in (of_model, ["--index", str(folder)], ["--index", str(folder), "--data.root", str(texts)]):
            search.main([*command, "--top-k", "2", "fox  &amp; dog.[1]"])
            rows = [line for line in capsys.readouterr().out.splitlines() if "%" in line]
            assert len(rows) == 1  # the query's own text is left out
            assert rows[0].rstrip().endswith(shown)
        search.main([*of_model, "--no-clean" if clean else "--clean", "nothing of both"])
        assert shown not in capsys.readouterr().out
        with pytest.raises(BiencoderError, match="and queries are taken alike"):
            search.main(["--index", str(folder), "--no-clean" if clean else "--clean", "dog"])


def test_models_that_were_trained_on_texts_of_two_kinds_need_a_word(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = str(write_corpus(numbered_corpus(training=4) | {("training", "t", "d", "pro", 1, "point"): "a &amp; b"}))
    for name in ("one", "other"):
        export(tiny_bert, tmp_path / name, clean=name == "one")
    models = ["--model", str(tmp_path / "one"), "--model", str(tmp_path / "other")]
    with pytest.raises(BiencoderError, match="say which to take, with --clean or --no-clean"):
        evaluate.main([*models, "--data.root", corpus])
    for told in (["--no-clean", *models], ["--model", str(tmp_path / "other"), "--tasks", "beir"]):
        evaluate.main([*told, "--data.root", corpus, "--out", str(tmp_path / "figures.json")])
        assert json.loads((tmp_path / "figures.json").read_text())["corpus"]["clean"] is False


def test_a_folder_of_somebody_else_is_not_written_to(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path) -> None:
    corpus, model = write_corpus(numbered_corpus(training=4)), tmp_path / "model"
    export(tiny_bert, model)
    with pytest.raises(BiencoderError, match=r"is no output of this command \(it has no index.json\)"):
        index.main(["--model", str(model), "--data.root", str(corpus), "--out", str(model)])
    assert (model / "biencoder.json").is_file()
