"""Packed texts have the vectors and gradients of padded ones, on a CPU; and of a GPU, what tensors without values show."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from biencoder.config.schema import LossConfig, ModelConfig
from biencoder.data import Split
from biencoder.data.tokens import PackedTokens, Packing, TokenizedTexts, tokenize, tokenize_sides
from biencoder.distributed.world import World
from biencoder.model import packed
from biencoder.model.batch import triplet_batch
from biencoder.model.bi_encoder import BiEncoder, TripletBatch, build_model
from biencoder.model.packed import hindrance, pack
from biencoder.model.pretrained import load_pretrained
from biencoder.retrieval.trained_model import TrainedModel
from biencoder.training.objective import Objective, StepBatch
from tests import encoders

TEXTS = [
    "the quick fox",
    "a lazy dog argues against taxes",
    "votes fall with taxes",
    "the <pad> dog [PAD] votes",
    "a",
    "dog",
]
"""Some hold the words of special tokens, which RoBERTa does not number."""
CUDA, META = torch.device("cuda", 0), torch.device("meta")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny encoder of each kind, made once."""
    root, made = tmp_path_factory.mktemp("packed"), dict[str, Path]()

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = encoders.write(kind, root / kind)
        return made[kind]

    return folder


def model_of(folder: Path, **settings: Any) -> tuple[BiEncoder, TokenizedTexts]:
    config = ModelConfig(**{"name": str(folder), "max_length": 40, "dropout": 0.0, "embedding_dim": 8, **settings})
    pretrained = load_pretrained(config)
    return build_model(config, pretrained, seed=0).train(), tokenize(TEXTS, pretrained.tokenizer, max_length=40)


def triplets(model: BiEncoder, tokens: TokenizedTexts, packing: Packing | None) -> TripletBatch:
    split, negatives = Split("training", (), np.array([0, 1]), np.array([2, 3])), np.array([[4], [5]])
    return triplet_batch(
        np.arange(2),
        split,
        negatives,
        tokens,
        one_encoder=model.one_encoder,
        rivals=True,
        pass_cost=0.0,
        packing=packing,
    )


