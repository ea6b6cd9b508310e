"""Vectors of texts are made once for a model; what lies broken or foreign in their place is made again."""

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from biencoder.config.schema import ModelConfig
from biencoder.data.ids import Ids
from biencoder.errors import ConfigError
from biencoder.model.bi_encoder import Vectors
from biencoder.model.precision import inference_dtype
from biencoder.retrieval import vector_cache
from biencoder.retrieval.embedders import load_models, pretrained_model
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.trained_model import TrainedModel
from biencoder.retrieval.vector_cache import VectorCache, cache_folder
from launcher import evaluate
from tests.conftest import WriteCorpus, numbered_corpus
from tests.models import export

TEXTS = ["the quick fox", "a lazy dog", "taxes rise", "votes fall", "a fox argues"]


class Counting:
    """Embeds texts by their length, and counts them."""

    def __init__(self, *, shared: bool = True) -> None:
        self.count, self.shared = 0, shared

    def __call__(self, texts: Sequence[str], text_ids_N: Ids) -> EmbeddedTexts:
        self.count += len(text_ids_N)
        lengths = torch.tensor([[float(len(texts[i])), float(i)] for i in text_ids_N])
        query = Vectors(lengths, lengths / 2)
        return EmbeddedTexts.whole(text_ids_N, query, query if self.shared else Vectors(-lengths, query.pooled))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> VectorCache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return VectorCache.of("a model")


def same(one: EmbeddedTexts, other: EmbeddedTexts) -> bool:
    pairs = zip((*one.query, *one.candidate), (*other.query, *other.candidate), strict=True)
    return np.array_equal(one.text_ids_N, other.text_ids_N) and all(torch.equal(mine, its) for mine, its in pairs)


@pytest.mark.parametrize("shared", [True, False])
def test_each_text_is_embedded_once_in_whatever_order_it_is_asked_for(cache: VectorCache, shared: bool) -> None:
    embed, alone = Counting(shared=shared), Counting(shared=shared)
    counts = []
    for ids in ([1, 3], [0, 1, 2, 3], [0, 1, 2, 3], [3, 4], [0, 4]):
        found, count = cache.embed(TEXTS, np.array(ids), embed)
        assert same(found, alone(TEXTS, np.array(ids)))
        assert (found.query is found.candidate) is shared
        assert found.query.pooled is found.candidate.pooled
        counts.append(count)
    assert counts == [2, 2, 0, 1, 0]
    assert embed.count == len(TEXTS)
    assert VectorCache.of("another model").embed(TEXTS, np.arange(5), embed)[1] == 5


