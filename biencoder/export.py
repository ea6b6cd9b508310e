"""A trained model as a folder that sentence-transformers loads, with the pair classifier and a model card beside it.

    folder/                      modules.json, config_sentence_transformers.json, README.md (the model card)
      (encoder and tokenizer)    in the folder itself, or in query/ and candidate/ where the sides have separate weights
      1_Pooling 2_Dense …        pooling, BERT's pooler where it is used, the projection, and length 1 where configured
      biencoder.json             how this program builds the model again
      classifier.safetensors     the pair classifier

Weights are safetensors only: loading a model never unpickles anything.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from biencoder.config import ModelConfig
from biencoder.errors import ModelError
from biencoder.model import BiEncoder, Tower

_ST = "sentence_transformers"
_SIDES = ("query", "candidate")


def save_model(
    folder: Path,
    model: BiEncoder,
    weights: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    config: ModelConfig,
    *,
    card: str,
) -> None:
    """Write the folder beside its place and move it there, so that `folder` is always a whole model.

    Args:
        weights: the model's state dict in fp32 (the model itself may be sharded or in half precision).

    Raises:
        ModelError: the folder cannot be written; what stood there before is untouched.
    """
    try:
        _save_model(folder, model, weights, tokenizer, config, card)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ModelError(f"the model cannot be written to {folder}: {reason}; mend it, the same command goes on") from None


def _save_model(
    folder: Path,
    model: BiEncoder,
    weights: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    config: ModelConfig,
    card: str,
) -> None:
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    towers = [fresh] if model.shared else [fresh / side for side in _SIDES]
    for number, place in enumerate(towers):
        place.mkdir(exist_ok=True)
        prefix = f"towers.{number}."
        tower: Tower = model.towers[number]  # type: ignore[assignment]  # a ModuleList of towers
        own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        modules = _save_tower(place, tower, own, config.max_length)
        tokenizer.save_pretrained(place)
        _write_json(place / "modules.json", modules)
    if not model.shared:
        _write_router(fresh)
    _write_json(
        fresh / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "euclidean",
        },
    )
    classifier = {n.removeprefix("classifier."): w for n, w in weights.items() if n.startswith("classifier.")}
    save_file(classifier, fresh / "classifier.safetensors")
    first: Tower = model.towers[0]  # type: ignore[assignment]
    _write_json(fresh / "biencoder.json", asdict(config) | {"pooling": first.pooling})
    (fresh / "README.md").write_text(card, encoding="utf-8")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_model(folder: Path) -> tuple[BiEncoder, PreTrainedTokenizerBase, ModelConfig]:
    """The model that `save_model` wrote, in fp32 and ready for inference.

    Raises:
        ModelError: the folder is missing, was not written by this program, or is damaged.
    """
    description = folder / "biencoder.json"
    if not description.is_file():
        raise ModelError(f"{folder} is no model of this program: it has no biencoder.json; give runs/<run>/model/best, say")
    try:
        config = TypeAdapter(ModelConfig).validate_python(json.loads(description.read_text(encoding="utf-8")))
        shared = not config.separate_weights
        places = [folder] if shared else [folder / side for side in _SIDES]
        encoders = [
            AutoModel.from_config(AutoConfig.from_pretrained(place))  # type: ignore[no-untyped-call]
            for place in places
        ]
        tokenizer = AutoTokenizer.from_pretrained(places[0])
        if config.pooling != "pooler":
            for encoder in encoders:
                encoder.pooler = None
        assert config.pooling != "auto"
        model = BiEncoder(config, encoders, config.pooling)
        weights = {f"classifier.{name}": w for name, w in load_file(folder / "classifier.safetensors").items()}
        for number, place in enumerate(places):
            weights |= {f"towers.{number}.{name}": w for name, w in _load_tower(place, config).items()}
        model.load_state_dict(weights)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, ValidationError) as error:
        raise ModelError(f"the model in {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    return model.eval(), tokenizer, config


def _save_tower(place: Path, tower: Tower, weights: Mapping[str, torch.Tensor], max_length: int) -> list[dict[str, Any]]:
    """Encoder, pooling and projection of one tower as sentence-transformers modules; returns modules.json's content."""
    encoder_weights = {n.removeprefix("encoder."): w for n, w in weights.items() if n.startswith("encoder.")}
    tower.encoder.config.save_pretrained(place)
    save_file(encoder_weights, place / "model.safetensors", metadata={"format": "pt"})
    _write_json(place / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    modules = [_module(0, "", "models.Transformer"), _module(1, "1_Pooling", "models.Pooling")]
    hidden, dimension = tower.projection.in_features, tower.projection.out_features
    (place / "1_Pooling").mkdir()
    _write_json(
        place / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden,
            "pooling_mode_cls_token": tower.pooling != "mean",
            "pooling_mode_mean_tokens": tower.pooling == "mean",
        },
    )
    denses: list[tuple[str, str | None, int, int, str]] = [
        ("projection.weight", None, hidden, dimension, "torch.nn.modules.linear.Identity")
    ]
    if tower.pooling == "pooler":  # BERT's pooler is the first token through a dense layer and tanh
        dense = "encoder.pooler.dense."
        denses.insert(0, (f"{dense}weight", f"{dense}bias", hidden, hidden, "torch.nn.modules.activation.Tanh"))
    for weight, bias, width, height, activation in denses:
        name = f"{len(modules)}_Dense"
        (place / name).mkdir()
        tensors = {"linear.weight": weights[weight]} | ({"linear.bias": weights[bias]} if bias else {})
        save_file(tensors, place / name / "model.safetensors")
        _write_json(
            place / name / "config.json",
            {"in_features": width, "out_features": height, "bias": bias is not None, "activation_function": activation},
        )
        modules.append(_module(len(modules), name, "models.Dense"))
    if tower.normalize:
        name = f"{len(modules)}_Normalize"
        (place / name).mkdir()
        _write_json(place / name / "config.json", {})
        modules.append(_module(len(modules), name, "models.Normalize"))
    return modules


def _load_tower(place: Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    weights = {f"encoder.{name}": w for name, w in load_file(place / "model.safetensors").items()}
    dense = "3_Dense" if config.pooling == "pooler" else "2_Dense"
    weights["projection.weight"] = load_file(place / dense / "model.safetensors")["linear.weight"]
    return weights


def _write_router(folder: Path) -> None:
    """Let sentence-transformers encode queries and documents with their own side (encode_query, encode_document)."""
    structure: dict[str, list[str]] = {}
    types: dict[str, str] = {}
    for side, route in zip(_SIDES, ("query", "document"), strict=True):
        modules = json.loads((folder / side / "modules.json").read_text(encoding="utf-8"))
        names = [str(Path(side) / module["path"]) if module["path"] else side for module in modules]
        structure[route] = names
        types |= {name: module["type"] for name, module in zip(names, modules, strict=True)}
    _write_json(
        folder / "router_config.json",
        {
            "types": types,
            "structure": structure,
            "parameters": {"default_route": "query", "allow_empty_key": True, "route_mappings": {}},
        },
    )
    _write_json(folder / "modules.json", [_module(0, "", "models.Router")])


def _module(number: int, path: str, kind: str) -> dict[str, Any]:
    return {"idx": number, "name": str(number), "path": path, "type": f"{_ST}.{kind}"}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
