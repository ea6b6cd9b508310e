"""`data.candidates = counters`: pairs are queries, each with all its answers, over the counters of their split."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from biencoder import mine
from biencoder.config.schema import MiningConfig
from biencoder.data import Dataset, Forbidden, load_dataset, load_texts
from biencoder.distributed.world import World
from biencoder.errors import DataError
from biencoder.evaluation import evaluate_split
from biencoder.evaluation.tasks import choose_tasks
from biencoder.mining import Miner
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.training.contrastive import targets

ROWS = [
    {"question": "q0", "answer": "a0", "split": "train"},
    {"question": "q1", "answer": "a1", "split": "train"},
    {"question": "q0", "answer": "a2", "split": "train"},
    {"question": "q2", "answer": "a1", "split": "train"},
    {"question": "a0", "answer": "a3", "split": "train"},
    {"question": "q3", "answer": "a2", "split": "dev"},
    {"question": "q0", "answer": "a4", "split": "dev"},
]


def lines(file: Path, rows: list[dict[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture
def table(tmp_path: Path) -> str:
    return lines(tmp_path / "table.jsonl", ROWS)


def beir(root: Path) -> Dataset:
    """The training rows as queries over a corpus of their answers."""
    lines(root / "corpus.jsonl", [{"_id": f"a{n}", "text": f"a{n}"} for n in range(4)])
    pairs = [(row["question"], row["answer"]) for row in ROWS if row["split"] == "train"]
    lines(root / "queries.jsonl", [{"_id": query, "text": query} for query in dict(pairs)])
    (root / "qrels").mkdir()
    judged = [f"{query}\t{answer}\t1\n" for query, answer in pairs]
    (root / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    return load_dataset(str(root), clean=True)


def embed(dataset: Dataset, text_ids: Any) -> EmbeddedTexts:
    """Vectors that depend on the texts alone."""
    seeds = [int.from_bytes(dataset.texts[text].encode(), "big") for text in text_ids]
    rows = torch.tensor(np.array([np.random.default_rng(seed).standard_normal(6) for seed in seeds], dtype=np.float32))
    return EmbeddedTexts.whole(np.asarray(text_ids), Vectors(rows, rows), Vectors(rows, rows))


def mined(dataset: Dataset) -> list[list[str]]:
    split = dataset.splits["training"]
    config = MiningConfig(negatives=2, random_rate=0.5)
    miner = Miner(split, Forbidden.of(split, len(dataset.texts)), World.alone(), config, seed=3, num_epochs=1)
    negative_text_PK = miner.mine(0, embed(dataset, split.text_ids)).negative_text_PK
    return [[dataset.texts[text] for text in row] for row in negative_text_PK]


def measured(dataset: Dataset) -> Any:
    split = dataset.splits["training"]
    return evaluate_split(split, embed(dataset, split.text_ids), None, top_k=0, world=World.alone())


def test_it_equals_a_beir_folder_whose_corpus_are_the_answers(table: str, tmp_path: Path) -> None:
    found, expected = load_dataset(table, clean=True, candidates="counters"), beir(tmp_path / "beir")
    assert mined(found) == mined(expected)
    assert {text[0] for row in mined(found) for text in row} == {"a"}
    assert (measured(found).num_queries, measured(found).num_candidates) == (4, 4)
    assert measured(found).metrics == measured(expected).metrics
    assert "embedding/recall@10" in measured(found).metrics


def test_without_it_questions_are_candidates_and_the_data_is_other_data(table: str) -> None:
    plain, found = (load_dataset(table, clean=True, candidates=told) for told in ("auto", "counters"))
    assert measured(plain).num_candidates == 9
    assert plain.fingerprint != found.fingerprint
    choose_tasks("epa", plain.splits["training"])
    with pytest.raises(DataError, match=r"data\.candidates = counters"):
        choose_tasks("epa", found.splits["training"])


def test_each_split_has_its_own_answers_and_all_have_the_further_texts(table: str, tmp_path: Path) -> None:
    corpus = lines(tmp_path / "more.jsonl", [{"text": "x"}, {"text": "a2"}, {"text": "q1"}])
    dataset = load_dataset(table, clean=True, candidates="counters", corpus=corpus)
    names = {name: sorted(dataset.texts[i] for i in split.candidate_text_C) for name, split in dataset.splits.items()}
    assert names == {"training": ["a0", "a1", "a2", "a3", "q1", "x"], "validation": ["a2", "a4", "q1", "x"]}
    assert dataset.findings.counts["text that stands in two splits"] == 2  # q0 and a2
    texts, _ = load_texts(table, clean=True, candidates="counters", corpus=corpus)
    assert sorted(texts) == ["a0", "a1", "a2", "a3", "a4", "q1", "x"]


def test_points_are_no_rivals_of_the_contrastive_loss(table: str) -> None:
    samples_RS, none_PK = np.array([[0, 1], [2, 4]]), np.empty((5, 0), dtype=np.int64)
    counts = {}
    for told in ("auto", "counters"):
        split = load_dataset(table, clean=True, candidates=told).splits["training"]
        counts[told] = len(targets(samples_RS, split, none_PK, Forbidden.of(split, 20), rank=0).rivals_S)
    assert counts == {"auto": 2, "counters": 0}


def test_mine_takes_it_too() -> None:
    vectors = np.eye(6, dtype=np.float32)
    vectors[1] = vectors[0]  # the other point is the nearest text to the first one
    points, counters = ["p", "q", "r"], ["a", "b", "c"]
    assert mine(points, counters, (vectors[:3], vectors[3:]))[0] == ["q"]
    assert mine(points, counters, (vectors[:3], vectors[3:]), candidates="counters")[0] == ["b"]
