"""Both indexes mine the same negatives, ties included; negatives are never the point, its counter, or a copy of them."""

import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from biencoder.config.schema import MiningConfig
from biencoder.data import Forbidden, Members, Split
from biencoder.distributed.world import World
from biencoder.errors import DataError
from biencoder.mining import Miner
from biencoder.mining.selection import Limits, draws_random, nearest_negatives, random_negatives, recall
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval import nearest
from biencoder.retrieval.build import build_index
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.nearest import Embeddings, Fp64Index, NegativeIndex, nearest_allowed
from tests.peak import peak_growth

NOTHING = np.full((50, 1), -1)
KINDS: dict[str, Callable[[Embeddings], NegativeIndex]] = {
    "balltree": partial(build_index, config=MiningConfig(index="balltree")),
    "faiss": partial(build_index, config=MiningConfig(index="faiss")),
    "fp64": Fp64Index,
}


def split_of(points: list[int], counters: list[int]) -> Split:
    class AnyPair:
        class point:  # noqa: N801 - stands for a record
            source = "somewhere"

    return Split("training", (AnyPair,) * len(points), np.array(points), np.array(counters))  # type: ignore[arg-type]


def embed(vectors_ND: npt.NDArray[np.float32]) -> EmbeddedTexts:
    rows = torch.from_numpy(vectors_ND)
    return EmbeddedTexts.whole(np.arange(len(rows)), Vectors(rows, rows), Vectors(rows, rows))


def vectors(kind: str, size: int = 300, dimension: int = 16) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(7)
    match kind:
        case "gaussian":
            return rng.standard_normal((size, dimension), dtype=np.float32)
        case "ties":  # every vector occurs about 10 times, so that nearest neighbours tie exactly
            return rng.integers(0, 2, (size, 5)).astype(np.float32)
        case "collapsed":  # all but equal: far below what float32 products can tell apart
            return (100 + 1e-6 * rng.standard_normal((size, dimension))).astype(np.float32)
        case _:
            return np.ones((size, dimension), dtype=np.float32)


def brute_force(
    vectors_ND: npt.NDArray[np.float32], queries: npt.NDArray[np.int64], allowed: npt.NDArray[np.bool_]
) -> list[int]:
    exact = vectors_ND.astype(np.float64)
    found = []
    for query, may in zip(queries, allowed, strict=True):
        distance = np.sqrt(np.square(exact - exact[query]).sum(1))
        distance[~may] = np.inf
        found.append(int(np.lexsort((np.arange(len(exact)), distance))[0]))
    return found


