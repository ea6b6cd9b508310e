"""Trained models in one process, whoever trained them: texts become vectors, and there may be a classifier to re-rank."""

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
    """A model in one process."""

    @property
    def classifier(self) -> PairClassifier | None:
        """None where the model has none to re-rank with."""

    @property
    def max_length(self) -> int | None:
        """Tokens at which texts are cut; None where that is not known."""

    def embed_texts(self, texts: Sequence[str], text_ids_N: Ids) -> EmbeddedTexts:
        """Vectors of the texts with these (ascending) ids."""


@dataclass(frozen=True, slots=True)
class NamedModel:
    name: str
    folder: str
    embedder: Embedder


def load_models(folders: Sequence[str]) -> list[NamedModel]:
    """The models in these folders, of this program or of sentence-transformers, named by folder, or by path to differ.

    Raises:
        ModelError: a folder holds neither.
    """
    names = [Path(folder).absolute().name for folder in folders]
    names = names if len(set(names)) == len(names) else list(folders)
    return [NamedModel(name, folder, _load(user_path(folder))) for name, folder in zip(names, folders, strict=True)]


def _load(folder: Path) -> Embedder:
    is_foreign = (folder / "modules.json").is_file() and not (folder / "biencoder.json").is_file()
    return SentenceFolder.load(folder) if is_foreign else TrainedModel.load(str(folder))
