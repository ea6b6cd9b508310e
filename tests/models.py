"""Trained models, as far as tests need them."""

from pathlib import Path
from typing import Any

import torch

from biencoder.config.schema import ModelConfig
from biencoder.model.bi_encoder import BiEncoder, build_model
from biencoder.model.folder import Reranking, save_model
from biencoder.model.pretrained import load_pretrained


def export(
    tiny_bert: Path, folder: Path, *, clean: bool = True, reranking: Reranking | None = None, **settings: Any
) -> BiEncoder:
    """Write a model with random weights into a folder."""
    config = ModelConfig(name=str(tiny_bert), max_length=16, **{"embedding_dim": 8, **settings})
    pretrained = load_pretrained(config)
    model = build_model(config, pretrained, seed=0).eval()
    with torch.no_grad():  # away from the starting point, and the sides away from each other
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    weights, tokenizer = model.state_dict(), pretrained.tokenizer
    save_model(folder, model, weights, tokenizer, config, card="# card", clean=clean, reranking=reranking)
    return model
