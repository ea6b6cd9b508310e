"""One interface to models of this program and of sentence-transformers: they embed texts in one process, and may re-rank.

N: texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from biencoder.config import user_path
from biencoder.data.ids import Ids
from biencoder.model.bi_encoder import PairClassifier
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.foreign_model import SentenceFolder
from biencoder.retrieval.trained_model import TrainedModel


class Embedder(Protocol):
    """A model that embeds texts in one process."""

    @property
    def classifier(self) -> PairClassifier | None:
        """The trained pair classifier for re-ranking; None if the model has none."""

    @property
    def max_length(self) -> int | None:
        """Tokens at which texts are cut; None if unknown."""

    def embed_texts(self, texts: Sequence[str], text_ids_N: Ids) -> EmbeddedTexts:
        """Vectors of the texts with these (ascending) ids."""


@dataclass(frozen=True, slots=True)
class NamedModel:
    name: str
    folder: str
    embedder: Embedder


def load_models(folders: Sequence[str], *, trust_remote_code: bool = False) -> list[NamedModel]:
    """The models in these folders, of this program or of sentence-transformers.

    They are named by their folders, or by their paths if two folders have the same name.

    Args:
        trust_remote_code: whether Python code that the folders hold may run.

    Raises:
        ModelError: a folder holds neither kind of model.
    """
    names = [Path(folder).absolute().name for folder in folders]
    names = names if len(set(names)) == len(names) else list(folders)
    return [
        NamedModel(name, folder, _load(user_path(folder), trust_remote_code=trust_remote_code))
        for name, folder in zip(names, folders, strict=True)
    ]


def _load(folder: Path, *, trust_remote_code: bool) -> Embedder:
    is_foreign = (folder / "modules.json").is_file() and not (folder / "biencoder.json").is_file()
    kind = SentenceFolder if is_foreign else TrainedModel
    return kind.load(folder, trust_remote_code=trust_remote_code)
