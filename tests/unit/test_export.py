"""An exported model gives the same embeddings in sentence-transformers and in this program."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from biencoder.config.schema import ModelConfig
from biencoder.data.tokens import tokenize
from biencoder.errors import ConfigError, ModelError
from biencoder.model.bi_encoder import BiEncoder, Side, Sides
from biencoder.model.folder import load_model, save_model, trained_on_clean_texts
from biencoder.model.pretrained import load_pretrained
from biencoder.retrieval.embedders import load_models
from biencoder.retrieval.saved_index import SearchIndex
from biencoder.retrieval.trained_model import TrainedModel
from biencoder.tracking.terminal import Terminal
from launcher import index, search
from tests.models import export

TEXTS = ["the quick fox", "a lazy dog argues against votes", "taxes rise"]


def embeddings(model: BiEncoder, tiny_bert: Path, side: Side = "query") -> torch.Tensor:
    tokenizer = load_pretrained(ModelConfig(name=str(tiny_bert), max_length=16)).tokenizer
    with torch.no_grad():
        sides: Sides = model(tokenize(TEXTS, tokenizer, max_length=16).batch(np.arange(3)))
    return getattr(sides, side).embedding  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "settings",
    [{"pooling": "mean"}, {"pooling": "cls", "normalize": True}, {"pooling": "pooler"}, {"embedding_dim": 0}],
    ids=str,
)
def test_sentence_transformers_gives_the_same_embeddings(tiny_bert: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    from sentence_transformers import SentenceTransformer

    model = export(tiny_bert, tmp_path / "model", **settings)
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert theirs.max_seq_length == 16
    encoded = theirs.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(encoded, embeddings(model, tiny_bert), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("sides", ["heads", "encoders"])
def test_sentence_transformers_knows_both_sides(tiny_bert: Path, tmp_path: Path, sides: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = export(tiny_bert, tmp_path / "model", sides=sides, pooling="mean")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    queries = theirs.encode_query(TEXTS, convert_to_tensor=True)
    documents = theirs.encode_document(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(queries, embeddings(model, tiny_bert), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(documents, embeddings(model, tiny_bert, "candidate"), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(queries, documents, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling": "pooler", "classifier_norm": True},
        {"pooling": "mean", "sides": "heads"},
        {"pooling": "mean", "sides": "encoders"},
        {"pooling": "mean", "classifier": "residual"},
        {"pooling": "cls", "normalize": True, "classifier_features": "embedding"},
    ],
    ids=str,
)
def test_loading_gives_back_every_weight(tiny_bert: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    model = export(tiny_bert, tmp_path / "model", **settings)
    loaded, _, config = load_model(tmp_path / "model")
    assert config.pooling == settings["pooling"]
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight)


def test_a_classifier_that_was_not_trained_is_not_exported(tiny_bert: Path, tmp_path: Path) -> None:
    model = export(tiny_bert, tmp_path / "model")
    config = ModelConfig(name=str(tiny_bert), max_length=16, embedding_dim=8)
    tokenizer = load_pretrained(config).tokenizer
    without = {name: weight for name, weight in model.state_dict().items() if not name.startswith("classifier.")}
    for weights, trained in ((model.state_dict(), True), (without, False)):
        save_model(tmp_path / "model", model, weights, tokenizer, config, card="")
        loaded = TrainedModel.load(str(tmp_path / "model"))
        assert (tmp_path / "model/classifier.safetensors").exists() == trained
        assert (loaded.classifier is not None) == trained
        torch.testing.assert_close(loaded.model.query_tower.projection.weight, model.query_tower.projection.weight)


@pytest.mark.parametrize("clean", [True, False])
def test_a_model_tells_whether_its_texts_were_cleaned(tiny_bert: Path, tmp_path: Path, clean: bool) -> None:
    export(tiny_bert, tmp_path / "model", clean=clean)
    load_model(tmp_path / "model")
    assert trained_on_clean_texts(tmp_path / "model") == clean
    assert trained_on_clean_texts(tiny_bert)  # of another origin
    (tmp_path / "model/biencoder.json").write_text("[")
    with pytest.raises(ModelError, match=r"biencoder.json cannot be read: "):
        trained_on_clean_texts(tmp_path / "model")


def test_saving_again_replaces_the_whole_folder(tiny_bert: Path, tmp_path: Path) -> None:
    export(tiny_bert, tmp_path / "model", normalize=True, pooling="mean")
    export(tiny_bert, tmp_path / "model", pooling="mean")
    assert not list((tmp_path / "model").glob("*_Normalize"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    load_model(tmp_path / "model")


@pytest.mark.parametrize("damage", ["missing", "foreign", "truncated", "another shape"])
def test_a_damaged_model_gets_one_sentence(tiny_bert: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    if damage == "foreign":
        folder = tiny_bert
    elif damage != "missing":
        export(tiny_bert, folder)
        weights = folder / "classifier.safetensors"
        if damage == "truncated":
            weights.write_bytes(weights.read_bytes()[:-8])
        else:
            export(tiny_bert, tmp_path / "other", classifier_features="embedding")
            weights.write_bytes((tmp_path / "other/classifier.safetensors").read_bytes())
    with pytest.raises(ModelError) as error:
        load_model(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_search_returns_the_nearest_texts_without_the_query(tiny_bert: Path, tmp_path: Path) -> None:
    model = export(tiny_bert, tmp_path / "model")
    inference = TrainedModel.load(str(tmp_path / "model"))
    index = SearchIndex.in_memory(TEXTS, inference.embed_side(TEXTS, "candidate"), clean=True)
    hits = inference.search(TEXTS[1], index, top_k=5)
    vectors = embeddings(model, tiny_bert)
    distances = {TEXTS[i]: (vectors[i] - vectors[1]).norm().item() for i in (0, 2)}
    assert [hit.text for hit in hits] == sorted(distances, key=lambda text: distances[text])
    assert [hit.distance for hit in hits] == pytest.approx(sorted(distances.values()), rel=1e-4)
    assert all(0 < hit.probability < 1 for hit in hits)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("normalize", "sides"), [(False, "shared"), (True, "heads")])
def test_fewer_dimensions_are_those_of_sentence_transformers(
    tiny_bert: Path, tmp_path: Path, normalize: bool, sides: str
) -> None:
    from sentence_transformers import SentenceTransformer

    export(tiny_bert, tmp_path / "model", pooling="mean", normalize=normalize, sides=sides)
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu", truncate_dim=4)
    ours = TrainedModel.load(tmp_path / "model", dim=4)
    for side, encode in (("query", theirs.encode_query), ("candidate", theirs.encode_document)):
        expected = encode(TEXTS, normalize_embeddings=normalize)
        np.testing.assert_allclose(ours.encode(TEXTS, side=side), expected, rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]
    shutil.copytree(tmp_path / "model", tmp_path / "foreign", ignore=shutil.ignore_patterns("biencoder.json"))
    (foreign,) = load_models([str(tmp_path / "foreign")], dim=4)
    unit = torch.nn.functional.normalize(torch.from_numpy(ours.encode(TEXTS)), dim=1)
    found = foreign.embed_texts(TEXTS, np.arange(3)).query.embedding
    torch.testing.assert_close(found, unit, rtol=1e-5, atol=1e-5)
    assert ours.classifier is None
    assert ours.rank(["taxes fall"], TEXTS, top_k=1)[0][0].text
    for load in (partial(TrainedModel.load, tmp_path / "model"), partial(load_models, [str(tmp_path / "foreign")])):
        with pytest.raises(ModelError, match=r"has embeddings of 8 dimensions, and 9 are asked for; ask for fewer"):
            load(dim=9)


def test_an_index_of_fewer_dimensions_is_searched_by_as_many(tiny_bert: Path, tmp_path: Path) -> None:
    export(tiny_bert, tmp_path / "model", pooling="mean")
    corpus, out = tmp_path / "texts.jsonl", str(tmp_path / "index")
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    given = ["--model", str(tmp_path / "model"), "--data.root", str(corpus)]
    index.main([*given, "--dim", "4", "--out", out])
    model, found = search.saved(search.parse(["--index", out]))
    assert (model.config.embedding_dim, found.embedding_ND.shape) == (4, (3, 4))
    now, made = search.made_now(search.parse([*given, "--dim", "4"]), Terminal(is_main=False))
    np.testing.assert_array_equal(made.embedding_ND, found.embedding_ND)
    hits = [which.search("a dog argues", where, top_k=3) for which, where in ((now, made), (model, found))]
    assert len({str([(hit.row, hit.distance) for hit in some]) for some in hits}) == 1
    with pytest.raises(ConfigError, match=r"is of 4 dimensions, and so are queries; make another, or say nothing"):
        search.saved(search.parse(["--index", out, "--dim", "8"]))
    with pytest.raises(ConfigError, match=r"--dim is 0, expected an integer >= 1"):
        search.parse(["--index", out, "--dim", "0"])