def results(model: BiEncoder, batch: TripletBatch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Scores, and the gradient of a function of all of them."""
    model.zero_grad()
    scores = [part for part in model(batch) if part is not None]
    sum((part.square().sum() for part in scores), torch.zeros(())).backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return [part.detach() for part in scores], torch.cat([part.flatten() for part in gradients])


KINDS = [(kind, pooling) for kind in ("bert", "roberta") for pooling in ("mean", "cls", "pooler")]
OTHERS = [("xlm-roberta", "mean"), ("electra", "cls"), ("distilbert", "last"), ("nomic_bert", "mean")]


@pytest.mark.parametrize(("kind", "pooling"), KINDS + OTHERS)
def test_scores_and_gradients_are_those_of_padded_texts(folders: Callable[[str], Path], kind: str, pooling: str) -> None:
    model, tokens = model_of(folders(kind), pooling=pooling, gradient_checkpointing=kind == "roberta")
    assert model.encoders[0].config.model_type in packed.TESTED
    assert packed._unfit(model.encoders[0]) == ""
    expected, gradient = results(model, triplets(model, tokens, None))
    packing = pack(model.encoders)
    batch = triplets(model, tokens, packing)
    (only,) = batch.texts
    assert isinstance(only, PackedTokens)
    assert only.input_ids_1T.shape == (1, tokens.lengths(np.arange(6)).sum())
    found, same = results(model, batch)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    assert (same - gradient).norm() < 1e-5 * gradient.norm()  # by norm: a key's bias has no true gradient
    again, _ = results(model, triplets(model, tokens, None))  # it still takes padded ones
    for own, other in zip(again, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


def test_both_encoders_and_both_prompts_are_packed(folders: Callable[[str], Path]) -> None:
    model, tokens = model_of(folders("bert"), sides="encoders")
    tokens = replace(tokens, candidate=tokenize(TEXTS[::-1], load_tokenizer(folders("bert")), max_length=40))
    model.eval()
    expected = model(triplets(model, tokens, None)), model(tokens.batch(np.arange(6)))
    packing = pack(model.encoders)
    found = model(triplets(model, tokens, packing)), model(tokens.packed(np.arange(6), packing))
    for own, other in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    for own, other in zip(found[1].parts(), expected[1].parts(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


def load_tokenizer(folder: Path) -> Any:
    return load_pretrained(ModelConfig(name=str(folder), max_length=40)).tokenizer


def test_tokens_stand_one_after_the_other(folders: Callable[[str], Path]) -> None:
    tokens = tokenize_sides(TEXTS, load_tokenizer(folders("roberta")), max_length=40, prompts=("", "a "))
    batch = tokens.packed(np.array([3, 0]), Packing(padding_idx=1))
    first, second = (tokens.flat_T[tokens.offsets_N1[n] : tokens.offsets_N1[n + 1]].tolist() for n in (3, 0))
    assert batch.input_ids_1T.tolist() == [first + second]
    assert batch.bounds_U1.tolist() == [0, len(first), len(first) + len(second)]
    assert batch.bounds_U1.dtype == torch.int32
    assert batch.longest == len(first)
    assert first.count(1) == 1, "the text's <pad> is one token, which has no number of its own"
    numbers = iter(range(2, 40))
    in_first = [1 if token == 1 else next(numbers) for token in first]
    assert batch.positions_1T.tolist() == [in_first + list(range(2, 2 + len(second)))]
    assert tokens.packed(np.array([3, 0]), Packing()).positions_1T.tolist() == [[*range(len(first)), *range(len(second))]]
    assert batch.candidate is not None
    assert batch.candidate.longest == len(first) + 1
    moved = batch.to(torch.device("meta"))
    assert moved.candidate is not None
    parts = [part for side in (moved, moved.candidate) for part in (side.input_ids_1T, side.positions_1T, side.bounds_U1)]
    assert {part.device.type for part in parts} == {"meta"}


def test_a_trained_model_embeds_packed_texts(tiny_bert: Path) -> None:
    padded = TrainedModel.pretrained(ModelConfig(name=str(tiny_bert), max_length=40), precision="fp32")
    assert padded.packing is None
    tokens = padded.tokenize(TEXTS)
    expected, side = padded.embed(tokens, np.arange(6)), padded.encode(TEXTS, side="candidate")
    model = replace(padded, packing=pack(padded.model.encoders))
    torch.testing.assert_close(model.embed(tokens, np.arange(6)).query.embedding, expected.query.embedding)
    np.testing.assert_allclose(model.encode(TEXTS, side="candidate"), side, rtol=1e-5, atol=1e-5)


class Kernels(TorchDispatchMode):
    """Notes what is computed, and by what the program would wait for the GPU: values that it reads, copies to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        given = {part.device.type for part in args if isinstance(part, torch.Tensor)}
        home = isinstance(made, torch.Tensor) and made.device.type == "cpu" and given - {"cpu"}
        if home or any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "masked_select")):
            self.waits.append(str(func))
        return made


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_a_step_asks_the_gpu_nothing_and_mixes_no_devices(folders: Callable[[str], Path], pooling: str) -> None:
    """On "meta", which stands in for a GPU as in test_gpu_rules.py: its tensors hold no values that could be asked for."""
    model, tokens = model_of(folders("roberta"), pooling=pooling)
    batch, bf16 = triplets(model, tokens, pack(model.encoders)), model.to(torch.bfloat16)
    objective, meta = Objective(LossConfig(), World(0, 1, 0, META)), bf16.to(META)
    with Kernels() as kernels:
        moved = batch.to(META)
        (loss,) = objective.losses(StepBatch([moved], None), lambda micro: meta(moved))
        loss.total.backward()
    assert kernels.waits == []
    assert sum("_varlen_attn.default" in name for name in kernels.names) == 2, "one in each layer"
    assert sum("_varlen_attn_backward" in name for name in kernels.names) == 2
    assert all(weight.grad is not None for weight in meta.parameters())


def test_texts_are_padded_where_packing_would_be_slow_or_wrong(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bert, _ = model_of(folders("bert"))
    half = torch.bfloat16
    assert "only GPUs" in hindrance(bert.encoders, torch.device("cpu"), half)
    assert "fp16 alone" in hindrance(bert.encoders, CUDA, torch.float32)
    monkeypatch.setattr(packed, "_tried", lambda *given: "")
    assert hindrance(bert.encoders, CUDA, half) == ""
    dropping, _ = model_of(folders("bert"), attention_dropout=0.1)
    assert "model.attention_dropout" in hindrance(dropping.encoders, CUDA, half)
    for kind in ("albert", "modernbert", "qwen3"):
        other, _ = model_of(folders(kind))
        assert kind in hindrance(other.encoders, CUDA, half)
    monkeypatch.setattr(packed, "_kernel", lambda: None)
    assert "has no kernel" in hindrance(bert.encoders, CUDA, half)


def test_the_kernel_is_tried_before_it_is_used(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (encoder,) = model_of(tiny_bert)[0].encoders
    right = packed.attend
    tried = packed._tried(encoder, torch.device("cpu"), torch.bfloat16)
    assert tried == ""

    def mixing(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        """In 16 bits, attention that looks at the other texts."""
        if query.dtype == torch.bfloat16:
            more["cu_seq_lens_q"] = more["cu_seq_lens_q"][[0, -1]]
        return right(module, query, key, value, mask, **more)

    def failing(module: Any, query: Any, *given: Any, **more: Any) -> Any:
        if query.dtype == torch.bfloat16:
            raise RuntimeError("FlashAttention only supports\nAmpere GPUs or newer")
        return right(module, query, *given, **more)

    monkeypatch.setattr(packed, "attend", mixing)
    assert "is off by" in packed._tried(encoder, torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(packed, "attend", failing)
    assert "FlashAttention only supports Ampere" in packed._tried(encoder, torch.device("cpu"), torch.bfloat16)
