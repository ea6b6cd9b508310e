"""What `import biencoder` gives: public names, a trained model's embeddings and rankings, mined negatives."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import biencoder
from biencoder import ConfigError, DataError, ModelError, TrainedModel, mine
from biencoder.config.schema import MiningConfig, ModelConfig
from biencoder.model.bi_encoder import Side, build_model
from biencoder.model.folder import save_model
from biencoder.model.pretrained import load_pretrained

TEXTS = ["the quick fox", "a lazy dog", "taxes rise", "votes fall", "the brown dog", "taxes fall with votes"]


@pytest.fixture(scope="module")
def model(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    folder, config = (
        tmp_path_factory.mktemp("library") / "model",
        ModelConfig(name=str(tiny_bert), embedding_dim=16, max_length=32),
    )
    pretrained = load_pretrained(config)
    built = build_model(config, pretrained, seed=1)
    save_model(folder, built, dict(built.state_dict()), pretrained.tokenizer, config, card="", clean=True)
    return TrainedModel.load(str(folder))


def test_every_public_name_is_there_and_only_its_use_imports_torch() -> None:
    assert {getattr(biencoder, name) is not None for name in biencoder.__all__} == {True}
    assert set(biencoder.__all__) <= set(dir(biencoder))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = biencoder.nothing
    code = "import sys, time; t = time.time(); import biencoder; print('torch' in sys.modules, time.time() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert {run.stdout.split()[0] for run in runs} == {"False"}
    assert min(float(run.stdout.split()[1]) for run in runs) < 0.2


def test_texts_are_encoded_as_in_training(model: TrainedModel) -> None:
    embedding_ND = model.encode(TEXTS)
    assert embedding_ND.shape == (6, 16)
    assert embedding_ND.dtype == np.dtype(np.float32)
    np.testing.assert_allclose(model.encode(["  the   quick fox [3]"]), embedding_ND[:1], atol=1e-6)  # cleaned
    with pytest.raises(DataError, match="there is no text in number 1 of 2: ' '"):
        model.encode(["a", " "])


def test_ranking_is_that_of_the_distances_without_the_query_itself(model: TrainedModel) -> None:
    queries, candidates = [TEXTS[2], "a dog argues"], [*TEXTS, TEXTS[2]]
    query_QD, candidate_ND = model.encode(queries), model.encode(candidates, side="candidate")
    ranked = model.rank(queries, candidates, top_k=5)
    for hits, query, vector_D in zip(ranked, queries, query_QD, strict=True):
        distance_N = np.linalg.norm(candidate_ND - vector_D, axis=1)
        expected = [row for row in np.argsort(distance_N, kind="stable").tolist() if candidates[row] != query][:5]
        assert [hit.row for hit in hits] == expected
        assert [hit.text for hit in hits] == [candidates[row] for row in expected]
        np.testing.assert_allclose([hit.distance for hit in hits], distance_N[expected], rtol=1e-5)
    again = model.rank(queries, candidates, top_k=5, rerank=True)
    assert [sorted(hits) for hits in again] == [sorted(hits) for hits in ranked]
    assert all(hits == sorted(hits, key=lambda hit: -hit.probability) for hits in again)
    assert model.rank(queries, [], top_k=5) == [[], []]
    assert model.rank([], candidates) == []


def test_a_model_without_a_classifier_does_not_rerank(model: TrainedModel) -> None:
    from dataclasses import replace

    with pytest.raises(ModelError, match="no pair classifier"):
        replace(model, has_classifier=False).rank(TEXTS[:1], TEXTS, rerank=True)


def nearest(
    points: Sequence[str], counters: Sequence[str], query_ND: npt.NDArray[np.float32], candidate_ND: npt.NDArray[np.float32]
) -> list[str]:
    """By brute force: for each point the nearest text that is neither it nor one of its counters."""
    texts, found = [*points, *counters], []
    for row, point in enumerate(points):
        barred = {point, *(counter for other, counter in zip(points, counters, strict=True) if other == point)}
        distance_N = np.linalg.norm(candidate_ND - query_ND[row], axis=1)
        found.append(next(texts[i] for i in np.argsort(distance_N, kind="stable") if texts[i] not in barred))
    return found


def test_negatives_of_a_model_and_of_its_vectors_are_the_nearest_that_are_allowed(model: TrainedModel) -> None:
    points, counters = [*TEXTS[:3], TEXTS[0]], [*TEXTS[3:], TEXTS[4]]  # a point with two counters
    vectors_ND = model.encode([*points, *counters], side="candidate")
    expected = nearest(points, counters, vectors_ND[:4], vectors_ND)
    assert mine(points, counters, model) == [[text] for text in expected]
    assert mine(points, counters, (vectors_ND[:4], vectors_ND[4:])) == [[text] for text in expected]
    many = mine(points, counters, model, config=MiningConfig(negatives=3, random_rate=0.0))
    assert [row[0] for row in many] == expected
    assert all(len(set(row)) == 3 for row in many)


def test_random_negatives_depend_on_seed_and_epoch(model: TrainedModel) -> None:
    pairs = [f"fox {i}" for i in range(40)], [f"dog {i}" for i in range(40)]
    config = MiningConfig(random_rate=1.0)
    once, again, other, later = (
        mine(*pairs, model, config=config, seed=seed, epoch=epoch) for seed, epoch in ((1, 0), (1, 0), (2, 0), (1, 1))
    )
    assert once == again
    assert once not in (other, later)


def test_both_sides_of_a_model_are_asked_for() -> None:
    class Sided:
        def encode(self, texts: Sequence[str], *, side: Side) -> npt.NDArray[np.float32]:
            place = {"p": 0.0, "c": 5.0, "x": 1.0 if side == "query" else 9.0, "y": 2.0}
            return np.array([[place[text]] for text in texts], dtype=np.float32)

    assert mine(["x", "p"], ["c", "y"], Sided()) == [["p"], ["c"]]  # x as a query is nearer to p; as a candidate it is far


@pytest.mark.parametrize(
    ("points", "counters", "config", "sentence"),
    [
        (["a"], [], MiningConfig(), "there are 1 points but 0 counters"),
        ([], [], MiningConfig(), "there is no pair to mine for"),
        (["a", "b"], ["c", " \n"], MiningConfig(), "the counter in row 1 holds no text: ' \\n'"),
        (["a"], ["b"], MiningConfig(focus="debates"), "texts alone have no debates or themes"),
        (["a"], ["b"], MiningConfig(negatives=3, range_max=2), "range_max 2 leaves fewer than mining.negatives 3"),
        (["a"], ["b"], MiningConfig(random_rate=0.0), "the point in row 0 has no possible negative"),
    ],
)
def test_what_cannot_be_mined_is_one_sentence(
    points: list[str], counters: list[str], config: MiningConfig, sentence: str, model: TrainedModel
) -> None:
    with pytest.raises((ConfigError, DataError)) as raised:
        mine(points, counters, model, config=config)
    assert sentence in str(raised.value)


def test_vectors_must_fit_their_texts() -> None:
    with pytest.raises(ConfigError, match=r"shapes \(1, 4\) and \(2, 4\), expected \(2, D\) twice"):
        mine(["a", "b"], ["c", "d"], (np.zeros((1, 4), np.float32), np.zeros((2, 4), np.float32)))
