"""The systems that a command line names: saved models, sentence-transformers models, pretrained encoders, baselines.

N: texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from biencoder.config.schema import ModelConfig
from biencoder.data.ids import Ids
from biencoder.errors import ModelError
from biencoder.evaluation.baselines import BM25, TF_IDF, bm25, tf_idf
from biencoder.evaluation.comparison import System
from biencoder.evaluation.rankers import EmbeddingRanker
from biencoder.retrieval.embedders import NamedModel, pretrained_model
from biencoder.retrieval.foreign_model import SentenceFolder
from biencoder.retrieval.trained_model import TrainedModel

_OF_BASE = ("name", "max_length", "pooling", "query_prompt", "document_prompt", "trust_remote_code")
"""What a zero-shot row takes from the model that was trained."""
LoadPretrained = Callable[[ModelConfig], tuple[NamedModel, tuple[str, ...]]]
"""Loads an encoder before training, and says its notices."""


def model_system(model: NamedModel, texts: Sequence[str], text_ids_N: Ids) -> System:
    kind = "sentence-transformers model" if isinstance(model.embedder, SentenceFolder) else "model"

    def build() -> EmbeddingRanker:
        return EmbeddingRanker(model.embed_texts(texts, text_ids_N), model.embedder.classifier)

    return System(model.name, f"{kind} {model.folder}, {_cut(model.embedder.max_length)}", build)


def zero_shot_systems(
    name: str | None,
    models: Sequence[NamedModel],
    texts: Sequence[str],
    text_ids_N: Ids,
    *,
    load: LoadPretrained = pretrained_model,
) -> list[System]:
    """The named pretrained encoder, or those that the models were trained from, measured as training measures them.

    Args:
        name: an encoder, or None. Its texts are cut as those of the first model of this program, if there is one.
        load: makes an encoder of its settings.

    Raises:
        ModelError: an encoder cannot be loaded.
    """
    bases = [model.embedder.config for model in models if isinstance(model.embedder, TrainedModel)]
    if name is not None:
        configs = [ModelConfig(name=name, max_length=(bases or [ModelConfig()])[0].max_length, embedding_dim=0)]
    else:
        configs = [replace(ModelConfig(embedding_dim=0), **{key: getattr(base, key) for key in _OF_BASE}) for base in bases]
    return [_zero_shot(config, load, texts, text_ids_N) for config in dict.fromkeys(configs)]


def _zero_shot(config: ModelConfig, load: LoadPretrained, texts: Sequence[str], text_ids_N: Ids) -> System:
    try:
        encoder, notices = load(config)
    except ModelError as error:
        raise ModelError(f"no zero-shot row: {error}; --zero-shot NAME takes another encoder") from None

    def build() -> EmbeddingRanker:  # a projection that the model does not bring along is the identity
        return EmbeddingRanker(encoder.embed_texts(texts, text_ids_N).cosine(pooled=False), None)

    about = f"cosine of the vectors of {config.name} as it was before training, {_cut(config.max_length)}"
    about += "".join(f"; {notice}" for notice in notices)
    return System(f"zero-shot {Path(config.name).name}, {config.max_length} tokens", about, build)


def lexical_systems(texts: Sequence[str]) -> list[System]:
    return [System("BM25", BM25, lambda: bm25(texts)), System("TF-IDF", TF_IDF, lambda: tf_idf(texts))]


def _cut(max_length: int | None) -> str:
    return "texts cut by its own rule" if max_length is None else f"texts cut at {max_length} tokens"
