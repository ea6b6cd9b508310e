"""A sentence-transformers model of any origin: ranked by the cosine of its embeddings, without a pair classifier.

Only this module needs the package sentence-transformers. The model's own length limit and prompts apply.

N: texts.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from biencoder.errors import BiencoderError, ModelError
from biencoder.model.bi_encoder import Vectors
from biencoder.model.folder import check_dim, needs_code
from biencoder.model.precision import AskedPrecision, inference_dtype, precision_name
from biencoder.model.pretrained import hush
from biencoder.model.weights import check_file, check_files, check_finite, load_encoder
from biencoder.retrieval.embedding import EmbeddedTexts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True, slots=True)
class SentenceFolder:
    """A model that sentence-transformers loads."""

    model: "SentenceTransformer"
    classifier: None = None

    @classmethod
    def load(
        cls, folder: Path, *, precision: AskedPrecision = "auto", trust_remote_code: bool = False, dim: int = 0
    ) -> "SentenceFolder":
        """Load the model, onto the GPU if there is one.

        Args:
            precision: see `TrainedModel.load`.
            trust_remote_code: whether Python code that the folder holds may run.
            dim: take the first `dim` dimensions of the embeddings; 0: all of them.

        Raises:
            ModelError: the package is not installed, it cannot load the folder, or the embeddings are shorter.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise ModelError(
                f"{folder} is a sentence-transformers model; it needs that package: pip install sentence-transformers"
            ) from None
        hush()
        try:
            _check_encoders(folder, trust_remote_code=trust_remote_code)
            model = SentenceTransformer(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
            check_finite(f"the model in {folder}", model)
            if dim:
                check_dim(dim, model.get_embedding_dimension() or dim, folder)
                model.truncate_dim = dim
            model.to(inference_dtype(precision, model.device))
        except BiencoderError:
            raise
        except Exception as error:  # noqa: BLE001 - its modules raise many kinds, which it does not document
            if "custom code" in str(error):  # transformers' message under trust_remote_code=False
                raise ModelError(needs_code(folder)) from None
            raise ModelError(f"the model in {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
        return cls(model)

    @property
    def precision(self) -> str:
        """What the encoder computes in: fp32 or bf16."""
        return precision_name(next(self.model.parameters()).dtype)

    @property
    def max_length(self) -> int | None:
        """Tokens at which texts are cut; None if the model states no limit."""
        return self.model.max_seq_length

    def embed_texts(
        self,
        texts: Sequence[str],
        text_ids_N: npt.NDArray[np.int64],
        *,
        advance: Callable[[int], None] = lambda count: None,
    ) -> EmbeddedTexts:
        """Vectors of the texts with these (ascending) ids, at length 1: their Euclidean order is that of the cosine.

        Args:
            advance: called at the end; the package says nothing before.
        """
        texts_N = [texts[text_id] for text_id in text_ids_N]

        def encode(side: str, texts: list[str]) -> Vectors:
            encode_side = self.model.encode_query if side == "query" else self.model.encode_document
            embedding = encode_side(texts, convert_to_tensor=True, show_progress_bar=False)
            embedding = torch.nn.functional.normalize(embedding.float(), dim=1).cpu()  # bf16 is too coarse for length 1
            return Vectors(embedding, embedding)

        candidate = encode("candidate", texts_N)
        # Sides can differ by prompts, routes or tasks. Any text shows such a difference.
        sides_agree = torch.equal(encode("query", texts_N[:1]).embedding, encode("candidate", texts_N[:1]).embedding)
        query = candidate if sides_agree else encode("query", texts_N)
        advance(len(text_ids_N))
        return EmbeddedTexts.whole(text_ids_N, query, candidate)


def _check_encoders(folder: Path, *, trust_remote_code: bool) -> None:
    """Raise a ModelError if a file of an encoder is damaged, or lacks weights that the encoder needs.

    sentence-transformers ignores transformers' report on the weights, so each encoder is loaded here to read that report.
    """
    for settings in [folder / "config.json", *folder.glob("*/config.json")]:
        if settings.is_file():
            check_file(settings)
            if "model_type" in json.loads(settings.read_text(encoding="utf-8")):  # other modules have a config.json as well
                check_files(settings.parent)
                # No pooling module of sentence-transformers uses BERT's pooler.
                loaded = load_encoder(str(settings.parent), trust_remote_code=trust_remote_code)
                loaded.check(f"the model in {settings.parent}", without=("pooler.",))
