import json
import time
from pathlib import Path

import pandas
import pytest

from biencoder.data import Dataset, load_dataset, load_texts
from biencoder.data.cleaning import clean
from biencoder.errors import DataError
from tests.conftest import WriteCorpus, numbered_corpus

TWO = {
    ("training", "t", "d", "pro", 1, "point"): "Title\nfirst point",
    ("training", "t", "d", "pro", 1, "counter"): "first counter",
    ("training", "t", "d", "con", 1, "point"): "second point",
    ("training", "t", "d", "con", 1, "counter"): "second counter",
}


@pytest.mark.parametrize(
    ("raw", "tidy"),
    [
        ("Taxes &amp; tariffs &quot;work&quot;.", 'Taxes & tariffs "work".'),
        ("A claim.[1] More [2] text [iv].", "A claim. More text."),
        ("Body text.[1]\n\n[1] Someone, 'Title', 2009\n\n[2] Another", "Body text."),
        ("Body.\n\nReferences\n[1] Long entry that\nwraps\n[2] x", "Body."),
        ("[1] starts the text and stays a text", "starts the text and stays a text"),
        ("Two\n\n\nparagraphs  and\tblanks", "Two\nparagraphs and blanks"),
        ("An array [index] and a year [2009] stay", "An array [index] and a year [2009] stay"),
        ("Start.\n[1] is how this line begins\nbut it goes on\nfor three lines\nof plain text", None),
    ],
)
def test_cleaning(raw: str, tidy: str | None) -> None:
    if tidy is None:  # a body line that happens to start with a mark is no reference list
        assert clean(raw).endswith("of plain text")
    else:
        assert clean(raw) == tidy


BLANK = " \t\u00a0\u3000"


@pytest.mark.parametrize(
    "unit",
    [
        *BLANK,
        BLANK,
        "\n",
        " \n",
        "[",
        "[ ",
        "[1",
        "[1] ",
        "[1]\n",
        "[1]\nplain\nplain\n",
        "\n\n[1]\nplain\nplain\n",
        "notes\n",
        "notes     ",
        "]",
        "i",
        "&",
        "&#",
        "&amp;",
        "&nbsp;",
        "9",
        "0",
    ],
    ids=ascii,
)
@pytest.mark.parametrize(
    ("before", "after"), [("a", "b"), ("a\n[", "b"), ("a\nnotes", "b\n[1] c"), ("a&#", "65;b")], ids=ascii
)
def test_cleaning_takes_a_moment_for_a_megabyte_of_anything(before: str, unit: str, after: str) -> None:
    length = 1_000_000 if (before, after) == ("a", "b") else 200_000
    text = before + unit * (length // len(unit)) + after
    start = time.process_time()
    clean(text)
    assert time.process_time() - start < 5  # it takes under 1 s; what is not linear takes minutes


def texts_of(dataset: Dataset, split: str) -> list[tuple[str, str]]:
    found = dataset.splits[split]
    return [(dataset.texts[p], dataset.texts[c]) for p, c in zip(found.point_text_P, found.counter_text_P, strict=True)]


def test_arguana_layout(write_corpus: WriteCorpus) -> None:
    root = write_corpus(
        TWO | {("training", "t", "d", "con", 2, "point"): "a point alone", ("test", "t", "d", "pro", 1, "counter"): "alone"}
    )
    (root / "training/t/d/thesis.txt").write_text("no argument")
    (root / "training/t/d/pro/notes.txt").write_text("who knows")
    dataset = load_dataset(str(root), clean=True)
    assert texts_of(dataset, "training") == [
        ("second point", "second counter"),
        ("Title\nfirst point", "first counter"),
    ]
    assert list(dataset.splits) == ["training"]
    counts = dataset.findings.counts
    assert counts["point without a counter (dropped)"] == 1
    assert counts["counter without a point (dropped)"] == 1
    assert counts["file that is no argument (ignored)"] == 1
    assert counts["split without pairs (skipped)"] == 2
    assert "notes.txt" in dataset.findings.examples["file that is no argument (ignored)"][0]


def test_same_text_is_one_id_and_is_counted(write_corpus: WriteCorpus) -> None:
    copy = {(split, "other", "d", *rest): text for (split, _, _, *rest), text in TWO.items()}
    across = {("validation", *rest): text for (_, *rest), text in TWO.items()}
    same = {("training", "t", "d", "pro", 9, kind): "both the same" for kind in ("point", "counter")}
    dataset = load_dataset(str(write_corpus(TWO | copy | across | same)), clean=True)
    assert len(dataset.texts) == 4
    assert len(dataset.splits["training"]) == 4
    counts = dataset.findings.counts
    assert counts["text repeated within a split"] == 4
    assert counts["text that stands in two splits"] == 4
    assert counts["point and counter are the same text (pair dropped)"] == 1


def test_empty_text_is_dropped_and_named(write_corpus: WriteCorpus) -> None:
    empty = {("training", "t", "d", "pro", 2, "point"): " \n", ("training", "t", "d", "pro", 2, "counter"): "x"}
    dataset = load_dataset(str(write_corpus(TWO | empty)), clean=True)
    assert len(dataset.splits["training"]) == 2
    assert "pro02a-point.txt" in dataset.findings.examples["empty point (dropped)"][0]


def test_cleaning_is_a_switch_and_part_of_the_fingerprint(write_corpus: WriteCorpus) -> None:
    root = str(write_corpus(TWO | {("training", "t", "d", "pro", 1, "counter"): "first &amp; counter"}))
    cleaned, raw = load_dataset(root, clean=True), load_dataset(root, clean=False)
    assert "first & counter" in cleaned.texts
    assert "first &amp; counter" in raw.texts
    assert cleaned.fingerprint != raw.fingerprint
    assert cleaned.fingerprint == load_dataset(root, clean=True).fingerprint


def test_tables_hold_the_same_pairs(tmp_path: Path) -> None:
    rows = [
        {"point": f"point {i}", "counter": f"counter {i}", "id": f"{i}", "split": "train" if i else "dev"} for i in range(4)
    ]
    frame = pandas.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "folder").mkdir()
    frame[1:].drop(columns="split").to_csv(tmp_path / "folder/train.csv", index=False)
    frame[:1].drop(columns="split").to_json(tmp_path / "folder/validation.jsonl", orient="records", lines=True)
    datasets = [load_dataset(str(tmp_path / name), clean=True) for name in ("a.csv", "a.parquet", "a.jsonl", "folder")]
    assert {dataset.fingerprint for dataset in datasets} == {datasets[0].fingerprint}
    assert texts_of(datasets[0], "validation") == [("point 0", "counter 0")]
    assert len(datasets[0].splits["training"]) == 3


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_texts_alone_can_be_searched_but_not_trained_on(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"texts.{kind}"
    frame = pandas.DataFrame({"text": ["a  text.[1]", "another &amp; more", "", "a text."], "topic": "taxes"})
    match kind:
        case "jsonl":
            file.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")))
        case "csv":
            frame.to_csv(file, index=False)
        case "parquet":
            frame.to_parquet(file)
    texts, findings = load_texts(str(file), clean=True)
    assert texts == ("a text.", "another & more")
    assert findings.counts == {"empty text (dropped)": 1, "repeated text (dropped)": 1}
    assert findings.examples["repeated text (dropped)"] == [f"{file}:{5 if kind == 'csv' else 4}"]  # after its header
    assert load_texts(str(file), clean=False)[0] == ("a text.[1]", "another &amp; more", "a text.")
    with pytest.raises(DataError, match="lacks the columns point and counter; it has text, topic"):
        load_dataset(str(file), clean=True, needs_training=False)


def test_a_corpus_of_pairs_is_searched_among_all_its_texts(write_corpus: WriteCorpus, tmp_path: Path) -> None:
    root = str(write_corpus(numbered_corpus(training=5)))
    assert load_texts(root, clean=True)[0] == load_dataset(root, clean=True).texts
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"text": "ignored", "point": "a", "counter": "b"}')
    assert load_texts(str(file), clean=True)[0] == ("a", "b")
    file.write_text('{"text": " "}')
    with pytest.raises(DataError, match="holds no text"):
        load_texts(str(file), clean=True)


