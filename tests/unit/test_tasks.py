"""What each task searches, on a corpus small enough to know every candidate by hand."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from biencoder.data import Dataset, Split, load_dataset
from biencoder.errors import ConfigError, DataError
from biencoder.evaluation.comparison import measure
from biencoder.evaluation.rankers import EmbeddingRanker
from biencoder.evaluation.tasks import TASKS, choose_tasks, pools
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from tests.conftest import WriteCorpus

# Each text is its name, and each name its distance from the first point of debate a, which is the query to look at. Its
# own counter is the farthest text of all but one.
CORPUS = {
    ("validation", "parks", "a", "pro", 1, "point"): "0 the query",
    ("validation", "parks", "a", "pro", 1, "counter"): "50 its counter",
    ("validation", "parks", "a", "pro", 2, "point"): "4 beside it",
    ("validation", "parks", "a", "pro", 2, "counter"): "60 counter beside it",
    ("validation", "parks", "a", "con", 1, "point"): "6 against it",
    ("validation", "parks", "a", "con", 1, "counter"): "8 for it",
    ("validation", "parks", "b", "con", 1, "point"): "10 same theme",
    ("validation", "parks", "b", "con", 1, "counter"): "12 counter of same theme",
    ("validation", "taxes", "c", "pro", 1, "point"): "14 another theme",
    ("validation", "taxes", "c", "pro", 1, "counter"): "16 counter of another theme",
    ("training", "taxes", "d", "pro", 1, "point"): "18 another split",
    ("training", "taxes", "d", "pro", 1, "counter"): "20 counter of another split",
}
NEARER = {
    "sdoc": [],
    "sdc": [8],
    "sdoa": [6],
    "sda": [4, 6, 8],
    "stc": [8, 12],
    "sta": [4, 6, 8, 10, 12],
    "epc": [8, 12, 16],
    "epa": [4, 6, 8, 10, 12, 14, 16],
    "beir": [4, 6, 8, 10, 12, 14, 16, 18, 20],
}
"""For each task what stands between the query and its counter."""


def load(write_corpus: WriteCorpus, corpus: dict[tuple[str, str, str, str, int, str], str] = CORPUS) -> Dataset:
    return load_dataset(str(write_corpus(corpus)), clean=True, needs_training=False)


def on_a_line(dataset: Dataset) -> EmbeddingRanker:
    places = torch.tensor([[float(text.split()[0])] for text in dataset.texts])
    vectors = Vectors(places, places)
    return EmbeddingRanker(EmbeddedTexts.whole(np.arange(len(places)), vectors, vectors), None)


@pytest.mark.parametrize("name", TASKS)
def test_what_stands_between_a_query_and_its_counter(write_corpus: WriteCorpus, name: str) -> None:
    dataset = load(write_corpus)
    split = dataset.splits["validation"]
    (query,) = np.flatnonzero([dataset.texts[text] == "0 the query" for text in split.point_text_P])
    metrics = measure(on_a_line(dataset), TASKS[name], split, len(dataset.texts), top_k=10)["embedding"]
    for suffix in ("", "_text"):
        assert metrics[f"mrr@10{suffix}"][query] == pytest.approx(1 / (1 + len(NEARER[name])))
    (pool,) = [pool for pool in pools(TASKS[name], split, len(dataset.texts)) if query in pool.pair_Q]
    places = sorted(int(dataset.texts[text].split()[0]) for text in pool.candidate_text_C)
    assert [place for place in places if 0 < place < 50] == NEARER[name]
    (size,) = pool.num_candidates_Q[pool.pair_Q == query]
    assert size == len(NEARER[name]) + 2  # and its own counter, and the farther one


@pytest.mark.parametrize("name", TASKS)
def test_every_query_is_asked_once_and_gets_everything_but_itself(write_corpus: WriteCorpus, name: str) -> None:
    # The point of debate c stands in debate a as well, and as a counter in b: copies are rivals in the strict figure only.
    copied = CORPUS | {
        ("validation", "parks", "a", "con", 2, "point"): "14 another theme",
        ("validation", "parks", "a", "con", 2, "counter"): "30 another answer",
        ("validation", "parks", "b", "con", 1, "counter"): "14 another theme",
    }
    dataset = load(write_corpus, copied)
    split, ranker = dataset.splits["validation"], on_a_line(dataset)
    asked = []
    for pool in pools(TASKS[name], split, len(dataset.texts)):
        asked += pool.pair_Q.tolist()
        for listed in (pool, pool.distinct(split)):
            text_C, point_Q = listed.candidate_text_C, split.point_text_P[pool.pair_Q]
            assert text_C[listed.gold_Q].tolist() == split.counter_text_P[pool.pair_Q].tolist()
            found_Qk = ranker.rank(point_Q, text_C, listed.own_Q, k=len(text_C)).candidate_Qk
            for point, found_k, own in zip(point_Q, found_Qk, listed.own_Q, strict=True):
                expected = set(range(len(text_C))) - {own}
                assert set(found_k[found_k >= 0].tolist()) == expected
                if listed is not pool or name == "beir":
                    assert point not in text_C[sorted(expected)]
    assert sorted(asked) == list(range(len(split)))


def test_the_point_itself_and_not_its_copy_is_left_out_of_the_strict_list(write_corpus: WriteCorpus) -> None:
    copied = {
        (split, theme, debate, "pro", 1, kind): text
        for split, theme, debate in (("validation", "t", "one"), ("validation", "t", "two"))
        for kind, text in (("point", "0 point"), ("counter", "5 counter"))
    }
    dataset = load(write_corpus, copied)
    metrics = measure(on_a_line(dataset), TASKS["epa"], dataset.splits["validation"], 2, top_k=10)["embedding"]
    assert metrics["accuracy@1"].tolist() == [0, 0]  # the copy of the point comes first
    assert metrics["mrr@10"].tolist() == [1 / 2, 1 / 3]  # then the two copies of the counter, in their order
    assert metrics["accuracy@1_text"].tolist() == [1, 1]


def test_tasks_are_chosen_by_name_and_by_what_the_corpus_tells(write_corpus: WriteCorpus, tmp_path: Path) -> None:
    split = load(write_corpus).splits["validation"]
    assert [task.name for task in choose_tasks("all", split)] == list(TASKS)
    assert [task.name for task in choose_tasks("beir, sdoc", split)] == ["sdoc", "beir"]
    for text in ("epx", ",", ""):
        with pytest.raises(ConfigError, match="expected all, or some of sdoc, sdc"):
            choose_tasks(text, split)
    (tmp_path / "validation.csv").write_text("point,counter,topic\none,two,t\nthree,four,t\n")
    table = load_dataset(str(tmp_path / "validation.csv"), clean=True, needs_training=False).splits["training"]
    assert [task.name for task in choose_tasks("all", table)] == ["sdc", "sda", "epc", "epa", "beir"]
    with pytest.raises(DataError, match=r"sdoa .* needs the stance of each pair"):
        choose_tasks("sdoa,epa", table)


@pytest.mark.slow
def test_finding_the_pools_of_many_debates_takes_no_time_for_all_pairs_each() -> None:
    size = 40_000
    pairs: Any = tuple(
        SimpleNamespace(point=SimpleNamespace(domain="theme", topic=str(i // 2), stance=("pro", "con")[i % 2]))
        for i in range(size)
    )
    split = Split("test", pairs, np.arange(size), np.arange(size, 2 * size))
    start = time.process_time()
    found = list(pools(TASKS["sdoa"], split, 2 * size))
    assert (
        time.process_time() - start < 2.5
    )  # a look at every pair for each debate takes over 3 s, and grows with the square
    assert [pool.pair_Q.size for pool in found] == [1] * size
    for pool in found[:10]:
        pair = int(pool.pair_Q[0])
        assert pool.candidate_text_C.tolist() == [size + pair, pair + 1 - 2 * (pair % 2)]
