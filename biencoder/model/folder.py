"""The saved model: a folder that sentence-transformers can load, with the pair classifier and a model card.

    folder/                      modules.json, config_sentence_transformers.json, README.md (the model card)
      (encoder and tokenizer)    in the folder itself, or in query/ and candidate/ if the sides differ (candidate/ holds
                                 only the projection if they share the encoder); with the encoder's own Python code, if
                                 transformers does not have its architecture
      1_Pooling 2_Dense …        pooling, BERT's pooler if it is used, the projection, and length 1 if configured
      biencoder.json             the settings from which this program builds the model; whether it was trained on
                                 cleaned texts, and what validation said of its re-ranking
      classifier.safetensors     the pair classifier, if it was trained

Weights are safetensors only: loading a model never unpickles anything.
"""

import hashlib
import inspect
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from biencoder.config.schema import ModelConfig
from biencoder.errors import ModelError
from biencoder.model.bi_encoder import BiEncoder, Tower
from biencoder.model.pretrained import check_length, has_own_code
from biencoder.model.vocabulary import check_fit, load_tokenizer
from biencoder.model.weights import check_file, check_files, check_finite, check_safetensors
from biencoder.model.whole_folder import whole_folder

_ST = "sentence_transformers"
_SIDES = ("query", "candidate")
_CLASSIFIER = "classifier.safetensors"
_CLEAN, _RERANKING = "clean", "reranking"
"""The keys of biencoder.json that are no settings of the model."""
Modules = list[tuple[str, str]]
"""The modules that a text passes through: (path within the folder, kind)."""


class Reranking(NamedTuple):
    """What the evaluation that chose a model said of its pair classifier."""

    helps: bool
    """Whether the nearest, re-ranked, have the right one first more often."""
    probable: bool
    """Whether its probabilities order them no worse than their distance, and are nearly as often right as they say."""


def save_model(
    folder: Path,
    model: BiEncoder,
    weights: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    config: ModelConfig,
    *,
    card: str,
    clean: bool = True,
    reranking: Reranking | None = None,
) -> None:
    """Write the model beside `folder`, then rename, so that `folder` always holds a complete model.

    Args:
        weights: the model's state dict in fp32 (the model itself may be sharded or in half precision). It has no weights of
            the pair classifier if no loss has trained it.
        clean: whether the training texts were cleaned.
        reranking: None if it was not measured.

    Raises:
        ModelError: the folder cannot be written; its former content is untouched.
    """
    try:
        with whole_folder(folder) as fresh:
            _write_model(fresh, model, weights, tokenizer, config, card)
            _write_description(fresh, model, config, clean, reranking)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ModelError(f"the model cannot be written to {folder}: {reason}") from None


def _write_model(
    fresh: Path,
    model: BiEncoder,
    weights: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    config: ModelConfig,
    card: str,
) -> None:
    routes: list[Modules] = []
    for number, side in enumerate([""] if model.shared else _SIDES):
        (fresh / side).mkdir(exist_ok=True)
        prefix = f"towers.{number}."
        tower: Tower = model.towers[number]  # type: ignore[assignment]  # a ModuleList of towers
        own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        if number == 0 or not model.one_encoder:
            encoder = _save_encoder(fresh, side, tower, own, config.max_length)
            tokenizer.save_pretrained(fresh / side)
        routes.append([*encoder, *_save_projection(fresh, side, tower, own, start=len(encoder))])
    if model.shared:
        _write_json(fresh / "modules.json", [_module(i, path, kind) for i, (path, kind) in enumerate(routes[0])])
    else:
        _write_router(fresh, routes)
    _write_json(
        fresh / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": dict(zip(("query", "document"), config.prompts, strict=True)) if any(config.prompts) else {},
            "default_prompt_name": None,
            "similarity_fn_name": "euclidean",
        },
    )
    classifier = {n.removeprefix("classifier."): w for n, w in weights.items() if n.startswith("classifier.")}
    if classifier:
        save_file(classifier, fresh / _CLASSIFIER)
    (fresh / "README.md").write_text(card, encoding="utf-8")


def _write_description(
    fresh: Path, model: BiEncoder, config: ModelConfig, clean: bool, reranking: Reranking | None
) -> None:
    known = {_RERANKING: reranking._asdict()} if reranking else {}
    query, document = config.prompts
    chosen = {"pooling": model.query_tower.pooling, "query_prompt": query, "document_prompt": document}
    _write_json(fresh / "biencoder.json", asdict(config) | chosen | {_CLEAN: clean} | known)