def broken(tmp_path: Path, kind: str, write_corpus: WriteCorpus) -> Path:
    root = tmp_path / kind
    match kind:
        case "nothing":
            return root
        case "empty":
            root.mkdir()
        case "bytes":
            root = write_corpus(TWO)
            (root / "training/t/d/pro/pro01a-point.txt").write_bytes(b"caf\xe9")
        case "no pairs":
            root = write_corpus({("training", "t", "d", "pro", 1, "point"): "alone"})
        case "one pair":
            root = write_corpus(dict(list(TWO.items())[:2]))
        case "bad.jsonl":
            root.write_text('{"point": 1')
        case "columns.csv":
            root.write_text("a,b\n1,2\n")
        case "latin.csv":
            root.write_bytes(b"point,counter\ncaf\xe9,x\n")
        case "file.xyz":
            root.write_text("")
        case "split.jsonl":
            root.write_text('{"point": "a", "counter": "b", "split": "holdout"}')
    return root


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("nothing", "does not exist"),
        ("empty", "holds no corpus"),
        ("bytes", "pro01a-point.txt is not UTF-8 text (byte 3 is 0xe9)"),
        ("no pairs", "holds no pair"),
        ("one pair", "holds 1 training pairs; at least 2"),
        ("bad.jsonl", "bad.jsonl:1 is not valid JSON: Expecting ',' delimiter at character 12"),
        ("columns.csv", "lacks the columns point and counter; it has a, b"),
        ("latin.csv", "is not UTF-8 text"),
        ("file.xyz", "is a file of unknown type"),
        ("split.jsonl", "split is 'holdout', expected one of"),
    ],
)
def test_broken_corpora_stop_with_one_sentence(tmp_path: Path, write_corpus: WriteCorpus, kind: str, sentence: str) -> None:
    with pytest.raises(DataError) as error:
        load_dataset(str(broken(tmp_path, kind, write_corpus)), clean=True)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_split_arrays_follow_the_pairs(write_corpus: WriteCorpus) -> None:
    dataset = load_dataset(str(write_corpus(numbered_corpus(training=20))), clean=True)
    split = dataset.splits["training"]
    assert [dataset.texts[i] for i in split.point_text_P] == [pair.point.text for pair in split.pairs]
    assert len(split.text_ids) == 40
