"""Checks of an encoder's weights: complete, finite and of the right shapes, or a ModelError names the wrong ones.

    check_files(folder)                                  the files that transformers will read are complete
    loaded = load_encoder(source, settings)              transformers fills a missing weight with random numbers ...
    loaded.check(source, without=("pooler.",))           ... so a weight that the encoder needs and the file lacks raises

transformers reads pickled weights (pytorch_model.bin) with `torch.load(weights_only=True)`, which builds tensors and plain
containers and refuses anything else before it runs.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModel, PreTrainedModel

from biencoder.errors import ModelError

_POINTER = b"version https://git-lfs.github.com/spec/"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""In the order in which transformers looks for them; it reads the first one that exists."""
_OTHER_FRAMEWORKS = ("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.onnx")
_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    encoder: PreTrainedModel
    missing: tuple[str, ...]
    """Weights of the encoder that the file lacks; they hold random numbers."""
    unused: tuple[str, ...]
    """Weights of the file that the encoder has no place for."""
    mismatched: tuple[tuple[str, list[int], list[int]], ...]
    """Weights of another shape (name, shape in the file, shape of the encoder); they hold random numbers."""

    def check(self, name: str, *, without: tuple[str, ...] = ()) -> None:
        """Raise a ModelError unless every weight of the encoder came from the file and is finite.

        Args:
            name: of the model, for the message.
            without: prefixes of weights that nobody uses.
        """
        if wrong := [(key, *shapes) for key, *shapes in self.mismatched if not key.startswith(without)]:
            key, in_file, expected = wrong[0]
            more = f" (and {len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
            raise ModelError(
                f"{name} does not fit its config.json: {key} is {in_file} in the file and {expected} by config.json{more}; "
                "use the config.json that was saved with these weights"
            )
        if lacking := [key for key in self.missing if not key.startswith(without)]:
            needed = [key for key in self.encoder.state_dict() if not key.startswith(without)]
            raise ModelError(
                f"{name} lacks {len(lacking)} of the {len(needed)} weights that its encoder needs: "
                f"{_excerpt(lacking)}; {self._other_names(lacking)}"
            )
        check_finite(name, self.encoder)

    def _other_names(self, lacking: list[str]) -> str:
        """The names that the file holds instead, and what to do, for the message."""
        for key in self.unused:
            for name in lacking:
                if key.endswith(f".{name}"):
                    prefix = key.removesuffix(name)
                    return f"its names begin with {prefix!r}, as in {key}; save the weights without it"
        content = f"it holds {_excerpt(self.unused)} instead" if self.unused else "the rest is there"
        return f"{content}; save the whole encoder with save_pretrained"

    @property
    def notices(self) -> list[str]:
        """A sentence about the weights of the file that are not used, if there are any."""
        if not self.unused:
            return []
        return [
            f"{len(self.unused)} of its weights belong to no part of the encoder and are not used: {_excerpt(self.unused)}"
        ]


def load_encoder(source: str, settings: Any = None, *, trust_remote_code: bool = False) -> LoadedEncoder:
    """The encoder of a folder or of the hub in fp32, and transformers' report on its weights; see `check`.

    It has fused attention (SDPA) where transformers offers that for its architecture, else eager attention.

    It is in fp32 whatever the file's own type: DeepSpeed makes the 16-bit copies, and keeps these as master weights.

    Args:
        settings: the model's config, perhaps with another dropout; None: config.json as it is.
        trust_remote_code: whether Python code that the model brings along may run.
    """
    encoder, report = AutoModel.from_pretrained(
        source,
        config=settings,
        dtype="float32",
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # the report names them, as it names the missing ones
    )
    if encoder._supports_sdpa:  # whatever config.json names
        encoder.set_attn_implementation("sdpa")
    return LoadedEncoder(encoder, *_read_report(report))


def _read_report(report: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, Any, Any], ...]]:
    mismatched = sorted((key, list(in_file), list(expected)) for key, in_file, expected in report["mismatched_keys"])
    return tuple(sorted(report["missing_keys"])), tuple(sorted(report["unexpected_keys"])), tuple(mismatched)


def check_finite(name: str, model: nn.Module) -> None:
    """Raise a ModelError if a weight is NaN or infinite."""
    state = model.state_dict().items()
    broken = [key for key, weight in state if weight.is_floating_point() and not torch.isfinite(weight).all()]
    if broken:
        raise ModelError(
            f"{name} has weights that are NaN or infinite: {_excerpt(broken)}; its training diverged, or a file is damaged"
        )


def check_files(folder: Path) -> None:
    """Raise a ModelError if a file of an encoder's folder is missing, empty, truncated, or a pointer of Git LFS."""
    weights = next((folder / name for name in _WEIGHTS if (folder / name).exists()), None)
    if weights is None:
        other = [name for name in _OTHER_FRAMEWORKS if (folder / name).exists()]
        hint = f" ({other[0]} is of another framework)" if other else ""
        raise ModelError(f"{folder} holds no weights{hint}; expected {_WEIGHTS[0]} or {_WEIGHTS[2]}")
    names = ["config.json", "tokenizer_config.json"]
    names += ["tokenizer.json"] if (folder / "tokenizer.json").exists() else _VOCABULARIES
    for file in [folder / name for name in names]:
        if file.exists():
            check_file(file)
    for file in _shards(weights):
        check_file(file)
        if file.suffix == ".safetensors":
            check_safetensors(file)


def check_file(file: Path) -> None:
    """Raise a ModelError if a file is missing, empty, or a pointer of Git LFS."""
    try:
        with file.open("rb") as opened:
            head = opened.read(len(_POINTER))
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from None
    if not head:
        raise ModelError(f"{file} is empty; copy or download it again")
    if head == _POINTER:
        raise ModelError(f"{file} is a pointer of Git LFS and not the file itself; run `git lfs pull` in its repository")


def check_safetensors(file: Path) -> None:
    """Raise a ModelError if a safetensors file is truncated or damaged."""
    try:
        with safe_open(file, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is cut short or damaged ({error}); copy or download it again") from None


def _shards(weights: Path) -> list[Path]:
    """The files that hold the weights: this file, or those that it names if it is an index."""
    check_file(weights)
    if weights.suffix != ".json":
        return [weights]
    try:
        names = sorted(set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{weights} is no index of weights; copy or download it again") from None
    return [weights.parent / name for name in names]


def _excerpt(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