@pytest.mark.parametrize("kind", ["gaussian", "ties", "collapsed", "equal"])
@pytest.mark.parametrize("name", KINDS)
def test_an_exact_index_mines_what_brute_force_mines(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_CHUNK_BYTES", 8 * 4000)  # several blocks everywhere
    vectors_ND = vectors(kind)
    rng = np.random.default_rng(1)
    points, counters = np.arange(150), rng.permutation(np.arange(150, 300))
    split = split_of(list(points), list(counters))
    forbidden = Forbidden.of(split, 300)
    allowed = forbidden.allows(points[:, None], np.arange(300)[None])
    mined, distance = nearest_negatives(
        np.arange(150), split, Limits(forbidden), embed(vectors_ND), KINDS[name](vectors_ND), World.alone()
    )
    assert mined[:, 0].tolist() == brute_force(vectors_ND, points, allowed)
    assert not np.any(mined[:, 0] == points)
    assert not np.any(mined[:, 0] == counters)
    np.testing.assert_allclose(
        distance[:, 0], np.sqrt(np.square(vectors_ND[mined[:, 0]].astype(float) - vectors_ND[points]).sum(1)), rtol=1e-9
    )


@pytest.mark.parametrize("name", KINDS)
def test_search_goes_on_while_everything_near_is_forbidden(name: str) -> None:
    vectors_ND = np.arange(100, dtype=np.float32)[:, None]
    rows, distance = nearest_allowed(
        KINDS[name](vectors_ND),
        vectors_ND,
        vectors_ND[:1],
        lambda _, rows: rows >= 90,
    )
    assert (rows.tolist(), distance.tolist()) == ([[90]], [[90.0]])


def test_texts_of_nearly_one_vector_are_searched_for_many_queries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vectors of a collapsed encoder: the index's rounding hides which is nearest, and the search asks for more."""
    monkeypatch.setattr(nearest, "_CHUNK_BYTES", 8 * 400)
    generator = np.random.default_rng(0)
    vectors_ND = (1 + 1e-4 * generator.standard_normal((400, 16))).astype(np.float32)
    asked = []

    class Watched:
        exact = True

        def search(self, queries_QD: Embeddings, k: int) -> npt.NDArray[np.int64]:
            asked.append((len(queries_QD), k))
            return flat.search(queries_QD, k)

    flat = build_index(vectors_ND, MiningConfig())
    rows, _ = nearest_allowed(Watched(), vectors_ND, vectors_ND, lambda queries, rows: rows != queries[:, None])
    assert len(asked) > 1
    assert asked[0] == (400, 8)
    assert asked[-1][0] > 100
    assert len(asked) == len({k for _, k in asked})  # each number of neighbours was asked for once
    distance_NN = np.linalg.norm(vectors_ND[:, None].astype(np.float64) - vectors_ND, axis=2)
    np.fill_diagonal(distance_NN, np.inf)
    assert rows[:, 0].tolist() == distance_NN.argmin(axis=1).tolist()


def test_a_text_with_several_counters_never_gets_one_of_them() -> None:
    split = split_of([0, 0, 1], [2, 3, 2])
    forbidden = Forbidden.of(split, 5)
    assert forbidden.allows(np.array([[0]]), np.arange(5)[None]).tolist() == [[False, True, False, False, True]]
    assert forbidden.allows(np.array([[1]]), np.arange(5)[None]).tolist() == [[True, False, False, True, True]]


def test_texts_that_count_as_the_same_are_forbidden_together() -> None:
    # Text 4 is nearly point 0, text 5 nearly its counter.
    split = split_of([0, 1], [2, 3])
    forbidden = Forbidden.of(split, 6, same_N=np.array([0, 1, 2, 3, 0, 2]))
    assert forbidden.allows(np.array([[0], [1]]), np.arange(6)[None]).tolist() == [
        [False, True, False, True, False, False],
        [True, False, True, False, True, True],
    ]


def test_random_negatives_depend_on_seed_epoch_and_sample_only() -> None:
    split = split_of(list(range(50)), list(range(50, 100)))
    forbidden = Forbidden.of(split, 100)
    everything = random_negatives(np.arange(50), NOTHING[:50], split, forbidden, seed=3, epoch=2)
    some = random_negatives(np.array([40, 7, 11]), NOTHING[:3], split, forbidden, seed=3, epoch=2)
    assert some.tolist() == everything[[40, 7, 11]].tolist()
    for other in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 1}):
        assert (random_negatives(np.arange(50), NOTHING[:50], split, forbidden, **other) != everything).mean() > 0.8


def test_random_negatives_cover_points_and_counters_and_obey_what_is_forbidden() -> None:
    split = split_of([0, 0, 1, 4], [2, 3, 2, 5])
    forbidden = Forbidden.of(split, 6)
    seen: set[tuple[int, int]] = set()
    for epoch in range(200):
        drawn = random_negatives(np.arange(4), NOTHING[:4], split, forbidden, seed=0, epoch=epoch)
        seen |= set(enumerate(drawn.tolist()))
    allowed = {(s, t) for s in range(4) for t in range(6) if forbidden.allows(split.point_text_P[[s]], np.array([t]))[0]}
    assert seen == allowed


def test_no_possible_negative_is_an_error_that_names_the_sample() -> None:
    split = split_of([0], [1])
    forbidden = Forbidden.of(split, 2)
    with pytest.raises(DataError, match="somewhere has no possible negative"):
        random_negatives(np.array([0]), NOTHING[:1], split, forbidden, seed=0, epoch=0)
    with pytest.raises(DataError, match="somewhere has no possible negative"):
        Miner(split, forbidden, World.alone(), MiningConfig(random_rate=0), seed=0, num_epochs=1).mine(
            0, embed(np.eye(2, dtype=np.float32))
        )


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_share_of_random_draws(rate: float) -> None:
    share = draws_random(seed=0, epoch=0, num_samples=10_000, count=2, random_rate=rate).mean()
    assert share == pytest.approx(rate, abs=0.012)  # 3.7 standard deviations at 0.3


