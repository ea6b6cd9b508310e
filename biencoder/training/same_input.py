"""Checks that all ranks have the same input: a rank with other files would train without anybody noticing."""

import hashlib
import json
from collections.abc import Mapping

import torch
from transformers import PreTrainedTokenizerBase

from biencoder.config.schema import Config
from biencoder.data import Dataset
from biencoder.distributed.world import World
from biencoder.errors import ConfigError
from biencoder.model.pretrained import Pretrained
from biencoder.training.engine.settings import Settings
from biencoder.training.preflight.judgements import judge_equal

WEIGHTS = "the pretrained weights"
"""The fact that is their hash."""


def check_same(world: World, facts: Mapping[str, str]) -> None:
    """Compare the ranks' facts. Every rank takes part.

    Raises:
        ConfigError: on every rank, if a fact differs between two; names it, its values, and the ranks that hold each.
    """
    verdict, finding = judge_equal(world.all_gather_object(dict(facts)), world.hosts, summary="")
    if verdict == "fail":
        raise ConfigError(
            f"the ranks do not work on the same: {finding}; start all with one command, in one folder, on the same files"
        )


def configuration_facts(config: Config) -> dict[str, str]:
    """Every key. None may differ: some of the work uses rank 0's values, the rest each rank's own."""
    return {name: str(value) for name, value in config.flat().items()}


def input_facts(dataset: Dataset, pretrained: Pretrained, settings: Settings) -> dict[str, str]:
    """What was read from files, each as a number or a short hash."""
    return {
        "the content of deepspeed_config": settings_digest(settings),
        "the corpus": dataset.fingerprint[:12],
        "the number of texts": str(len(dataset.texts)),
        "the tokenizer": tokenizer_digest(pretrained.tokenizer),
        WEIGHTS: weights_digest(pretrained.weights),
        "the prompts": str(pretrained.prompts),
    }


def settings_digest(settings: Settings) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:12]


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Of names, shapes and values; 0.3 s for BERT base."""
    total = hashlib.sha256()
    for name, tensor in weights.items():
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:12]