def load_model(
    folder: Path, *, trust_remote_code: bool = False, dim: int = 0
) -> tuple[BiEncoder, PreTrainedTokenizerBase, ModelConfig]:
    """The model that `save_model` wrote, in fp32 and in evaluation mode. Its pair classifier is untrained unless
    `has_classifier`.

    Args:
        trust_remote_code: whether Python code that the folder holds may run. What biencoder.json says of that is not asked.
        dim: embeddings are their first `dim` dimensions; 0: all of them.

    Raises:
        ModelError: the folder is missing, was not written by this program, or is damaged; or its embeddings are shorter.
    """
    description = folder / "biencoder.json"
    if not description.is_file():
        raise ModelError(f"{folder} is no model of this program: it has no biencoder.json; give runs/<run>/model/best, say")
    try:
        check_file(description)
        settings = json.loads(description.read_text(encoding="utf-8"))
        config = TypeAdapter(ModelConfig).validate_python(
            {key: settings[key] for key in settings if key not in (_CLEAN, _RERANKING)}
        )
        query, document = config.prompts  # a folder that names none was trained without
        config = replace(config, query_prompt=query, document_prompt=document, trust_remote_code=trust_remote_code)
        model, tokenizer = _build(folder, config)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - the parsers of its many files raise many kinds for a damaged one
        if "custom code" in str(error):  # transformers' message under trust_remote_code=False
            raise ModelError(needs_code(folder)) from None
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"the model in {folder} cannot be loaded: {reason}") from None
    full = model.query_tower.projection.out_features
    check_dim(dim, full, folder)
    if 0 < dim < full:
        model.shorten(dim)
        config = replace(config, embedding_dim=dim)
    return model.eval(), tokenizer, config


def check_dim(dim: int, full: int, folder: Path) -> None:
    """Raise a ModelError if embeddings do not have so many dimensions."""
    if dim > full:
        raise ModelError(
            f"the model in {folder} has embeddings of {full} dimensions, and {dim} are asked for; ask for fewer"
        )


def needs_code(folder: Path) -> str:
    """What is to be said of a model whose Python code may not run."""
    return (
        f"the model in {folder} needs Python code that it brings along, which may do whatever you may; read that code and "
        "give --trust-remote-code"
    )


def _build(folder: Path, config: ModelConfig) -> tuple[BiEncoder, PreTrainedTokenizerBase]:
    """The model with the folder's weights; a missing weight raises (`load_state_dict` is strict)."""
    name = f"the model in {folder}"
    places = [folder] if config.sides == "shared" else [folder / side for side in _SIDES]
    homes = [places[0], places[0 if config.sides == "heads" else -1]][: len(places)]  # the folders of the towers' encoders
    for home in homes:
        check_files(home)
    trust = {"trust_remote_code": config.trust_remote_code}
    encoder_of = {home: AutoModel.from_config(AutoConfig.from_pretrained(home, **trust), **trust) for home in homes}  # type: ignore[no-untyped-call]
    encoders = [encoder_of[home] for home in homes]
    tokenizer = load_tokenizer(str(places[0]), name, **trust)
    if config.pooling != "pooler":
        for encoder in encoders:
            encoder.pooler = None
    assert config.pooling != "auto"
    model = BiEncoder(config, encoders, config.pooling)
    classifier = _load_file(folder / _CLASSIFIER) if has_classifier(folder) else model.classifier.state_dict()
    weights = {f"classifier.{key}": w for key, w in classifier.items()}
    for number, (place, home) in enumerate(zip(places, homes, strict=True)):
        weights |= {f"towers.{number}.{key}": w for key, w in _load_tower(place, home, config).items()}
    model.load_state_dict(weights)
    check_finite(name, model)
    check_fit(tokenizer, encoders[0], name)
    check_length(encoders[0], config.max_length, name)
    return model, tokenizer


def has_classifier(folder: Path) -> bool:
    """Whether the model in this folder has a pair classifier that was trained."""
    return (folder / _CLASSIFIER).is_file()


def trained_on_clean_texts(folder: Path) -> bool:
    """Whether the texts that the model in this folder was trained on were cleaned; True if the folder does not say.

    Raises:
        ModelError: biencoder.json cannot be read.
    """
    return _described(folder, _CLEAN, True) is not False


def measured_reranking(folder: Path) -> Reranking | None:
    """What was measured of the re-ranking of the model in this folder; None if the folder does not say.

    Raises:
        ModelError: biencoder.json cannot be read.
    """
    found = _described(folder, _RERANKING, None)
    if not isinstance(found, dict):
        return None
    return Reranking(*(found.get(name) is True for name in Reranking._fields))


def _described(folder: Path, key: str, default: object) -> object:
    """A value of biencoder.json."""
    description = folder / "biencoder.json"
    try:
        value: object = json.loads(description.read_text(encoding="utf-8")).get(key, default)
    except FileNotFoundError:
        return default
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{description} cannot be read: {' '.join(str(error).split())[:300]}") from None
    return value


