"""What mining and the training state will take is known, and too much mining is refused with a way out, beforehand."""

import dataclasses
from typing import Any

import faiss
import numpy as np
import pytest

from biencoder.config.schema import Config, MiningConfig, ModelConfig
from biencoder.distributed.world import World
from biencoder.errors import ConfigError
from biencoder.retrieval.build import build_index
from biencoder.training.engine.memory import (
    GIB,
    bucket_bytes,
    check_mining_memory,
    interpolation_bytes,
    mining_bytes,
    offloaded_bytes,
    state_bytes,
)

BIG = {"num_texts": 10_000_000, "hidden": 768}


def config_of(**mining: object) -> Config:
    return Config(model=ModelConfig(embedding_dim=128), mining=MiningConfig(**mining))  # type: ignore[arg-type]


def test_vectors_and_index_are_counted() -> None:
    flat = mining_bytes(config_of(), **BIG, world_size=8)
    assert flat == pytest.approx(1e7 * 4 * (128 + 768 + 128), rel=0.02)
    assert mining_bytes(config_of(placement="sharded"), **BIG, world_size=8) == pytest.approx(flat / 8, rel=0.1)
    assert mining_bytes(config_of(overlap=True), **BIG, world_size=8) - flat == 1e7 * 4 * (128 + 768)


@pytest.mark.parametrize(
    ("kind", "most"),
    [("flat", 1.001), ("hnsw", 1.05), ("ivf", 2)],  # ivf: its lists grow by doubling, and it trains on a copy
)
def test_an_index_takes_what_was_foretold(kind: str, most: float) -> None:
    N, D = 4000, 128
    vectors_ND = np.random.default_rng(0).standard_normal((N, D), dtype=np.float32)
    config = config_of(faiss_kind=kind)
    built: Any = build_index(vectors_ND, config.mining)
    held = len(faiss.serialize_index(built._index))

    def foretold(num_texts: int) -> int:
        return mining_bytes(config, num_texts=num_texts, hidden=0, world_size=1)

    index_bytes = foretold(N) - foretold(0) - 4 * D * N  # less the vectors themselves
    assert held <= index_bytes * 1.001 + 4096
    assert index_bytes <= most * held


def test_what_does_not_fit_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"takes 38\.6 GiB on rank 0, but mining\.memory_gib allows 30\.0; .*sharded"):
        check_mining_memory(config_of(memory_gib=30), World.alone(), **BIG)
    said = check_mining_memory(config_of(memory_gib=39), World.alone(), **BIG)
    assert said.startswith("faiss flat over 10000000 texts, up to 38.6 GiB on rank 0 (")


def test_without_a_bound_the_free_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biencoder.training.engine.memory.available_bytes", lambda: 8 * GIB)
    two = dataclasses.replace(World.alone(), size=2, hosts=("a", "a"))
    with pytest.raises(ConfigError, match=r"on each rank, but a has 4\.0 free; use more ranks"):
        check_mining_memory(config_of(placement="sharded"), two, **BIG)
    check_mining_memory(config_of(), dataclasses.replace(two, rank=1), **BIG)  # rank 1 holds nothing


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("fp32", [1600, 1100, 800, 500]), ("bf16", [1600, 700, 550, 400]), ("fp16", [1600, 700, 550, 400])],
)
def test_zero_divides_more_at_every_stage(precision: str, expected: list[int]) -> None:
    found = []
    for stage in range(4):
        settings = {"zero_optimization": {"stage": stage}, precision: {"enabled": True}}
        assert offloaded_bytes(settings, 100, num_ranks=4) == 0
        found.append(state_bytes(settings, 100, num_ranks=4))
    assert found == expected


def test_what_is_offloaded_moves_from_the_device_to_the_host() -> None:
    offload: dict[str, object] = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    settings = {"zero_optimization": offload, "bf16": {"enabled": True}}
    assert (state_bytes(settings, 100, num_ranks=4), offloaded_bytes(settings, 100, num_ranks=4)) == (200, 450)
    offload |= {"stage": 3, "offload_param": {"device": "cpu"}}
    assert (state_bytes(settings, 100, num_ranks=4), offloaded_bytes(settings, 100, num_ranks=4)) == (0, 500)


def test_gradient_buckets_have_a_fixed_size() -> None:
    assert bucket_bytes({"zero_optimization": {"stage": 0}}) == 0
    assert bucket_bytes({"zero_optimization": {"stage": 1}}) == 2e9
    assert bucket_bytes({"zero_optimization": {"stage": 2, "reduce_bucket_size": 100}, "bf16": {"enabled": True}}) == 200
    assert bucket_bytes({"zero_optimization": {"stage": 2, "reduce_bucket_size": 100, "overlap_comm": True}}) == 800
    assert bucket_bytes({"zero_optimization": {"stage": 2, "contiguous_gradients": False}}) == 0


@pytest.mark.parametrize(("stage", "expected"), [(0, 400), (2, 400), (3, 100)])
def test_a_share_of_the_pretrained_weights_takes_two_copies_of_what_a_rank_holds(stage: int, expected: int) -> None:
    settings = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": True}}
    assert interpolation_bytes(settings, 100, share=0.2, num_ranks=4) == expected
    assert interpolation_bytes(settings, 100, share=0.0, num_ranks=4) == 0
