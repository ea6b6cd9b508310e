"""Further texts of `data.corpus` are candidates that belong to no pair, in every layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from biencoder.config.schema import MiningConfig
from biencoder.data import Dataset, Forbidden, load_dataset, load_texts
from biencoder.distributed.world import World
from biencoder.errors import DataError
from biencoder.evaluation import evaluate_split
from biencoder.mining import Miner
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.embedding import EmbeddedTexts

PAIRS = [
    {"point": "a", "counter": "b", "split": "train"},
    {"point": "c", "counter": "d", "split": "train"},
    {"point": "a", "counter": "e", "split": "train"},
    {"point": "v", "counter": "w", "split": "dev"},
]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def load(root: str, corpus: str, columns: str = "") -> Dataset:
    return load_dataset(root, clean=True, corpus=corpus, columns=columns)


def named(dataset: Dataset, text_ids: Any) -> list[str]:
    return [dataset.texts[text_id] for text_id in text_ids]


def embed(dataset: Dataset) -> EmbeddedTexts:
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((len(dataset.texts), 6), dtype=np.float32))
    return EmbeddedTexts.whole(np.arange(len(rows)), Vectors(rows, rows), Vectors(rows, rows))


def test_a_text_is_one_candidate_of_each_split(tmp_path: Path) -> None:
    root = write(tmp_path / "a.jsonl", PAIRS)
    rows = [{"text": text, "url": "u"} for text in ("x", "b", "y[1]", "x", "w", " ", "a")]
    dataset = load(root, write(tmp_path / "more.jsonl", rows))
    assert named(dataset, dataset.splits["training"].candidate_text_C) == [*"bde", *"aca", *"xyw"]
    assert named(dataset, dataset.splits["validation"].candidate_text_C) == [*"wv", *"xbya"]
    assert dataset.splits["training"].judgements is None
    counts = {kind: count for kind, count in dataset.findings.counts.items() if "data.corpus" in kind}
    assert counts == {
        "repeated text in data.corpus (dropped)": 1,
        "empty text in data.corpus (dropped)": 1,
        "text of data.corpus (a candidate only)": 2,
        "text of data.corpus that stands in a pair": 3,
    }
    (reading,) = (reading for reading in dataset.findings.readings if reading.source.endswith("more.jsonl"))
    assert (reading.rows, reading.columns, reading.left_out) == (7, {"text": "text"}, ("url",))
    assert set(load_texts(root, clean=True, corpus=str(tmp_path / "more.jsonl"))[0]) == set(dataset.texts)
    plain = load(root, "")
    assert dataset.texts[: len(plain.texts)] == plain.texts
    assert len({plain.fingerprint, dataset.fingerprint, load(root, write(tmp_path / "x.jsonl", rows[:1])).fingerprint}) == 3


def test_they_are_mined_and_ranked_but_a_right_answer_is_never_mined(tmp_path: Path) -> None:
    pairs = [{"point": f"p{i}", "counter": f"c{i}"} for i in range(20)]
    texts = [{"text": f"c{i}"} for i in range(20)] + [{"text": f"x{i}"} for i in range(200)]
    dataset = load(write(tmp_path / "a.jsonl", pairs), write(tmp_path / "more.jsonl", texts))
    split, embedded = dataset.splits["training"], embed(dataset)
    forbidden = Forbidden.of(split, len(dataset.texts))
    for config in (MiningConfig(random_rate=0.0, negatives=4), MiningConfig(random_rate=1.0, negatives=4)):
        mined = Miner(split, forbidden, World.alone(), config, seed=0, num_epochs=1).mine(0, embedded)
        assert mined.audit.figures.forbidden == 0
        further = sum(text.startswith("x") for text in named(dataset, mined.negative_text_PK.ravel()))
        assert 0.75 < further / 80 < 0.95  # 200 of 240 candidates
    result = evaluate_split(split, embedded, None, top_k=5, world=World.alone())
    assert (result.num_queries, result.num_candidates) == (20, 239)


def test_a_beir_folder_gets_further_passages(tmp_path: Path) -> None:
    more = write(tmp_path / "more.jsonl", [{"title": "A title", "text": f"text {i}"} for i in range(3)])
    plain = load_dataset("examples/handbook", clean=True)
    copy = write(tmp_path / "copy.jsonl", [{"body": plain.texts[0]}])
    dataset = load("examples/handbook", more)
    for name, split in dataset.splits.items():
        assert len(split.corpus_text_C) == len(plain.splits[name].corpus_text_C) + 3
        assert named(dataset, split.corpus_text_C[-1:]) == ["A title text 2"]
        assert split.judgements
    assert dataset.findings.readings[0].columns == {"text": "title + text"}
    again = load("examples/handbook", copy, columns="text=body")
    assert len(again.splits["test"].corpus_text_C) == 264
    assert len(load_texts("examples/handbook", clean=True, corpus=more)[0]) == 267


def test_several_tables_and_folders_of_them(tmp_path: Path) -> None:
    root = write(tmp_path / "a.jsonl", PAIRS)
    folder = tmp_path / "more"
    for i in range(2):
        write(folder / f"corpus-0000{i}-of-00002.jsonl", [{"text": f"shard {i}"}])
    (folder / "README.md").write_text("no table")
    one = write(tmp_path / "one, two.jsonl", [{"text": "one"}])
    two = write(tmp_path / "two.jsonl", [{"text": "two"}])
    for corpus, texts in {
        str(folder): ["shard 0", "shard 1"],
        one: ["one"],
        f"{two}, {folder}": ["two", "shard 0", "shard 1"],
    }.items():
        dataset = load(root, corpus)
        assert named(dataset, dataset.splits["training"].corpus_text_C) == texts


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [{"body": "x"}],
            "more.jsonl lacks the column text; it has body; say which column holds the texts of data.corpus with",
        ),
        ([{"text": ["x"]}], "more.jsonl:1: text is a list, expected text"),
        ([{"text": "x"}, {"text": "y", "title": 3}], "more.jsonl:2: title is a number, expected text"),
        ([{"text": " "}], "more.jsonl holds no text"),
        ([], "more.jsonl lacks the column text; it has nothing"),
        (None, "more.jsonl does not exist; expected tables, or folders of them, separated by commas"),
    ],
    ids=str,
)
def test_what_is_no_text_is_one_sentence(tmp_path: Path, rows: list[dict[str, Any]] | None, sentence: str) -> None:
    root, corpus = write(tmp_path / "a.jsonl", PAIRS), tmp_path / "more.jsonl"
    if rows is not None:
        write(corpus, rows)
    for read in (load_dataset, load_texts):
        with pytest.raises(DataError) as error:
            read(root, clean=True, corpus=str(corpus))
        assert sentence in str(error.value)
        assert "\n" not in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no table: expected files that end in"):
        load(root, str(tmp_path / "empty"))