@pytest.mark.parametrize(
    ("config", "low", "high"),
    [
        (MiningConfig(faiss_kind="ivf", ivf_probes=1), 0.2, 0.9),
        (MiningConfig(faiss_kind="ivf", ivf_probes=10_000), 1.0, 1.0),
        (MiningConfig(faiss_kind="hnsw", hnsw_ef=200), 0.95, 1.0),
    ],
    ids=["one cell", "all cells", "graph"],
)
def test_approximate_indexes_report_the_recall_that_they_have(config: MiningConfig, low: float, high: float) -> None:
    vectors_ND = vectors("gaussian", size=2000)
    split = split_of(list(range(1000)), list(range(1000, 2000)))
    forbidden = Forbidden.of(split, 2000)
    samples, embedded, alone, limits = np.arange(1000), embed(vectors_ND), World.alone(), Limits(forbidden)
    mined, _ = nearest_negatives(samples, split, limits, embedded, build_index(vectors_ND, config), alone)
    exact, _ = nearest_negatives(samples, split, limits, embedded, build_index(vectors_ND, MiningConfig()), alone)
    agreement = float((mined == exact).mean())
    assert low <= agreement <= high
    assert recall(mined, samples, split, limits, embedded, alone) == pytest.approx(agreement, abs=0.05)
    found = mined[:, 0] >= 0
    assert forbidden.allows(split.point_text_P[found], mined[found, 0]).all()