def model_sha256(folder: Path) -> str:
    """SHA-256 of every file of a model's folder except its card.

    Raises:
        ModelError: there is no model.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md"):
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise ModelError(f"the model in {folder} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _save_encoder(folder: Path, side: str, tower: Tower, weights: Mapping[str, torch.Tensor], max_length: int) -> Modules:
    """Write the encoder and the pooling of one tower, and BERT's pooler if it is used."""
    place, hidden = folder / side, tower.projection.in_features
    encoder_weights = {n.removeprefix("encoder."): w for n, w in weights.items() if n.startswith("encoder.")}
    tower.encoder.config.save_pretrained(place)
    if has_own_code(tower.encoder):
        _save_code(tower.encoder, place)
    save_file(encoder_weights, place / "model.safetensors", metadata={"format": "pt"})
    _write_json(place / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    (place / "1_Pooling").mkdir()
    _write_json(
        place / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden,
            "pooling_mode_cls_token": tower.pooling in ("cls", "pooler"),
            "pooling_mode_mean_tokens": tower.pooling == "mean",
            **({"pooling_mode_lasttoken": True} if tower.pooling == "last" else {}),
        },
    )
    modules = [(side, "models.Transformer"), (_join(side, "1_Pooling"), "models.Pooling")]
    if tower.pooling == "pooler":  # BERT's pooler is the first token through a dense layer and tanh
        dense = {n.rpartition(".")[2]: w for n, w in weights.items() if n.startswith("encoder.pooler.")}
        modules.append(_save_dense(folder, _join(side, "2_Dense"), dense, "torch.nn.modules.activation.Tanh"))
    return modules


def _save_code(encoder: PreTrainedModel, place: Path) -> None:
    """Write the Python code that the encoder brought along, and let config.json name it there."""
    for file in Path(inspect.getfile(type(encoder))).parent.glob("*.py"):
        shutil.copy(file, place)
    settings = json.loads((place / "config.json").read_text(encoding="utf-8"))
    classes = {kind: name.rpartition("--")[2] for kind, name in settings["auto_map"].items() if isinstance(name, str)}
    _write_json(place / "config.json", settings | {"auto_map": classes})


def _save_projection(folder: Path, side: str, tower: Tower, weights: Mapping[str, torch.Tensor], *, start: int) -> Modules:
    """Write the projection of one tower, and the scaling to length 1 if it is configured."""
    dense, identity = {"weight": weights["projection.weight"]}, "torch.nn.modules.linear.Identity"
    modules = [_save_dense(folder, _join(side, f"{start}_Dense"), dense, identity)]
    if tower.normalize:
        name = _join(side, f"{start + 1}_Normalize")
        (folder / name).mkdir()
        _write_json(folder / name / "config.json", {})
        modules.append((name, "models.Normalize"))
    return modules


def _save_dense(folder: Path, name: str, weights: Mapping[str, torch.Tensor], activation: str) -> tuple[str, str]:
    (folder / name).mkdir()
    save_file({f"linear.{kind}": weight for kind, weight in weights.items()}, folder / name / "model.safetensors")
    height, width = weights["weight"].shape
    shape = {"in_features": width, "out_features": height, "bias": "bias" in weights}
    _write_json(folder / name / "config.json", {**shape, "activation_function": activation})
    return name, "models.Dense"


def _load_tower(place: Path, home: Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    """The weights of one tower, whose projection is in `place` and whose encoder is in `home`."""
    weights = {f"encoder.{name}": w for name, w in _load_file(home / "model.safetensors").items()}
    dense = "3_Dense" if config.pooling == "pooler" else "2_Dense"
    weights["projection.weight"] = _load_file(place / dense / "model.safetensors")["linear.weight"]
    return weights


def _load_file(file: Path) -> dict[str, torch.Tensor]:
    check_file(file)
    check_safetensors(file)
    return load_file(file)


def _write_router(folder: Path, routes: list[Modules]) -> None:
    """Write the router by which sentence-transformers encodes queries and documents with their own side."""
    structure = {route: [path for path, _ in modules] for route, modules in zip(("query", "document"), routes, strict=True)}
    _write_json(
        folder / "router_config.json",
        {
            "types": {path: f"{_ST}.{kind}" for modules in routes for path, kind in modules},
            "structure": structure,
            "parameters": {"default_route": "query", "allow_empty_key": True, "route_mappings": {}},
        },
    )
    _write_json(folder / "modules.json", [_module(0, "", "models.Router")])


def _join(side: str, name: str) -> str:
    return f"{side}/{name}" if side else name


def _module(number: int, path: str, kind: str) -> dict[str, Any]:
    return {"idx": number, "name": str(number), "path": path, "type": f"{_ST}.{kind}"}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
