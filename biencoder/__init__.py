"""Distributed training of BERT bi-encoders that retrieve the best counter-argument.

The public names, of which each is imported when it is first used:

    config = load_config(file=Path("configs/quickstart.toml"), overrides={"train.epochs": "1"})
    folder = train(config)                           # in this process, or as one of the ranks that torchrun has started
    model = TrainedModel.load(folder / "model" / "best")
    embedding_ND = model.encode(texts)               # float32, one row for each text
    hits = model.rank(["a claim"], texts, top_k=3)   # for each query its nearest texts, nearest first
    negatives = mine(points, counters, model)        # for each pair the texts that are hard to tell from the counter

What the user can do something about is raised as a `BiencoderError`, whose text is one sentence.

Imports go one way, which `lint-imports` holds:

    launcher → training → evaluation, mining → retrieval → model → data → distributed, config, environment, rng, errors

tracking is below training, imports nothing but config, environment and errors, and is imported by training alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from biencoder.config.load import load_config
    from biencoder.config.schema import Config
    from biencoder.errors import BiencoderError, ConfigError, DataError, ModelError
    from biencoder.mining.pairs import mine
    from biencoder.retrieval.trained_model import Hit, TrainedModel
    from biencoder.training.in_process import train

__all__ = [
    "BiencoderError",
    "Config",
    "ConfigError",
    "DataError",
    "Hit",
    "ModelError",
    "TrainedModel",
    "__version__",
    "load_config",
    "mine",
    "train",
]

_HOMES = {
    "BiencoderError": "errors",
    "Config": "config.schema",
    "ConfigError": "errors",
    "DataError": "errors",
    "Hit": "retrieval.trained_model",
    "ModelError": "errors",
    "TrainedModel": "retrieval.trained_model",
    "load_config": "config.load",
    "mine": "mining.pairs",
    "train": "training.in_process",
}


def __getattr__(name: str) -> Any:
    """Import a public name: torch and transformers take seconds, and `import biencoder` must not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'biencoder' has no attribute {name!r}")
    return getattr(import_module(f"biencoder.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
