"""Rankings by words in common."""

from collections.abc import Callable

import bm25s
import numpy as np
import pytest

from biencoder.evaluation import rankers
from biencoder.evaluation.baselines import bm25, tf_idf
from biencoder.evaluation.rankers import LexicalRanker

TEXTS = [
    "cycling lanes keep children safe on busy roads",
    "school meals should cost nothing",
    "busy roads stay dangerous, whatever lanes for cycling are painted on them",
    "meals that cost nothing are paid by somebody, also at school",
    "voting at sixteen brings young people into politics",
    "busy roads stay dangerous, whatever lanes for cycling are painted on them",
    "and it is to be",  # nothing but stop words
]
BASELINES = pytest.mark.parametrize("build", [bm25, tf_idf])


@BASELINES
def test_words_in_common_come_first(build: Callable[[list[str]], LexicalRanker]) -> None:
    ranking = build(TEXTS).rank(np.array([0, 1]), np.arange(7), np.array([0, 1]), k=10)
    assert ranking.candidate_Qk[0, :2].tolist() == [2, 5]  # copies tie, and keep their order
    assert ranking.candidate_Qk[1, 0] == 3
    assert ranking.candidate_Qk.shape == (2, 10)
    assert sorted(ranking.candidate_Qk[0].tolist()) == [-1, -1, -1, -1, 1, 2, 3, 4, 5, 6]
    assert np.isnan(ranking.probability_Qk).all()


@BASELINES
def test_positions_are_those_in_the_list_and_the_own_may_be_missing(build: Callable[[list[str]], LexicalRanker]) -> None:
    ranking = build(TEXTS).rank(np.array([0, 1]), np.array([4, 3, 2]), np.array([-1, 1]), k=2)
    assert ranking.candidate_Qk[0, 0] == 2
    assert 1 not in ranking.candidate_Qk[1]  # though it is the best one


@BASELINES
def test_chunks_change_nothing(build: Callable[[list[str]], LexicalRanker], monkeypatch: pytest.MonkeyPatch) -> None:
    ranker, everything = build(TEXTS), np.arange(7)
    whole = ranker.rank(everything, everything, everything, k=4)
    monkeypatch.setattr(rankers, "_CHUNK_BYTES", 3 * 4 * 7)  # three queries at once
    chunked = ranker.rank(everything, everything, everything, k=4)
    for one, other in zip(whole, chunked, strict=True):
        np.testing.assert_array_equal(one, other)


def test_bm25_scores_are_those_of_its_package() -> None:
    texts = [*TEXTS, "roads roads roads"]  # a word that is repeated counts as often
    words = bm25s.tokenize(texts, stopwords="english", show_progress=False, return_ids=False)
    theirs = bm25s.BM25()
    theirs.index(words, show_progress=False)
    ours = bm25(texts).rank(np.arange(8), np.arange(8), np.full(8, -1), k=8)
    for query, (candidate_k, distance_k) in enumerate(zip(ours.candidate_Qk, ours.distance_Qk, strict=True)):
        scores = theirs.get_scores(words[query]) if words[query] else np.zeros(8)
        np.testing.assert_allclose(-distance_k, scores[candidate_k], rtol=1e-6)
