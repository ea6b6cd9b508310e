"""The dense layers of a sentence-transformers model: its pooler and its projection, as far as this program has such.

Between pooling and the scaling to length 1 a model may have dense layers. One that is BERT's pooler (first token, square,
with bias and tanh) is the encoder's pooler. Those without bias and activation are one matrix, where the projection starts.
Any other would be lost without a word, so it is refused.

D: similarity embedding, H: hidden size.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from biencoder.errors import ModelError
from biencoder.model.weights import check_file, check_safetensors


@dataclass(frozen=True, slots=True)
class Dense:
    """A dense layer, with the weights of its file."""

    path: str
    """Within the model's folder."""
    weight: torch.Tensor
    bias: torch.Tensor | None
    activation: str
    """The name of its class in PyTorch."""
    oddity: str
    """What it does besides; empty if nothing."""

    @classmethod
    def of(cls, path: str, settings: dict[str, Any], file: Path | None, name: str) -> "Dense":
        """
        Args:
            settings: its config.json.
            file: its weights; None if there are none.
            name: of the model, for messages.

        Raises:
            ModelError: the weights are missing or damaged.
        """
        if file is None:
            raise ModelError(f"the dense layer {path} of {name} has no weights; copy or download it again")
        check_file(file)
        if file.suffix == ".safetensors":
            check_safetensors(file)
            weights = load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
        if "linear.weight" not in weights or not all(torch.isfinite(part).all() for part in weights.values()):
            raise ModelError(f"{file} holds no weights of a dense layer, or NaN among them; copy or download it again")
        odd = [key for key in ("use_residual",) if settings.get(key)]
        odd += [key for key in ("module_input_name", "module_output_name") if _is_elsewhere(settings.get(key))]
        activation = str(settings.get("activation_function", "Tanh")).rpartition(".")[2]
        parts = (weights["linear.weight"].float(), weights.get("linear.bias"))
        return cls(path, *parts, activation, ", ".join(odd))

    @property
    def is_linear(self) -> bool:
        """Whether it is a matrix and nothing else."""
        return self.activation == "Identity" and self.bias is None and not self.oddity

    def is_pooler_of(self, encoder: PreTrainedModel) -> bool:
        """Whether it has the form of the encoder's own pooler."""
        shapes = {name.rpartition(".")[2]: part.shape for name, part in _pooler(encoder).items()}
        own = {"weight": self.weight.shape, **({} if self.bias is None else {"bias": self.bias.shape})}
        return self.activation == "Tanh" and not self.oddity and bool(shapes) and shapes == own

    @torch.no_grad()
    def become_pooler_of(self, encoder: PreTrainedModel) -> None:
        for name, parameter in _pooler(encoder).items():
            part = self.weight if name.endswith("weight") else self.bias
            assert part is not None
            parameter.copy_(part)

    def __str__(self) -> str:
        bias = "a" if self.bias is not None else "no"
        return f"{bias} bias, the activation {self.activation}" + (f", and {self.oddity}" if self.oddity else "")


def _is_elsewhere(name: object) -> bool:
    return name not in (None, "sentence_embedding")


def _pooler(encoder: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in encoder.named_parameters() if name.startswith("pooler.")}


def projection_of(layers: Sequence[Dense], name: str, *, hidden: int, embedding_dim: int) -> torch.Tensor | None:
    """The matrix (D, H) that the layers are together; None without layers.

    Args:
        name: of the model, for messages.
        embedding_dim: the configured size; 0: any.

    Raises:
        ModelError: a layer is more than a matrix, or the shapes do not fit.
    """
    for layer in layers:
        if not layer.is_linear:
            raise ModelError(
                f"{name} has a dense layer {layer.path} with {layer}, and a projection has neither bias nor activation; "
                "take its line out of the model's modules.json to train without it, or choose another model"
            )
    if not layers:
        return None
    widths = [hidden, *(len(layer.weight) for layer in layers)]
    for layer, width in zip(layers, widths, strict=False):
        if layer.weight.shape[1] != width:
            raise ModelError(
                f"the dense layer {layer.path} of {name} takes vectors of {layer.weight.shape[1]}, and gets {width}; copy "
                "or download the model again"
            )
    if embedding_dim not in (0, widths[-1]):
        raise ModelError(
            f"model.embedding_dim is {embedding_dim}, and the dense layer {layers[-1].path} of {name} makes vectors of "
            f"{widths[-1]}; set it to {widths[-1]} to take that over, or take its line out of the model's modules.json"
        )
    return functools.reduce(lambda before, layer: layer.weight @ before, layers[1:], layers[0].weight)
