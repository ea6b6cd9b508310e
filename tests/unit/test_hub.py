"""Datasets of the hub are read through `datasets`: here from folders, which the library takes by the same names."""

import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from biencoder.data import load_dataset, load_texts
from biencoder.errors import DataError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def publish(name: str, **splits: dict[str, list[object]]) -> None:
    Path(name).mkdir(parents=True)
    for split, columns in splits.items():
        parquet.write_table(pyarrow.table(columns), f"{name}/{split}.parquet")


def test_splits_and_columns_are_read_as_those_of_files() -> None:
    train: dict[str, list[object]] = {
        "question": ["q1", "q2"],
        "answer": ["a1", "a2"],
        "negative": ["n", None],
        "url": [1, 2],
    }
    publish("owner/name", train=train, validation={name: values[:1] for name, values in train.items()})
    publish("files", train=train, validation={name: values[:1] for name, values in train.items()})
    dataset, files = (load_dataset(root, clean=True, given=True) for root in ("hf:owner/name", "files"))
    assert dataset.fingerprint == files.fingerprint
    assert dataset.splits["training"].pairs[1].point.source == "hf:owner/name/train:2"
    assert [(reading.source, reading.rows, reading.left_out) for reading in dataset.findings.readings] == [
        ("hf:owner/name/train", 2, ("url",)),
        ("hf:owner/name/validation", 1, ("url",)),
    ]
    publish("owner/more", train={"_id": ["1", "2"], "title": ["T", ""], "text": ["x", "q1"]})
    with_more = load_dataset("hf:owner/name", clean=True, corpus="hf:owner/more")
    assert [with_more.texts[i] for i in with_more.splits["training"].corpus_text_C] == ["T x"]
    assert load_texts("hf:owner/name", clean=True, corpus="hf:owner/more")[0] == ("q1", "q2", "a1", "a2", "T x")


def test_what_cannot_be_loaded_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    publish("owner/name", train={"title": ["a"], "body": ["b"]})
    for root, sentence in {
        "hf:owner/nothing": "hf:owner/nothing cannot be loaded: the hub cannot be reached, and the cache of",
        "hf:owner/name:other": "hf:owner/name:other cannot be loaded: BuilderConfig 'other' not found",
        "hf:two words": "hf:two words is no name on the hub; expected hf:owner/name or hf:owner/name:config",
        "hf:owner/name": "hf:owner/name lacks the columns point and counter; it has title, body; say which columns",
    }.items():
        for read in (load_dataset, load_texts):
            with pytest.raises(DataError) as error:
                read(root, clean=True)
            assert str(error.value).startswith(sentence)
            assert "\n" not in str(error.value)
    assert (
        len(load_dataset("hf:owner/name", clean=True, columns="point=title,counter=body", needs_training=False).texts) == 2
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="hf:owner/name needs the package datasets: pip install datasets"):
        load_dataset("hf:owner/name", clean=True)
