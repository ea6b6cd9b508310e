"""One interface to models of this program and of sentence-transformers: they embed texts in one process, and may re-rank.

N: texts.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from biencoder.config.paths import user_path
from biencoder.config.schema import ModelConfig
from biencoder.data.ids import Ids
from biencoder.model.bi_encoder import PairClassifier
from biencoder.model.folder import model_sha256
from biencoder.model.precision import AskedPrecision
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.foreign_model import SentenceFolder
from biencoder.retrieval.trained_model import Advance, TrainedModel
from biencoder.retrieval.vector_cache import VectorCache


class Embedder(Protocol):
    """A model that embeds texts in one process."""

    @property
    def classifier(self) -> PairClassifier | None:
        """The trained pair classifier for re-ranking; None if the model has none."""

    @property
    def max_length(self) -> int | None:
        """Tokens at which texts are cut; None if unknown."""

    @property
    def precision(self) -> str:
        """What the encoder computes in: fp32 or bf16."""

    def embed_texts(self, texts: Sequence[str], text_ids_N: Ids, *, advance: Advance = lambda count: None) -> EmbeddedTexts:
        """Vectors of the texts with these (ascending) ids.

        Args:
            advance: told how many texts are done, as often as the model allows.
        """


Work = Callable[[str, int], AbstractContextManager[Advance]]
"""Shows the progress of a piece of work, given its name and how many texts it is about."""


def unseen(_name: str, _total: int) -> AbstractContextManager[Advance]:
    """Work whose progress nobody wants to see."""
    return nullcontext(lambda count: None)


@dataclass(frozen=True, slots=True)
class NamedModel:
    name: str
    folder: str
    embedder: Embedder
    cache: VectorCache | None = None
    """Where its vectors are kept; None: nowhere."""
    tell: Callable[[str], None] = lambda sentence: None
    """Gets a sentence each time when it has embedded texts."""
    work: Work = unseen
    """Shows how far it is."""

    def embed_texts(self, texts: Sequence[str], text_ids_N: Ids) -> EmbeddedTexts:
        """Vectors of the texts with these (ascending) ids, as far as possible from the cache."""
        if self.cache is None:
            embedded, count = self._embed(texts, text_ids_N), len(text_ids_N)
        else:
            embedded, count = self.cache.embed(texts, text_ids_N, self._embed)
        found = len(text_ids_N) - count
        kept = f"; {found:,} came from {self.cache.folder}" if self.cache and found else ""
        self.tell(f"Embedded {count:,} texts with {self.name} in {self.embedder.precision}{kept}.")
        return embedded

    def _embed(self, texts: Sequence[str], text_ids_N: Ids) -> EmbeddedTexts:
        with self.work(f"embedding with {self.name}", len(text_ids_N)) as advance:
            return self.embedder.embed_texts(texts, text_ids_N, advance=advance)


def load_models(
    folders: Sequence[str],
    *,
    trust_remote_code: bool = False,
    precision: AskedPrecision = "auto",
    cached: bool = False,
    dim: int = 0,
    tell: Callable[[str], None] = lambda sentence: None,
    work: Work = unseen,
) -> list[NamedModel]:
    """The models in these folders, of this program or of sentence-transformers.

    They are named by their folders, or by their paths if two folders have the same name.

    Args:
        trust_remote_code: whether Python code that the folders hold may run.
        precision: see `TrainedModel.load`.
        cached: whether vectors are read from the cache, and kept there.
        dim: take the first `dim` dimensions of the embeddings; 0: all of them.
        tell, work: see `NamedModel`.

    Raises:
        ModelError: a folder holds neither kind of model, or its embeddings are shorter.
    """
    names = [Path(folder).absolute().name for folder in folders]
    names = names if len(set(names)) == len(names) else list(folders)
    models = []
    for name, folder in zip(names, folders, strict=True):
        path = user_path(folder)
        before = model_sha256(path) if cached and path.is_dir() else None
        embedder = _load(path, precision, trust_remote_code=trust_remote_code, dim=dim)
        # A run may have replaced the folder meanwhile: then nobody knows which weights these are.
        known = before is not None and model_sha256(path) == before
        cache = (
            VectorCache.of("folder", str(before), *_setting(embedder), *([f"dim {dim}"] if dim else [])) if known else None
        )
        models.append(NamedModel(name, folder, embedder, cache, tell, work))
    return models


def pretrained_model(
    config: ModelConfig,
    *,
    precision: AskedPrecision = "auto",
    cached: bool = False,
    tell: Callable[[str], None] = lambda sentence: None,
    work: Work = unseen,
) -> tuple[NamedModel, tuple[str, ...]]:
    """An encoder before training, of which the pooled vectors mean something, and its notices.

    Args:
        precision, cached, tell, work: see `load_models`.

    Raises:
        ModelError: there is no such encoder.
    """
    encoder = TrainedModel.pretrained(config, precision=precision)
    facts = (encoder.weights_sha256(), repr(encoder.config), *_setting(encoder))
    cache = VectorCache.of("pretrained", *facts) if cached else None
    return NamedModel(Path(config.name).name, config.name, encoder, cache, tell, work), encoder.notices


def _setting(embedder: Embedder) -> tuple[str, str]:
    """How an embedder computes: its precision and its kind of device."""
    return embedder.precision, "cuda" if torch.cuda.is_available() else "cpu"


def _load(folder: Path, precision: AskedPrecision, *, trust_remote_code: bool, dim: int) -> Embedder:
    is_foreign = (folder / "modules.json").is_file() and not (folder / "biencoder.json").is_file()
    kind = SentenceFolder if is_foreign else TrainedModel
    return kind.load(folder, precision=precision, trust_remote_code=trust_remote_code, dim=dim)
