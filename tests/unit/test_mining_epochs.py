"""A miner from epoch to epoch: embeddings of the epoch before, negatives that are kept, samples that take turns."""

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from biencoder.config.schema import MiningConfig
from biencoder.data import Forbidden
from biencoder.distributed.world import World
from biencoder.errors import BiencoderError
from biencoder.mining import Miner
from biencoder.mining.audit import churn
from biencoder.mining.selection import resting
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from tests.unit.test_mining import embed, split_of


def moving(epoch: int) -> EmbeddedTexts:
    return embed(np.random.default_rng(epoch).standard_normal((60, 8), dtype=np.float32))


def miner(num_epochs: int = 3, **config: Any) -> Miner:
    split = split_of(list(range(30)), list(range(30, 60)))
    return Miner(
        split,
        Forbidden.of(split, 60),
        World.alone(),
        MiningConfig(random_rate=0.3, **config),
        seed=1,
        num_epochs=num_epochs,
    )


def test_overlap_trains_an_epoch_on_the_embeddings_of_the_one_before() -> None:
    ahead, plain = miner(overlap=True), miner()
    mined = [ahead.mine(epoch, moving(epoch)) for epoch in range(3)]
    assert [m.staleness for m in mined] == [0, 1, 1]
    for epoch in range(3):
        # The draws are those of the epoch itself; only the embeddings are older.
        expected = plain.mine(epoch, moving(max(0, epoch - 1)))
        assert mined[epoch].negative_text_PK.tolist() == expected.negative_text_PK.tolist()
        assert mined[epoch].search.nearest_share == expected.search.nearest_share


def test_what_lasts_for_an_epoch_is_saved_as_the_same_tensors() -> None:
    ahead = miner(overlap=True)
    ahead.mine(0, moving(0))
    first, second = ahead.state_dict(), ahead.state_dict()
    assert {"negatives", "ahead_query"} <= first.keys()
    assert all(first[name] is second[name] for name in first if isinstance(first[name], torch.Tensor))
    ahead.mine(1, moving(1))
    assert ahead.state_dict()["negatives"] is not first["negatives"]
    assert ahead.state_dict()["ahead_query"] is not first["ahead_query"]


@pytest.mark.parametrize("overlap", [False, True])
def test_epochs_between_keep_their_negatives_also_where_a_run_goes_on(overlap: bool) -> None:
    whole = miner(num_epochs=6, overlap=overlap, every_epochs=2)
    plain = miner(num_epochs=6)
    for epoch in range(6):
        resumed = miner(num_epochs=6, overlap=overlap, every_epochs=2)
        if epoch:
            resumed.load_state_dict(whole.state_dict())
        for one in (whole, resumed):
            assert one.due(epoch) == (epoch % 2 == 0)
            if one.due(epoch):
                mined = one.mine(epoch, moving(epoch))
                searched = max(0, epoch - 2) if overlap else epoch
                assert mined.staleness == epoch - searched
                expected = plain.mine(epoch, moving(searched)).negative_text_PK
            else:
                one.keep()
            assert one.current is not None
            assert one.current.tolist() == expected.tolist()
        whole.leave_epoch()
        assert whole.current is None


@pytest.mark.parametrize("overlap", [False, True])
def test_a_share_of_the_samples_takes_turns_and_the_others_keep_theirs(overlap: bool) -> None:
    whole = miner(num_epochs=7, overlap=overlap, queries=0.3)
    plain = miner(num_epochs=7)
    first = before = whole.mine(0, moving(0)).negative_text_PK
    assert first.tolist() == plain.mine(0, moving(0)).negative_text_PK.tolist(), "the first time all get some"
    turns = np.zeros(len(first), dtype=np.int64)
    for epoch in range(1, 7):
        resumed = miner(num_epochs=7, overlap=overlap, queries=0.3)
        resumed.load_state_dict(whole.state_dict())
        found = whole.mine(epoch, moving(epoch)).negative_text_PK
        assert resumed.mine(epoch, moving(epoch)).negative_text_PK.tolist() == found.tolist()
        rests = resting(seed=1, turn=epoch, num_samples=len(first), share=0.3)
        assert rests.sum() == len(first) - math.ceil(0.3 * len(first))
        expected = plain.mine(epoch, moving(epoch - 1 if overlap else epoch)).negative_text_PK
        assert found.tolist() == np.where(rests[:, None], before, expected).tolist()
        turns += ~rests
        before = found
        if epoch == 4:
            assert turns.min() == 1
    assert turns.max() <= 2


def test_a_failure_in_the_background_is_raised_while_training_goes_on() -> None:
    broken = miner(overlap=True)
    vectors = moving(1)
    broken.mine(0, vectors)
    broken.raise_failure()
    bad = replace(vectors, candidate=Vectors(torch.empty(60), torch.empty(60)))
    broken.mine(1, bad)

    def train() -> None:
        for _ in range(200):
            broken.raise_failure()
            time.sleep(0.1)

    with pytest.raises(BiencoderError, match="mining in the background"):
        train()


def test_churn_counts_what_a_sample_did_not_have_before() -> None:
    before = np.array([[1, 2], [3, 4], [5, 6]])
    assert churn(np.array([[2, 1], [3, 9], [8, 7]]), before) == pytest.approx(3 / 6)
    assert np.isnan(churn(before, None))
    ahead = miner()
    assert np.isnan(ahead.mine(0, moving(0)).churn)
    assert 0.5 < ahead.mine(1, moving(1)).churn <= 1
