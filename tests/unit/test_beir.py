"""Queries over a corpus in the form of BEIR: reading, what may be a negative, and metrics of several right answers."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from biencoder.config.schema import MiningConfig
from biencoder.data import Dataset, Forbidden, Split, load_dataset, load_texts
from biencoder.data.dataset import Judgements
from biencoder.distributed.world import World
from biencoder.errors import DataError
from biencoder.evaluation import evaluate_split
from biencoder.evaluation.metrics import Answers, judged_metrics
from biencoder.evaluation.tasks import choose_tasks
from biencoder.mining import Miner
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.training.contrastive import targets

HEADER = "query-id\tcorpus-id\tscore\n"
PASSAGES = [
    {"_id": "p1", "title": "Opening hours", "text": "from nine to six"},
    {"_id": "p2", "title": "", "text": "on Thursday until nine"},
    {"_id": "p3", "text": "loans last a month"},
    {"_id": 4, "title": "", "text": "loans last a month"},
    {"_id": "p5", "text": "dogs wait outside"},
    {"_id": "p6", "text": " "},
]
QUERIES = [
    {"_id": "q1", "text": "when is it open"},
    {"_id": "q2", "text": "how long may I keep a book"},
    {"_id": "q3", "text": "who answers this"},
    {"_id": "q4", "text": "late in the evening"},
]
QRELS = {
    "train": "q1\tp1\t2\nq1\tp2\t1\nq1\tp5\t0\nq2\tp3\t1\nq2\tp6\t1\nq2\tp3\t1\n",
    "dev": "q4\tp2\t1\n",
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(
        passages: list[dict[str, object]] = PASSAGES,  # type: ignore[assignment]
        queries: list[dict[str, object]] = QUERIES,  # type: ignore[assignment]
        **qrels: str,
    ) -> Path:
        root = tmp_path / "corpus"
        (root / "qrels").mkdir(parents=True)
        for name, rows in (("corpus", passages), ("queries", queries)):
            (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for name, text in (qrels or QRELS).items():
            (root / "qrels" / f"{name}.tsv").write_text(HEADER + text, encoding="utf-8")
        return root

    return write


def load(root: Path) -> Dataset:
    return load_dataset(str(root), clean=True)


def test_each_query_and_answer_is_a_pair_and_every_passage_a_candidate(write: Write) -> None:
    root = write()
    dataset = load(root)
    training, validation = dataset.splits["training"], dataset.splits["validation"]
    assert [(pair.point.text, pair.counter.text, pair.grade) for pair in training.pairs] == [
        ("when is it open", "Opening hours from nine to six", 2),
        ("when is it open", "on Thursday until nine", 1),
        ("how long may I keep a book", "loans last a month", 1),
    ]
    assert training.judgements
    assert training.judgements.query_P.tolist() == [0, 0, 1]
    assert [dataset.texts[i] for i in validation.candidate_text_C] == [
        "Opening hours from nine to six",
        "on Thursday until nine",
        "loans last a month",
        "loans last a month",
        "dogs wait outside",
    ]
    assert training.pairs[2].point.source.endswith("train.tsv:5")
    counts = dict(dataset.findings.counts)
    assert counts == {
        "judgement with the score 0 or below (no answer)": 1,
        "second judgement of the same query and passage (dropped)": 1,
        "empty passage (dropped)": 1,
        "answer that is an empty passage (dropped)": 1,
        "passage that answers no query (a candidate only)": 2,
        "query without an answer (left out)": 1,
        "split without pairs (skipped)": 1,
        "passage with the text of another": 1,
    }
    assert {Path(reading.source).name: (reading.rows, reading.columns) for reading in dataset.findings.readings} == {
        "corpus.jsonl": (6, {"id": "_id", "text": "title + text"}),
        "queries.jsonl": (4, {"id": "_id", "text": "text"}),
        "train.tsv": (5, {"query": "query-id", "answer": "corpus-id", "grade": "score"}),
        "dev.tsv": (1, {"query": "query-id", "answer": "corpus-id", "grade": "score"}),
    }
    texts, _ = load_texts(str(root), clean=True)
    assert len(texts) == 4  # passages alone, each text once


def test_the_fingerprint_tells_grades_and_passages_without_a_query(write: Write, tmp_path: Path) -> None:
    root = write()
    whole = load(root).fingerprint
    (root / "qrels" / "train.tsv").write_text(HEADER + QRELS["train"].replace("p2\t1", "p2\t2"), encoding="utf-8")
    regraded = load(root).fingerprint
    with (root / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"_id": "p7", "text": "one more"}\n')
    assert len({whole, regraded, load(root).fingerprint}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": "q1\tp1\t1\nq9\tp1\t1\n"}, r"train\.tsv:3: the query-id 'q9' is not in queries\.jsonl"),
        ({"train": "q1\tp9\t1\n"}, r"train\.tsv:2: the corpus-id 'p9' is not in corpus\.jsonl"),
        ({"train": "q1\tp1\tgood\n"}, r"train\.tsv:2: the score is 'good'; expected a whole number"),
        ({"train": "q1 p1 1\n"}, r"train\.tsv:2 has 1 fields, expected query-id, corpus-id, score, separated by tabs"),
        ({"dev": "q1\tp1\t1\n", "val": "q1\tp1\t1\n"}, r"dev\.tsv and val\.tsv, both of the validation split"),
        ({"all": "q1\tp1\t1\n"}, r"all\.tsv is of no split"),
        ({"test": "q1\tp1\t1\n"}, r"holds 0 training pairs"),
        ({"queries": [*QUERIES, {"_id": "q5", "text": "[1]"}]}, r"queries\.jsonl:5: the query is empty"),
        ({"queries": [{"text": "no id"}]}, r"queries\.jsonl:1 has no _id"),
        ({"passages": [*PASSAGES, PASSAGES[0]]}, r"corpus\.jsonl:7: the _id 'p1' stands in .*corpus\.jsonl:1 already"),
        ({"passages": [{"_id": "p1", "text": ["a"]}]}, r"corpus\.jsonl:1: text is a list, expected text"),
        ({"passages": [{"_id": "p1", "title": "only"}]}, r"corpus\.jsonl:1 has no text"),
    ],
)
def test_what_does_not_fit_is_one_sentence_with_file_and_line(write: Write, change: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(**change))


def test_a_folder_that_is_incomplete_or_holds_two_layouts_is_refused(write: Write) -> None:
    root = write()
    (root / "train.csv").write_text("point,counter\na,b\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"holds both corpus\.jsonl and folders or tables of splits"):
        load(root)
    (root / "train.csv").unlink()
    (root / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"queries\.jsonl is missing: a BEIR folder holds"):
        load(root)


def embed(values_ND: npt.NDArray[np.float64]) -> EmbeddedTexts:
    rows = torch.from_numpy(values_ND.astype(np.float32))
    return EmbeddedTexts.whole(np.arange(len(rows)), Vectors(rows, rows), Vectors(rows, rows))


def judged_split(query_P: list[int], passage_P: list[int], *, num_passages: int, grades: list[int] | None = None) -> Split:
    """Texts 0 to `num_passages` - 1 are the passages, those after them the queries."""

    class AnyPair:
        class point:  # noqa: N801 - stands for a record
            source = "somewhere"

    queries, passages = np.array(query_P), np.array(passage_P)
    judgements = Judgements(queries, passages, np.array(grades or [1] * len(query_P)))
    pairs = (AnyPair,) * len(query_P)
    return Split("training", pairs, num_passages + queries, passages, np.arange(num_passages), judgements)  # type: ignore[arg-type]


@pytest.mark.parametrize("random_rate", [0.0, 1.0])
def test_no_answer_and_no_query_is_a_negative_but_passages_without_a_query_are(random_rate: float) -> None:
    rng = np.random.default_rng(3)
    query_P, passage_P = np.repeat(np.arange(20), 3), rng.permutation(60)
    split = judged_split(query_P.tolist(), passage_P.tolist(), num_passages=90)
    values_ND = rng.standard_normal((110, 8))
    values_ND[90:] = values_ND[90] + 0.01 * rng.standard_normal((20, 8))  # queries are each other's nearest
    forbidden = Forbidden.of(split, 110)
    config = MiningConfig(random_rate=random_rate, negatives=3)
    miner = Miner(split, forbidden, World.alone(), config, seed=1, num_epochs=1)
    negative_PK = miner.mine(0, embed(values_ND)).negative_text_PK
    assert negative_PK.max() < 90
    for query, negatives in zip(query_P, negative_PK, strict=True):
        assert not set(negatives.tolist()) & set(passage_P[query_P == query].tolist())
    assert (negative_PK >= 60).any()  # passages 60 to 89 answer nothing
    if random_rate == 0:
        distance_PC = np.linalg.norm(values_ND[split.point_text_P][:, None] - values_ND[None, :90], axis=2)
        distance_PC[query_P[:, None] == np.append(query_P[np.argsort(passage_P)], [-1] * 30)[None]] = np.inf
        assert negative_PK.tolist() == np.argsort(distance_PC, axis=1)[:, :3].tolist()


def test_answers_with_the_same_text_are_no_negatives_either(write: Write) -> None:
    dataset = load(write())
    split = dataset.splits["training"]
    forbidden = Forbidden.of(split, len(dataset.texts))
    allowed = forbidden.allows(split.point_text_P[:, None], split.corpus_text_C[None])
    # q1's answers are p1 and p2; q2's are p3 and its copy.
    assert allowed.tolist() == [[False, False, True, True, True]] * 2 + [[True, True, False, False, True]]


def test_queries_are_no_candidates_in_a_batch() -> None:
    split = judged_split([0, 0, 1, 2], [0, 1, 2, 3], num_passages=6)
    wanted = targets(np.arange(4).reshape(1, 4), split, np.array([[4], [5], [4], [5]]), Forbidden.of(split, 9), rank=0)
    assert len(wanted.rivals_S) == 0
    # Candidates are the four answers, then the negatives; the two answers of query 0 do not count against each other.
    assert wanted.left_out_2X.tolist() == [[0, 1], [1, 0]]


def by_hand(ranked: list[int], grade_of: dict[int, int]) -> dict[str, float]:
    """The metrics of one query, from their definitions."""
    gains = [grade_of.get(candidate, 0) for candidate in ranked]
    hits = [rank for rank, gain in enumerate(gains, start=1) if gain]
    ideal = sorted(grade_of.values(), reverse=True)

    def dcg(grades: list[int]) -> float:
        return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades[:10], start=1))

    precision = sum((nth + 1) / rank for nth, rank in enumerate(hits) if rank <= 100)
    return {
        **{f"accuracy@{k}": float(any(rank <= k for rank in hits)) for k in (1, 5, 10)},
        **{f"recall@{k}": sum(rank <= k for rank in hits) / len(ideal) for k in (10, 100)},
        "mrr@10": next((1 / rank for rank in hits if rank <= 10), 0.0),
        "ndcg@10": dcg(gains) / dcg(ideal),
        "map@100": precision / len(ideal),
    }


def test_metrics_of_several_graded_answers_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(0)
    grades = [
        dict(zip(rng.choice(300, size, replace=False).tolist(), rng.integers(1, 4, size).tolist(), strict=True))
        for size in rng.integers(1, 13, 200)
    ]
    flat = [(query, candidate, grade) for query, given in enumerate(grades) for candidate, grade in given.items()]
    query_A, candidate_A, grade_A = np.array(flat + flat[:5]).T
    answers = Answers.of(query_A, candidate_A, grade_A, num_candidates=300)
    ranked_Qk = np.stack([rng.permutation(300)[:120] for _ in grades])
    ranked_Qk[:50, 60:] = -1  # fewer candidates than places
    found = judged_metrics(ranked_Qk, answers)
    for query, grade_of in enumerate(grades):
        expected = by_hand(ranked_Qk[query].tolist(), grade_of)
        assert {name: value_Q[query] for name, value_Q in found.items()} == pytest.approx(expected, abs=1e-6)


def test_a_query_counts_once_and_any_of_its_answers_is_right() -> None:
    # Passages 0 to 3 and queries 4, 5 on a line. Query 4 stands nearest to its second answer, query 5 to a wrong passage.
    split = judged_split([0, 0, 1], [0, 1, 2], num_passages=4, grades=[2, 1, 1])
    embedded = embed(np.array([3.0, 0.4, 9.0, 11.0, 0.0, 10.5])[:, None])
    result = evaluate_split(split, embedded, None, top_k=10, world=World.alone())
    assert (result.num_queries, result.num_candidates) == (2, 4)
    assert result.metrics["embedding/accuracy@1"] == 0.5
    assert result.metrics["embedding/mrr@10"] == pytest.approx((1 + 1 / 2) / 2)
    first = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    assert result.metrics["embedding/ndcg@10"] == pytest.approx((first + 1 / math.log2(3)) / 2)
    assert result.metrics["embedding/recall@10"] == result.metrics["embedding/recall@10_text"] == 1.0
    assert [(example.gold_text, example.gold_rank) for example in result.examples] == [(1, 1), (2, 2)]
    assert evaluate_split(split, embedded, None, top_k=10, world=World.alone(), max_queries=1).num_queries == 1


def test_a_passage_with_the_text_of_the_query_is_left_out_and_the_last_passage_is_ranked() -> None:
    # Query 1's text is passage 3.
    split = judged_split([0, 1], [0, 2], num_passages=4)
    split.point_text_P[1] = 3
    embedded = embed(np.array([9.0, 2.0, 3.0, 5.0, 0.0])[:, None])
    result = evaluate_split(split, embedded, None, top_k=10, world=World.alone())
    assert result.metrics["embedding/mrr@10"] == pytest.approx((1 / 4 + 1) / 2)
    assert result.metrics["embedding/recall@10"] == 1.0


def test_tasks_of_debates_are_refused(write: Write) -> None:
    with pytest.raises(DataError, match="there are none in queries over a corpus"):
        choose_tasks("all", load(write()).splits["training"])
