"""What is done for GPUs, as far as it shows without one.

The device "meta" stands in for a GPU: its tensors hold no values, so whatever would wait for one fails, and so does what
mixes it with the CPU.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from biencoder import environment
from biencoder.config.schema import Config, LossConfig, MiningConfig, ModelConfig
from biencoder.data import Forbidden, Split
from biencoder.data.tokens import Tokens, tokenize
from biencoder.distributed import idle_cores, join
from biencoder.distributed.world import World
from biencoder.errors import ConfigError, OutOfMemory
from biencoder.model.attention import use_gpu_kernels
from biencoder.model.batch import triplet_batch
from biencoder.model.bi_encoder import BiEncoder, TripletBatch, build_model
from biencoder.model.pretrained import load_pretrained
from biencoder.retrieval.faiss_index import FaissIndex
from biencoder.training.contrastive import targets
from biencoder.training.engine.settings import read_settings
from biencoder.training.objective import Objective, StepBatch
from biencoder.training.recovery.out_of_memory import raising_out_of_memory

TEXTS = ("the quick brown fox", "a dog", "taxes rise and fall", "votes fall with lazy taxes and a fox", "point", "counter")
META = torch.device("meta")


def made(folder: Path, sides: str = "shared", pooling: str = "mean") -> tuple[BiEncoder, TripletBatch, StepBatch]:
    config = ModelConfig(name=str(folder), max_length=16, sides=sides, pooling=pooling, embedding_dim=8)  # type: ignore[arg-type]
    pretrained = load_pretrained(config)
    model, tokens = build_model(config, pretrained, seed=0), tokenize(TEXTS, pretrained.tokenizer, max_length=16)
    split, negatives = Split("training", (), np.array([0, 1]), np.array([2, 3])), np.array([[4], [5]])
    batch = triplet_batch(np.arange(2), split, negatives, tokens, one_encoder=model.one_encoder, rivals=True, pass_cost=0.0)
    forbidden = Forbidden.of(split, len(TEXTS), same_N=None)
    wanted = targets(np.array([[0, 1]]), split, negatives, forbidden, rank=0)
    return model, batch, StepBatch([batch], wanted)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("sides", ["shared", "heads", "encoders"])
def test_a_triplet_step_waits_for_nothing_of_the_device(tiny_bert: Path, sides: str, pooling: str) -> None:
    model, batch, step = made(tiny_bert, sides, pooling)
    model.to(META)
    use_gpu_kernels(model.encoders)
    objective = Objective(LossConfig(), World(0, 1, 0, META))
    losses = list(objective.losses(step._replace(targets=None), lambda micro: model(batch.to(META))))
    losses[0].total.backward()
    assert losses[0].total.device == META
    assert all(weight.grad is not None for weight in model.towers[0].parameters())


def test_an_encoder_that_looks_at_its_mask_waits_for_the_device(tiny_bert: Path) -> None:
    model, batch, _ = made(tiny_bert)
    with pytest.raises(RuntimeError, match="meta"):
        model.to(META)(batch.to(META))


def test_a_mask_that_is_always_made_changes_no_vector(tiny_bert: Path) -> None:
    model, batch, _ = made(tiny_bert)
    before = model.eval()(batch)
    use_gpu_kernels(model.encoders)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    for own, other in zip(before, model(batch), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def test_targets_and_batches_move_as_a_whole(tiny_bert: Path) -> None:
    _, batch, step = made(tiny_bert, "encoders")
    moved = batch.to(META)
    parts = [moved.point_row_B, moved.counter_row_B, moved.negative_row_BK, moved.rival_row_B]
    parts += [
        part
        for group in [*moved.texts, *(moved.candidates or [])]
        if isinstance(group, Tokens)
        for part in (group.input_ids_UL, group.attention_mask_UL)
    ]
    assert len(parts) > 4
    assert step.targets is not None
    parts += step.targets.to(META)
    assert all(part is not None and part.device == META for part in parts)


def test_mean_pooling_counts_above_256_in_bf16(tiny_bert: Path) -> None:
    model, _, _ = made(tiny_bert)
    states = torch.ones(1, 257, 4, dtype=torch.bfloat16)
    states[0, 0] = 130  # the sum, 386, needs nine bits, and so does the count
    pooled = model.query_tower._pool(SimpleNamespace(last_hidden_state=states), torch.ones(1, 257, dtype=torch.int64))
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled, torch.full((1, 4), 386 / 257).bfloat16(), rtol=0, atol=0)


def test_deepspeed_times_nothing_unless_asked() -> None:
    assert read_settings(Config(), 1)["timers"] == {"throughput": {"enabled": False}}


def test_a_rank_takes_the_only_gpu_that_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert join._device(3) == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert join._device(3) == torch.device("cuda", 3)
    assert chosen == [0, 3]
    with pytest.raises(ConfigError, match="4 GPUs, but local rank 4"):
        join._device(4)
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert join._device(0) == torch.device("cpu")


def test_two_ranks_with_one_gpu_are_refused() -> None:
    join._check_own_gpus(["a", "a", "b"], ["1", "2", "3"])
    join._check_own_gpus(["a", "a"], ["", ""])
    with pytest.raises(ConfigError, match="ranks 0 and 2 on a would share one GPU"):
        join._check_own_gpus(["a", "a", "a"], ["1", "2", "1"])


def test_deepspeed_reads_the_gpus_number_as_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    with environment.local_rank_for_deepspeed(0):
        assert os.environ["LOCAL_RANK"] == "0"
    with environment.local_rank_for_deepspeed(None):
        assert os.environ["LOCAL_RANK"] == "3"
    assert os.environ["LOCAL_RANK"] == "3"


def test_ranks_with_gpus_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(idle_cores, "left_to_torchrun", lambda: True)
    monkeypatch.setattr(idle_cores, "usable_cores", lambda: 6)
    try:
        idle_cores.share_cores(2)
        assert torch.get_num_threads() == 3
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"} == {3}
    finally:
        monkeypatch.setattr(idle_cores, "usable_cores", lambda: threads)
        idle_cores.share_cores(1)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_libraries_say_in_words_that_memory_is_short(words: str) -> None:
    with pytest.raises(OutOfMemory, match="does not fit the GPU"), raising_out_of_memory(Config(), world_size=1):
        raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="illegal"), raising_out_of_memory(Config(), world_size=1):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_faiss_uses_the_ranks_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def to_gpu(resources: object, number: int, index: faiss.Index) -> faiss.Index:
        asked.append(number)
        return index

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    vectors = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    assert FaissIndex(vectors, MiningConfig(index="faiss", faiss_kind="flat")).search(vectors[:2], 3000).shape == (2, 2048)
    assert asked == [2]