@pytest.mark.parametrize("fault", ["torn", "a bit", "empty", "a pickle", "another's"])
def test_what_is_broken_or_foreign_is_made_again(cache: VectorCache, fault: str) -> None:
    embed, ids = Counting(), np.arange(5)
    expected, _ = cache.embed(TEXTS, ids, embed)
    (file,) = cache.folder.glob("*.safetensors")
    content = file.read_bytes()
    bad = {
        "torn": content[: len(content) // 2],
        "a bit": content[:-1] + bytes([content[-1] ^ 1]),
        "empty": b"",
        "a pickle": pickle.dumps({"sha256": 1}),
        "another's": content.replace(b"sha256", b"sha999"),
    }[fault]
    place = file
    if fault in ("a pickle", "another's"):  # whose names are right
        file.unlink()
        place = file.with_name(f"{vector_cache._sha256(bad)}.safetensors")
    place.write_bytes(bad)
    found, count = cache.embed(TEXTS, ids, embed)
    assert count == 5
    assert same(found, expected)
    assert [path.read_bytes() for path in cache.folder.iterdir()] == [content]
    assert cache.embed(TEXTS, ids, embed)[1] == 0


def test_a_cache_that_cannot_be_written_is_skipped(cache: VectorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.folder.parent.parent.mkdir(parents=True)
    cache.folder.parent.write_text("a file where the folder should be")
    embed = Counting()
    assert [cache.embed(TEXTS, np.arange(5), embed)[1] for _ in range(2)] == [5, 5]


def test_what_was_not_read_for_longest_goes_first(cache: VectorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    embed, others = Counting(), [VectorCache.of(name) for name in ("one", "two")]
    for age, other in enumerate(others):
        other.embed(TEXTS, np.arange(5), embed)
        for file in other.folder.iterdir():
            os.utime(file, (age, age))
    size = file.stat().st_size
    others[0].embed(TEXTS, np.arange(5), embed)  # read now
    monkeypatch.setattr(vector_cache, "_MOST_BYTES", 2 * size)
    cache.embed(TEXTS, np.arange(5), embed)
    assert [len(list(kept.folder.iterdir())) for kept in (others[0], others[1], cache)] == [1, 0, 1]
    monkeypatch.setattr(vector_cache, "_MOST_BYTES", size - 1)
    assert [VectorCache.of("three").embed(TEXTS, np.arange(5), embed)[1] for _ in range(2)] == [5, 5]


@pytest.mark.parametrize("settings", [{}, {"sides": "heads"}, {"sides": "encoders"}], ids=str)
def test_a_model_s_vectors_come_back_bit_for_bit(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    export(tiny_bert, tmp_path / "model", pooling="mean", **settings)
    told: list[str] = []
    found = []
    for cached in (False, True, True):
        (model,) = load_models([str(tmp_path / "model")], precision="fp32", cached=cached, tell=told.append)
        found.append(model.embed_texts(TEXTS, np.array([0, 2, 3])))
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert told[:2] == ["Embedded 3 texts with model in fp32."] * 2
    assert model.cache
    assert told[2] == f"Embedded 0 texts with model in fp32; 3 came from {model.cache.folder}."
    (rounded,) = load_models([str(tmp_path / "model")], precision="bf16", cached=True, tell=told.append)
    rounded.embed_texts(TEXTS, np.array([0, 2, 3]))
    export(tiny_bert, tmp_path / "model", pooling="mean", normalize=True, **settings)
    (other,) = load_models([str(tmp_path / "model")], precision="fp32", cached=True, tell=told.append)
    other.embed_texts(TEXTS, np.array([0, 2, 3]))
    assert told[3:] == [f"Embedded 3 texts with model in {precision}." for precision in ("bf16", "fp32")]
    config = ModelConfig(name=str(tiny_bert), max_length=16, embedding_dim=0, pooling="mean")
    bases = [pretrained_model(config, cached=True, precision="fp32")[0] for _ in range(2)]
    assert bases[0].cache == bases[1].cache != other.cache


def test_a_model_replaced_while_it_is_loaded_is_not_cached(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, load = tmp_path / "model", TrainedModel.load
    export(tiny_bert, folder)

    def replaced_meanwhile(*arguments: Any, **more: Any) -> TrainedModel:
        model = load(*arguments, **more)
        export(tiny_bert, folder, normalize=True)
        return model

    monkeypatch.setattr(TrainedModel, "load", replaced_meanwhile)
    assert load_models([str(folder)], cached=True)[0].cache is None


@pytest.mark.slow
def test_a_second_evaluation_embeds_nothing(
    cache: VectorCache, tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = str(write_corpus(numbered_corpus(training=6, validation=8)))
    export(tiny_bert, tmp_path / "model", pooling="mean")
    wanted = ["--model", str(tmp_path / "model"), "--data.root", corpus, "--precision", "fp32"]
    calls: list[list[str]] = [["--baselines"], ["--baselines"], [], ["--no-cache"]]
    told = []
    for options in calls:
        evaluate.main([*wanted, *options])
        lines = capsys.readouterr().out.splitlines()
        told.append([line.split(" texts ")[0] for line in lines if line.startswith("Embedded ")])
        assert sum(str(cache_folder()) in line for line in lines) == told[-1].count("Embedded 0")
    assert told[0] == ["Embedded 16"] * 2  # the model, and what it was trained from
    assert told[1] == ["Embedded 0"] * 2
    assert told[2] == ["Embedded 0"] * 2  # the texts of training stand in validation, too
    assert told[3] == ["Embedded 12", "Embedded 16"]


def test_precision_is_named_or_the_machine_s(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for has_amx, has_bf16 in ((True, True), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has_amx=has_amx: has_amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has_bf16=has_bf16: has_bf16)
        expected = torch.bfloat16 if has_bf16 else torch.float32
        assert inference_dtype("auto", cpu) == expected
        assert inference_dtype("fp32", cpu) == torch.float32
    with pytest.raises(ConfigError, match=r"^the precision is 'fp8', expected one of auto, fp32, bf16$"):
        inference_dtype("fp8", cpu)  # type: ignore[arg-type]  # as a caller may
    export(tiny_bert, tmp_path / "model", pooling="mean", normalize=True)
    exact, rounded = (TrainedModel.load(tmp_path / "model", precision=name) for name in ("fp32", "bf16"))
    assert (exact.precision, rounded.precision) == ("fp32", "bf16")
    one, other = exact.encode(TEXTS), rounded.encode(TEXTS)
    assert one.dtype == other.dtype == np.float32
    assert 0 < np.abs(one - other).max() < 0.05
    hits = rounded.rank(TEXTS[:1], TEXTS, top_k=2)[0]  # the pair classifier is in fp32
    assert all(0 < hit.probability < 1 for hit in hits)
