"""Clusters of near pairs: what is near is together, the same on any number of threads, and a state brings it back."""

import faiss
import numpy as np
import numpy.typing as npt
import torch

from biencoder.data import Split
from biencoder.distributed.world import World
from biencoder.mining.clusters import PAIRS, Clusters, clustered, pair_vectors
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.embedding import EmbeddedTexts

TOPICS, P = 6, 6 * PAIRS


def corpus() -> tuple[Split, EmbeddedTexts, npt.NDArray[np.int64]]:
    """Pairs of topics far from each other, in a mixed order, whose counters say it in twice the words; the topics (P,)."""
    rng = np.random.default_rng(3)
    topic_P = rng.permutation(np.arange(P) % TOPICS)
    centre = np.eye(TOPICS, 12)[topic_P]
    noise = 0.1 * rng.standard_normal((2, P, 12))
    pooled = torch.from_numpy(np.concatenate([centre + noise[0], 2 * (centre + noise[1])]).astype(np.float32))
    vectors = Vectors(torch.zeros(2 * P, 3), pooled)  # the embeddings tell nothing
    split = Split("training", (None,) * P, np.arange(P), np.arange(P, 2 * P))  # type: ignore[arg-type]
    return split, EmbeddedTexts.whole(np.arange(2 * P), vectors, vectors), topic_P


def test_pairs_of_a_topic_are_a_cluster() -> None:
    split, embedded, topic_P = corpus()
    clusters = Clusters(split, World.alone(), sharded=False, seed=0)
    clusters.find(embedded)
    assert clusters.number_P is not None
    assert len(set(zip(topic_P.tolist(), clusters.number_P.tolist(), strict=True))) == TOPICS
    assert clusters.described.startswith(f"{TOPICS} of {P} pairs, ")


def test_a_pair_is_where_both_of_its_texts_are_however_long_their_vectors() -> None:
    split, embedded, _ = corpus()
    pooled = torch.nn.functional.normalize(embedded.query.pooled, dim=1)
    mean_PH = torch.nn.functional.normalize(pooled[:P] + pooled[P:], dim=1)
    torch.testing.assert_close(pair_vectors(split, embedded, World.alone()), mean_PH)


def test_they_depend_on_the_seed_and_not_on_the_number_of_threads() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(3000, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    found, threads = [], faiss.omp_get_max_threads()
    try:
        for count in (1, 2, 5):
            faiss.omp_set_num_threads(count)
            found.append(clustered(vectors, seed=1).tolist())
    finally:
        faiss.omp_set_num_threads(threads)
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 3000 // PAIRS
    assert clustered(vectors, seed=2).tolist() != found[0]
    assert clustered(vectors[: PAIRS - 1], seed=0).tolist() == [0] * (PAIRS - 1)


def test_a_state_brings_them_back() -> None:
    split, embedded, _ = corpus()
    one, other = (Clusters(split, World.alone(), sharded=False, seed=0) for _ in range(2))
    other.load_state_dict(one.state_dict())
    assert other.number_P is None
    one.find(embedded)
    other.load_state_dict(one.state_dict())
    assert one.number_P is not None
    assert other.number_P is not None
    assert other.number_P.tolist() == one.number_P.tolist()