def test_a_nearer_row_behind_the_index_s_rounding_is_still_found() -> None:
    """An exact index may order what its rounding cannot tell apart as it likes: here from the highest row down."""

    class Coarse:
        exact = True

        def search(self, queries_QD: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
            distance_QN = np.square(vectors_ND[None].astype(np.float64) - queries_QD[:, None]).sum(-1).round(5)
            order: npt.NDArray[np.int64] = np.lexsort(
                (-np.arange(len(vectors_ND))[None].repeat(len(queries_QD), 0), distance_QN)
            )
            return order[:, :k]

    rng = np.random.default_rng(3)
    directions = rng.standard_normal((60, 8))
    # Rows 1 to 40 lie at distance 1 from row 0 but for 1e-7, so that rounding hides which is nearest; the rest far away.
    shell = directions[:40] / np.linalg.norm(directions[:40], axis=1, keepdims=True) * (1 + 1e-8 * np.arange(40)[:, None])
    vectors_ND = np.concatenate([np.zeros((1, 8)), shell, 10 * directions[40:]]).astype(np.float32)
    exact = np.sqrt(np.square(vectors_ND.astype(np.float64)).sum(1))
    exact[0] = np.inf
    rows, _ = nearest_allowed(Coarse(), vectors_ND, vectors_ND[:1], lambda _, rows: rows != 0)
    assert rows.tolist() == [[int(np.argmin(exact))]]


def test_several_negatives_are_distinct_and_the_nearest_of_their_window() -> None:
    vectors_ND = vectors("gaussian", size=60)
    split = split_of(list(range(30)), list(range(30, 60)))
    forbidden = Forbidden.of(split, 60)
    distance_PN = np.linalg.norm(vectors_ND[:30, None].astype(np.float64) - vectors_ND[None], axis=2)
    distance_PN[~forbidden.allows(np.arange(30)[:, None], np.arange(60)[None])] = np.inf
    order_PN = np.argsort(distance_PN, axis=1)

    def mined(random_rate: float = 0.0, **window: Any) -> npt.NDArray[np.int64]:
        config = MiningConfig(negatives=3, random_rate=random_rate, **window)
        return (
            Miner(split, forbidden, World.alone(), config, seed=0, num_epochs=1).mine(0, embed(vectors_ND)).negative_text_PK
        )

    assert mined().tolist() == order_PN[:, :3].tolist()
    assert mined(range_min=5).tolist() == order_PN[:, 5:8].tolist()
    drawn = mined(range_min=2, range_max=12)
    assert all(set(mine) <= set(window) for mine, window in zip(drawn.tolist(), order_PN[:, 2:12].tolist(), strict=True))
    assert (
        len({tuple(order.tolist().index(text) for text in mine) for mine, order in zip(drawn, order_PN, strict=True)}) > 20
    )
    for some in (drawn, mixed := mined(random_rate=0.5)):
        assert all(len(set(mine)) == 3 for mine in some.tolist())
        assert forbidden.allows(np.arange(30)[:, None], some).all()
    is_near = (mixed[:, :, None] == order_PN[:, None, :3]).any(2)
    assert 0.3 < is_near.mean() < 0.75
    takes_near = ~draws_random(seed=0, epoch=0, num_samples=30, count=3, random_rate=0.5).all(1)
    assert (mixed == order_PN[:, :1]).any(1)[takes_near].all()  # who takes a near one takes the nearest


@pytest.mark.parametrize(
    ("bound", "least"),
    [
        ({"absolute_margin": 0.2}, lambda pair: pair + 0.2),
        ({"relative_margin": 0.1}, lambda pair: 1.1 * pair),
        ({"positive_share": 0.9}, lambda pair: np.sqrt(2 - 1.8 * (1 - pair**2 / 2))),
    ],
    ids=["absolute", "relative", "share"],
)
def test_near_negatives_keep_their_distance(bound: dict[str, Any], least: Any) -> None:
    vectors_ND = vectors("gaussian", size=60)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    split = split_of(list(range(30)), list(range(30, 60)))
    forbidden = Forbidden.of(split, 60)
    exact = vectors_ND.astype(np.float64)
    distance_PN = np.linalg.norm(exact[:30, None] - exact[None], axis=2)
    distance_PN[~forbidden.allows(np.arange(30)[:, None], np.arange(60)[None])] = np.inf
    distance_PN[distance_PN < least(np.linalg.norm(exact[:30] - exact[30:], axis=1))[:, None]] = np.inf
    reachable = np.isfinite(distance_PN).any(1)
    found = Miner(split, forbidden, World.alone(), MiningConfig(random_rate=0, **bound), seed=0, num_epochs=1).mine(
        0, embed(vectors_ND)
    )
    assert found.negative_text_PK[reachable, 0].tolist() == distance_PN.argmin(1)[reachable].tolist()
    assert found.search.shortfalls == (~reachable).sum()
    assert found.search.reference_agreement == 1.0


@pytest.mark.parametrize("focus", ["debates", "other_debates"])
def test_focused_negatives_stand_in_their_sample_s_debate_or_in_another(focus: Any) -> None:
    class AnyPair:
        def __init__(self, topic: str) -> None:
            self.point = SimpleNamespace(source="somewhere", domain="theme", topic=topic)

    # Debate 0 has pairs 0 to 9, debate 1 pairs 10 to 18, debate 2 pair 19 alone: it has no negative to offer.
    topics = ["0"] * 10 + ["1"] * 9 + ["2"]
    pairs: Any = tuple(AnyPair(topic) for topic in topics)
    split = Split("training", pairs, np.arange(20), np.arange(20, 40))
    config = MiningConfig(random_rate=0, focus=focus)
    vectors_ND = vectors("gaussian", size=40)
    found = Miner(split, Forbidden.of(split, 40), World.alone(), config, seed=0, num_epochs=1).mine(0, embed(vectors_ND))
    debate = np.array([int(topic) for topic in topics] * 2)
    distance_PN = np.linalg.norm(vectors_ND[:20, None].astype(np.float64) - vectors_ND[None], axis=2)
    distance_PN[(debate[:20, None] == debate[None]) != (focus == "debates")] = np.inf
    distance_PN[np.arange(20), np.arange(20)] = distance_PN[np.arange(20), np.arange(20, 40)] = np.inf
    has_some = 19 if focus == "debates" else 20
    assert found.negative_text_PK[:has_some, 0].tolist() == distance_PN.argmin(1)[:has_some].tolist()
    assert found.search.shortfalls == 20 - has_some


def test_where_there_are_no_other_debates_near_negatives_come_from_anywhere() -> None:
    pairs: Any = (SimpleNamespace(point=SimpleNamespace(source="somewhere", domain="", topic="")),) * 20
    split = Split("training", pairs, np.arange(20), np.arange(20, 40))
    embedded, forbidden = embed(vectors("gaussian", size=40)), Forbidden.of(split, 40)
    found = [
        Miner(split, forbidden, World.alone(), MiningConfig(random_rate=0, focus=focus), seed=0, num_epochs=1)
        .mine(0, embedded)
        .negative_text_PK.tolist()
        for focus in ("other_debates", "corpus")
    ]
    assert found[0] == found[1]


class Asked:
    """An index that notes the most rows it was asked for."""

    exact = True

    def __init__(self, vectors_ND: npt.NDArray[np.float32]) -> None:
        self._index, self.most = build_index(vectors_ND, MiningConfig()), 0

    def search(self, queries_QD: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
        self.most = max(self.most, k)
        return self._index.search(queries_QD, k)


@pytest.mark.parametrize("kind", ["gaussian", "ties", "collapsed"])
@pytest.mark.parametrize("bounded", [False, True])
def test_a_starved_query_is_compared_with_all_and_asks_the_index_for_no_more(
    kind: str, bounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biencoder.retrieval.nearest._SCANNED_PAIRS", 3000)  # several blocks
    N, Q, count = 5000, 12, 3
    vectors_ND = vectors(kind, size=N)
    exact_QN = np.linalg.norm(vectors_ND[:Q, None].astype(np.float64) - vectors_ND[None], axis=2)
    least_Q = np.quantile(exact_QN, 0.7, axis=1) if bounded else None
    # The nearest 3,000 are out of bounds for all but the first two, and query 11 has two rows left.
    allowed_QN = bounded | (np.argsort(np.argsort(exact_QN, axis=1, kind="stable"), axis=1) >= 3000)
    allowed_QN[:2] = True
    allowed_QN[11], allowed_QN[11, [7, 4000]] = False, True
    wanted_QN = np.where(allowed_QN, exact_QN, np.inf)
    if least_Q is not None:
        least_Q[11] = 0
        wanted_QN[exact_QN < least_Q[:, None]] = np.inf
    order_QN = np.lexsort((np.broadcast_to(np.arange(N), (Q, N)), wanted_QN), axis=1)[:, :count]
    index = Asked(vectors_ND)
    rows, distance = nearest_allowed(
        index,
        vectors_ND,
        vectors_ND[:Q],
        lambda some, rows: allowed_QN[some[:, None], rows],
        count=count,
        least_distance_Q=least_Q,
    )
    assert index.most <= 2048
    expected = np.take_along_axis(wanted_QN, order_QN, axis=1)
    assert rows.tolist() == np.where(np.isfinite(expected), order_QN, -1).tolist()
    np.testing.assert_allclose(distance, expected, rtol=1e-12)


def test_more_rows_than_an_index_finds_are_wanted() -> None:
    class AtMost2048(Asked):  # as FAISS on a GPU
        def search(self, queries_QD: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
            return super().search(queries_QD, min(k, 2048))

    vectors_ND = vectors("gaussian", size=3000)
    rows, _ = nearest_allowed(AtMost2048(vectors_ND), vectors_ND, vectors_ND[:2], lambda _, rows: rows >= 0, count=2500)
    exact = np.linalg.norm(vectors_ND[:2, None].astype(np.float64) - vectors_ND[None], axis=2)
    assert rows.tolist() == np.argsort(exact, axis=1, kind="stable")[:, :2500].tolist()


def test_an_approximate_index_that_finds_too_little_starves_nobody() -> None:
    vectors_ND = vectors("gaussian", size=2000)
    index = build_index(vectors_ND, MiningConfig(faiss_kind="ivf", ivf_probes=1))
    rows, _ = nearest_allowed(index, vectors_ND, vectors_ND[:5], lambda _, rows: rows >= 0, count=500)
    exact = np.linalg.norm(vectors_ND[:5, None].astype(np.float64) - vectors_ND[None], axis=2)
    assert rows.tolist() == np.argsort(exact, axis=1, kind="stable")[:, :500].tolist()


def test_looking_up_members_takes_no_time_for_the_whole_table() -> None:
    # A text of each of two million groups, as far apart as group numbers times texts make them.
    members = Members(np.arange(2_000_000), np.arange(2_000_000) * 2_000_001, 2_000_000)
    samples, texts = np.arange(1000, 1050)[:, None], np.arange(1000, 1050)[None]
    start = time.process_time()
    for _ in range(5):
        found = members.include(samples, texts)
    assert time.process_time() - start < 1  # sorting the codes takes seconds each time
    assert found.tolist() == np.eye(50, dtype=bool).tolist()


@pytest.mark.slow
def test_recall_is_measured_without_a_second_copy_of_the_vectors() -> None:
    vectors_ND = np.random.default_rng(0).standard_normal((100_000, 128), dtype=np.float32)
    split = split_of(list(range(500)), list(range(500, 1000)))
    embedded, samples = embed(vectors_ND), np.arange(500)
    limits, alone = Limits(Forbidden.of(split, 100_000)), World.alone()

    def measure(embedded: EmbeddedTexts = embedded) -> None:
        recall(np.zeros((500, 1), dtype=np.int64), samples, split, limits, embedded, alone)

    measure(embed(vectors_ND[:1000].copy()))  # libraries are loaded before anything counts
    assert peak_growth(measure) < vectors_ND.nbytes
