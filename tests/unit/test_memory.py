"""The bound on what mining may take is said, and refused with a way out, before anything is made."""

import dataclasses

import pytest

from biencoder.config import Config, MiningConfig, ModelConfig
from biencoder.distributed import World
from biencoder.errors import ConfigError
from biencoder.memory import GIB, check_mining_memory, mining_bytes

BIG = {"num_texts": 10_000_000, "hidden": 768}


def config_of(**mining: object) -> Config:
    return Config(model=ModelConfig(embedding_dim=128), mining=MiningConfig(**mining))  # type: ignore[arg-type]


def test_vectors_and_index_are_counted() -> None:
    flat = mining_bytes(config_of(), **BIG, world_size=8)
    assert flat == pytest.approx(1e7 * 4 * (128 + 768 + 128), rel=0.02)
    assert mining_bytes(config_of(placement="sharded"), **BIG, world_size=8) == pytest.approx(flat / 8, rel=0.1)
    assert mining_bytes(config_of(overlap=True), **BIG, world_size=8) - flat == 1e7 * 4 * (128 + 768)


def test_what_does_not_fit_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"takes 38\.6 GiB on rank 0, but mining\.memory_gib allows 30\.0; .*sharded"):
        check_mining_memory(config_of(memory_gib=30), World.alone(), **BIG)
    said = check_mining_memory(config_of(memory_gib=39), World.alone(), **BIG)
    assert said.startswith("faiss flat over 10000000 texts, up to 38.6 GiB on rank 0 (")


def test_without_a_bound_the_free_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biencoder.memory.available_bytes", lambda: 8 * GIB)
    two = dataclasses.replace(World.alone(), size=2, hosts=("a", "a"))
    with pytest.raises(ConfigError, match=r"on each rank, but a has 4\.0 free; use more ranks"):
        check_mining_memory(config_of(placement="sharded"), two, **BIG)
    check_mining_memory(config_of(), dataclasses.replace(two, rank=1), **BIG)  # rank 1 holds nothing
