"""Prompts stand before the texts wherever these become vectors, each side's its own, and the exported model knows them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from biencoder.config.load import load_config
from biencoder.config.schema import ModelConfig
from biencoder.data import Split
from biencoder.data.token_cache import cached_tokens
from biencoder.data.tokens import tokenize
from biencoder.distributed.world import World
from biencoder.errors import ModelError
from biencoder.model.batch import triplet_batch
from biencoder.model.bi_encoder import Scores, Sides, build_model
from biencoder.model.folder import load_model
from biencoder.model.pretrained import Pretrained, load_pretrained
from biencoder.retrieval.trained_model import TrainedModel
from biencoder.training.engine.memory import mining_bytes
from tests.models import export

TEXTS = ["the quick fox", "taxes rise and fall with votes against a lazy dog " * 3, "a dog argues", "votes fall"]
EVERY = np.arange(len(TEXTS))
PROMPTS: dict[str, Any] = {"query_prompt": "point ", "document_prompt": "the counter "}
QUERY, DOCUMENT = PROMPTS.values()


def with_prompts(tiny_bert: Path, folder: Path, prompts: Any, **more: Any) -> Path:
    """The tiny BERT as a sentence-transformers folder with these prompts."""
    shutil.copytree(tiny_bert, folder)
    (folder / "modules.json").write_text('[{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]')
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_mean_tokens": True, **more}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return folder


def load(folder: Path, **settings: Any) -> Pretrained:
    return load_pretrained(ModelConfig(**{"name": str(folder), "max_length": 16, **settings}))


@pytest.mark.parametrize(
    ("stated", "settings", "found"),
    [
        ({"query": "point ", "document": "counter "}, {}, ("point ", "counter ")),
        ({"query": "point ", "passage": "counter "}, {}, ("point ", "counter ")),
        ({"query": "point "}, {"document_prompt": "counter "}, ("point ", "counter ")),
        ({"query": "point ", "document": "counter "}, {"query_prompt": ""}, ("", "counter ")),
        ({"votes": "votes "}, {}, ("", "")),
        ({}, {"query_prompt": "taxes "}, ("taxes ", "")),
    ],
)
def test_prompts_come_from_the_folder_unless_they_are_set(
    tiny_bert: Path, tmp_path: Path, stated: Any, settings: Any, found: tuple[str, str]
) -> None:
    folder = with_prompts(tiny_bert, tmp_path / "model", stated)
    loaded = load(folder, **settings)
    assert loaded.prompts == found
    assert loaded.settled(ModelConfig(**settings)).prompts == found
    assert any("of neither queries nor documents" in notice for notice in loaded.notices) == ("votes" in stated)


def test_prompts_that_cannot_be_are_said(tiny_bert: Path, tmp_path: Path) -> None:
    folder = with_prompts(tiny_bert, tmp_path / "model", {"query": "point "}, include_prompt=False)
    with pytest.raises(ModelError, match=r"leaves its prompt out of the pooling .*; set model.query_prompt"):
        load(folder)
    assert load(folder, query_prompt="", document_prompt="").prompts == ("", "")
    with pytest.raises(ModelError, match=r"model.document_prompt takes 22 tokens, and model.max_length is 16"):
        load(tiny_bert, document_prompt="fox " * 20)
    broken = with_prompts(tiny_bert, tmp_path / "broken", ["query: "])
    with pytest.raises(ModelError, match=r"the prompts in config_sentence_transformers.json are no texts by name"):
        load(broken)


def test_an_empty_prompt_can_be_given_on_the_command_line() -> None:
    config = load_config(overrides={"model.query_prompt": "", "model.document_prompt": "passage: "})
    assert config.model.prompts == ("", "passage: ")


@pytest.mark.parametrize("sides", ["shared", "heads", "encoders"])
def test_every_way_to_vectors_puts_them_before_the_texts(tiny_bert: Path, tmp_path: Path, sides: str) -> None:
    from sentence_transformers import SentenceTransformer

    export(tiny_bert, tmp_path / "model", sides=sides, pooling="mean", **PROMPTS)
    model, theirs = TrainedModel.load(tmp_path / "model"), SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert model.config.prompts == (QUERY, DOCUMENT)
    embedded = model.embed_texts(TEXTS, EVERY)
    for side, prompt, own in (("query", QUERY, theirs.encode_query), ("candidate", DOCUMENT, theirs.encode_document)):
        expected = torch.from_numpy(np.asarray(theirs.encode([prompt + text for text in TEXTS], task=None)))
        if sides != "shared":  # a router needs to be told the side
            expected = torch.from_numpy(np.asarray(own(TEXTS)))
        for found in (
            torch.from_numpy(np.asarray(own(TEXTS))),
            getattr(embedded, side).embedding,
            model.embed_side(TEXTS, side).embedding,  # type: ignore[arg-type]
            torch.from_numpy(model.encode(TEXTS, side=side)),  # type: ignore[arg-type]
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(embedded.query.embedding, embedded.candidate.embedding, atol=1e-3)


@pytest.mark.parametrize("sides", ["shared", "heads", "encoders"])
def test_a_batch_encodes_each_side_with_its_prompt(tiny_bert: Path, sides: str) -> None:
    config = ModelConfig(name=str(tiny_bert), max_length=16, embedding_dim=8, sides=sides, pooling="mean", **PROMPTS)  # type: ignore[arg-type]
    pretrained = load_pretrained(config)
    model = build_model(config, pretrained, seed=0).eval()
    tokens = cached_tokens(TEXTS, pretrained.tokenizer, max_length=16, world=World.alone(), prompts=pretrained.prompts)
    pairs = np.arange(2)
    batch = triplet_batch(
        pairs,
        Split("training", (), pairs, pairs + 2),
        (np.roll(pairs, 1) + 2)[:, None],
        tokens,
        one_encoder=model.one_encoder,
        rivals=True,
        pass_cost=1.0,
    )
    with torch.no_grad():
        scores, both = model(batch), model(tokens.batch(EVERY))
        assert isinstance(scores, Scores)
        assert isinstance(both, Sides)
        as_query = model(tokenize([QUERY + text for text in TEXTS], pretrained.tokenizer, max_length=16).batch(EVERY))
    torch.testing.assert_close(both.query.embedding, as_query.query.embedding)
    torch.testing.assert_close(scores.point_BD, both.query.embedding[:2])
    torch.testing.assert_close(scores.counter_BD, both.candidate.embedding[2:])
    torch.testing.assert_close(scores.rival_BD, both.candidate.embedding[:2])
    assert len(both.parts()) == 4


def test_equal_prompts_encode_a_text_once(tiny_bert: Path) -> None:
    pretrained = load(tiny_bert)
    once, twice = (
        cached_tokens(TEXTS, pretrained.tokenizer, max_length=16, world=World.alone(), prompts=prompts)
        for prompts in (("point ", "point "), ("", "point "))
    )
    assert once.candidate is None
    assert twice.candidate is not None
    np.testing.assert_array_equal(once.flat_T, twice.candidate.flat_T)  # an entry of the cache is one prompt's
    assert len(twice.flat_T) < len(once.flat_T)
    config = load_config(overrides={"model.query_prompt": "a", "model.document_prompt": "a"})
    other = load_config(overrides={"model.query_prompt": "a"})
    one, two = (mining_bytes(given, num_texts=10**6, hidden=32, world_size=1) for given in (config, other))
    assert two > one


def test_a_folder_from_before_there_were_prompts_has_none(tiny_bert: Path, tmp_path: Path) -> None:
    export(tiny_bert, tmp_path / "model", pooling="mean")
    file = tmp_path / "model" / "biencoder.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in settings.items() if not key.endswith("_prompt")}))
    assert load_model(tmp_path / "model")[2].query_prompt == ""
