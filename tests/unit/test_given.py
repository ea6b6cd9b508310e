"""Negatives that a table gives are used as `mining.given` says, and none of them is a right answer."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from biencoder.config.schema import Config, DataConfig, MiningConfig, TrainConfig
from biencoder.data import Dataset, Forbidden, Split, load_dataset, load_texts
from biencoder.data.given import Given
from biencoder.distributed.world import World
from biencoder.errors import ConfigError, DataError
from biencoder.mining import Miner
from biencoder.mining.pairs import mine
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.training.metrics import mine_metrics
from biencoder.training.plan import read_data

ROWS: list[dict[str, Any]] = [
    {"query": "Ban cars.", "pos": ["Buses are late.", "Shops need cars."], "neg": ["Cats sleep.", "Rain is wet.", " "]},
    {"query": "Ban cars.", "pos": ["Roads are there."], "neg": ["Shops need cars.[1]", "Ban cars.", "Cats sleep."]},
    {"query": "Tax sugar.", "pos": ["It hits the poor."], "neg": []},
    {"query": "Walk.", "pos": ["It rains."], "neg": ["Cats sleep.", "Cats sleep.", "Ban cars."]},
]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def load(file: Path, *, given: bool = True) -> Dataset:
    return load_dataset(str(file), clean=True, given=given)


def texts_of(dataset: Dataset) -> list[list[str]]:
    given = dataset.splits["training"].given
    assert given
    return [[dataset.texts[i] for i in given.text_X[given.pair_X == pair]] for pair in range(len(given.counts_P))]


def test_a_right_answer_of_the_same_query_is_no_negative_wherever_it_stands(tmp_path: Path) -> None:
    dataset = load(write(tmp_path / "a.jsonl", ROWS))
    both = ["Cats sleep.", "Rain is wet."]
    assert texts_of(dataset) == [both, both, ["Cats sleep."], [], ["Cats sleep.", "Ban cars."]]
    findings = dataset.findings
    assert findings.readings[0].columns == {"point": "query", "counter": "pos", "negatives": "neg"}
    assert dict(findings.counts) == {
        "given negative that is its point or a right answer to it (dropped)": 2,
        "given negative that its pair has twice (dropped)": 1,
        "pair with given negatives": 4,
        "pair without given negatives": 1,
        "split without pairs (skipped)": 2,
        "text repeated within a split": 2,
    }
    example = findings.examples["given negative that is its point or a right answer to it (dropped)"]
    assert example[0] == f"{tmp_path / 'a.jsonl'}:2"


def test_where_they_are_left_out_all_is_as_if_the_table_had_none(tmp_path: Path) -> None:
    left_out, none = (
        load(
            write(tmp_path / f"{kept}.jsonl", [{k: row[k] for k in row if k != "neg" or kept} for row in ROWS]), given=False
        )
        for kept in (True, False)
    )
    used = load(tmp_path / "True.jsonl")
    assert left_out.fingerprint == none.fingerprint != used.fingerprint
    assert (
        left_out.texts
        == none.texts
        == used.texts[: len(none.texts)]
        == load_texts(str(tmp_path / "True.jsonl"), clean=True)[0]
    )
    assert left_out.findings.counts["given negative (left out)"] == 10
    assert set(used.texts) - set(none.texts) == {"Cats sleep.", "Rain is wet."}
    swapped = [row | {"neg": row["neg"][::-1]} for row in ROWS]
    assert load(write(tmp_path / "swapped.jsonl", swapped)).fingerprint != used.fingerprint


def test_only_training_pairs_keep_theirs(tmp_path: Path) -> None:
    rows = [
        {"anchor": f"p{i}", "positive": f"c{i}", "negative": f"n{i}", "split": "dev" if i else "train"} for i in range(2)
    ]
    dataset = load_dataset(str(write(tmp_path / "a.jsonl", rows * 2)), clean=True, given=True)
    assert dataset.splits["validation"].given is None
    assert "n1" not in dataset.texts
    assert dataset.findings.counts["given negative (left out)"] == 2
    assert dataset.splits["validation"].text_ids.tolist() == [dataset.texts.index(text) for text in ("p1", "c1")]


def test_each_epoch_takes_the_next_ones() -> None:
    given = Given.of([np.array([5, 6, 7]), np.array([], dtype=np.int64), np.array([8])])
    first = [given.of_epoch(epoch, 2, repeated=False).tolist() for epoch in range(3)]
    assert [rows[0] for rows in first] == [[5, 6], [7, 5], [6, 7]]
    assert all(rows[1:] == [[-1, -1], [8, -1]] for rows in first)
    assert given.of_epoch(0, 4, repeated=True).tolist() == [[5, 6, 7, 5], [-1] * 4, [8] * 4]


def cycle(P: int = 30) -> Split:
    """Pairs of texts p and P + p. Every other one is given two negatives: text 2 P + p / 2, and the next pair's counter."""
    pairs: Any = tuple(type("Pair", (), {"point": type("Point", (), {"source": f"a.jsonl:{p + 1}"})}) for p in range(P))
    given = Given.of([np.array([] if p % 2 else [2 * P + p // 2, P + (p + 1) % P], dtype=np.int64) for p in range(P)])
    return Split("training", pairs, np.arange(P), np.arange(P, 2 * P), given=given)


def embed(size: int = 75, seed: int = 0) -> EmbeddedTexts:
    rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((size, 8), dtype=np.float32))
    return EmbeddedTexts.whole(np.arange(size), Vectors(rows, rows), Vectors(rows, rows))


def miner(split: Split, same_N: npt.NDArray[np.int64] | None = None, **config: Any) -> Miner:
    settings = MiningConfig(**{"negatives": 3, "random_rate": 0.0, **config})
    forbidden = Forbidden.of(split, 75, same_N=same_N)
    return Miner(split, forbidden, World.alone(), settings, seed=1, num_epochs=4)


@pytest.mark.parametrize("kind", ["faiss", "balltree"])
def test_given_ones_come_first_and_mined_ones_are_others_from_the_pool(kind: str) -> None:
    split = cycle()
    mined = miner(split, index=kind).mine(0, embed())
    found_PK = mined.negative_text_PK
    even, odd = np.arange(0, 30, 2), np.arange(1, 30, 2)
    assert found_PK[even, :2].tolist() == [[60 + p // 2, 30 + (p + 1) % 30] for p in even]
    rows = embed().candidate.embedding.double().numpy()
    distance_PN = np.linalg.norm(rows[:30, None] - rows[None], axis=2)
    distance_PN[:, 60:] = np.inf  # given negatives of others are no candidates
    distance_PN[np.arange(30), np.arange(30)] = distance_PN[np.arange(30), np.arange(30, 60)] = np.inf
    assert found_PK[odd].tolist() == distance_PN[odd].argsort(1)[:, :3].tolist()
    distance_PN[even, found_PK[even, 1]] = np.inf  # what a pair has already is not mined for it
    assert found_PK[even, 2].tolist() == distance_PN[even].argmin(1).tolist()
    assert mined.given_share == mine_metrics(mined, 0.0)["mine/given_share"] == pytest.approx(30 / 90)
    assert mined.search.nearest_share == pytest.approx(60 / 90)
    assert mined.audit.figures.forbidden == 0
    assert mined.search.reference_agreement == 1.0 or kind == "balltree"


def test_a_random_draw_is_another_text_than_those_given() -> None:
    split = cycle()
    for epoch in range(4):
        found_PK = miner(split, random_rate=1.0, random_rate_decay=0.0).mine(epoch, embed()).negative_text_PK
        assert (found_PK[1::2] < 60).all()
        assert all(len(set(row)) == 3 for row in found_PK.tolist())


def test_all_of_them_have_their_turn_where_not_each_epoch_is_mined() -> None:
    split = dataclasses.replace(cycle(), given=Given.of([np.array([60, 61, 62, 63])] * 30))
    often = miner(split, negatives=2, every_epochs=2)
    found = [often.mine(epoch, embed()).negative_text_PK[0].tolist() for epoch in (0, 2, 4)]
    assert found == [[60, 61], [62, 63], [60, 61]]


def test_alone_they_are_repeated_and_nothing_is_searched() -> None:
    split = cycle()
    split = dataclasses.replace(split, given=Given.of([np.array([60 + p // 2]) for p in range(30)]))
    mined = miner(split, given="only").mine(0, embed())
    assert mined.negative_text_PK.tolist() == [[60 + p // 2] * 3 for p in range(30)]
    assert (mined.given_share, mined.search.nearest_share, mined.search.shortfalls) == (1.0, 0.0, 0)
    assert len(mined.audit.closest) == 10
    with pytest.raises(DataError, match=r"a\.jsonl:2 has no given negative that can be used, as 15 of 30 training pairs"):
        miner(cycle(), given="only")


def test_near_copies_of_a_right_answer_are_left_out_too() -> None:
    split, same_N = cycle(), np.arange(75)
    same_N[60], same_N[61] = 30, 2  # of pair 0's counter, and of pair 2's point
    found = miner(split, same_N)
    assert found.given_left_out == 2
    found_PK = found.mine(0, embed()).negative_text_PK
    assert found_PK[[0, 2, 4], 0].tolist() == [31, 33, 62]


def test_a_resumed_run_goes_on_with_the_same_ones() -> None:
    for overlap in (False, True):
        whole = miner(cycle(), overlap=overlap, random_rate=0.4)
        parts = [whole]
        expected = [whole.mine(epoch, embed(seed=epoch)).negative_text_PK.tolist() for epoch in range(3)]
        for epoch in range(3):
            parts.append(miner(cycle(), overlap=overlap, random_rate=0.4))
            if epoch:
                parts[-1].load_state_dict(parts[-2].state_dict())
            mined = parts[-1].mine(epoch, embed(seed=epoch))
            assert mined.negative_text_PK.tolist() == expected[epoch]


def test_the_data_check_says_how_they_are_used(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)

    def said(**mining: Any) -> list[tuple[str, int]]:
        config = Config(
            data=DataConfig(root=str(file)), mining=MiningConfig(**mining), train=TrainConfig(global_batch_size=2)
        )
        return [
            (kind, count) for kind, count, _ in read_data(config).findings.rows() if kind.startswith("given negative (")
        ]

    assert said(negatives=2) == [("given negative (they take the first of 2 places, mined ones the rest)", 7)]
    assert said(negatives=0) == [("given negative (not used: mining.negatives is 0)", 7)]
    assert said(given="off") == [("given negative (left out)", 10)]
    with pytest.raises(
        DataError, match=r"a\.jsonl:3 has no given negative that can be used, as 1 of 5 training pairs, but"
    ):
        said(given="only")
    del ROWS[2]
    write(file, ROWS)
    assert said(given="only") == [("given negative (1 a pair, nothing is mined)", 7)]


def test_what_gives_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mining\.given is only, but mining\.negatives is 0"):
        Config(mining=MiningConfig(given="only", negatives=0)).check(1)
    with pytest.raises(ConfigError, match=r"mining\.given is only, but mine\(\) takes no given negatives"):
        mine(
            ["a", "b"],
            ["c", "d"],
            (np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)),
            config=MiningConfig(given="only"),
        )
