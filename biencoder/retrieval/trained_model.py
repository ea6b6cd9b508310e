"""A trained model in one process: embed texts, and search a corpus for the best counter-arguments of a text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from biencoder.config import EvalConfig, ModelConfig, user_path
from biencoder.data.cleaning import tidier
from biencoder.data.tokens import TokenizedTexts, Tokens, tokenize
from biencoder.errors import DataError
from biencoder.model.bi_encoder import BiEncoder, PairClassifier, Side, Sides, Vectors, build_model
from biencoder.model.folder import has_classifier, load_model
from biencoder.model.pretrained import load_pretrained
from biencoder.retrieval.embedding import EmbeddedTexts, plan_batches
from biencoder.retrieval.nearest import Rows, nearest_allowed
from biencoder.retrieval.reranking import pair_probability
from biencoder.retrieval.saved_index import SearchIndex


class Hit(NamedTuple):
    text: str
    distance: float
    """Euclidean distance of the similarity embeddings."""
    probability: float
    """Of the pair classifier that the text is a counter; NaN without one."""


@dataclass(frozen=True, slots=True)
class Inference:
    model: BiEncoder
    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    device: torch.device
    has_classifier: bool = False
    """Whether the model's pair classifier was trained."""
    notices: tuple[str, ...] = ()
    """What of a pretrained model is not used, a sentence each."""

    @classmethod
    def load(cls, folder: str) -> "Inference":
        """Load an exported model onto the GPU if there is one.

        Raises:
            ModelError: the folder holds no model of this program.
        """
        device, path = _device(), user_path(folder)
        model, tokenizer, config = load_model(path)
        return cls(model.to(device), tokenizer, config, device, has_classifier(path))

    @classmethod
    def pretrained(cls, config: ModelConfig) -> "Inference":
        """An encoder as it is before training: its pooled vectors mean something, its embeddings and classifier nothing.

        Raises:
            ModelError: there is no such encoder.
        """
        found = load_pretrained(config)
        device = _device()
        model = build_model(config, found, seed=0).eval().to(device)
        return cls(model, found.tokenizer, config, device, notices=found.notices)

    @property
    def classifier(self) -> PairClassifier | None:
        return self.model.classifier.cpu() if self.has_classifier else None

    @property
    def max_length(self) -> int:
        """Tokens at which texts are cut."""
        return self.config.max_length

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        return tokenize(texts, self.tokenizer, max_length=self.config.max_length)

    def embed_texts(self, texts: Sequence[str], text_ids_N: npt.NDArray[np.int64]) -> EmbeddedTexts:
        """Vectors of the texts with these (ascending) ids."""
        tokens = self.tokenize([texts[text_id] for text_id in text_ids_N])
        embedded = self.embed(tokens, np.arange(len(text_ids_N)))
        return EmbeddedTexts.whole(text_ids_N, embedded.query, embedded.candidate)

    def embed(self, tokens: TokenizedTexts, text_ids_N: npt.NDArray[np.int64]) -> EmbeddedTexts:
        """Vectors of the texts with these (ascending) ids."""

        def encode(batch: Tokens) -> list[torch.Tensor]:
            sides: Sides = self.model(batch.to(self.device))
            return sides.parts()

        parts = encode_batches(encode, tokens, text_ids_N, EvalConfig().batch_tokens_on(self.device.type))
        return EmbeddedTexts.whole(text_ids_N, *Sides.of(parts))

    def embed_side(self, texts: Sequence[str], side: Side) -> Vectors:
        """Vectors of these texts, as `load_texts` gives them, on one side; the pooled ones are empty where no classifier
        looks at them."""
        tower = self.model.query_tower if side == "query" else self.model.candidate_tower
        looked_at = self.has_classifier and self.config.classifier_features != "embedding"

        def encode(batch: Tokens) -> list[torch.Tensor]:
            embedding_UD, pooled_UH = tower.project(tower.pool(batch.to(self.device)))
            return [embedding_UD.float(), pooled_UH.float() if looked_at else pooled_UH[:, :0].float()]

        batch_tokens = EvalConfig().batch_tokens_on(self.device.type)
        return Vectors(*encode_batches(encode, self.tokenize(texts), np.arange(len(texts)), batch_tokens))

    def search(self, query: str, index: SearchIndex, *, top_k: int, rerank: bool = False) -> list[Hit]:
        """The nearest texts, without the query's own text, nearest first.

        Args:
            query: as a person wrote it; it is cleaned as the texts of the index were.
            rerank: put them in the order of the pair classifier's probability, the highest first.

        Raises:
            DataError: the query holds no text.
        """
        given, query = query, tidier(index.clean)(query)
        if not query:
            raise DataError(
                f"there is no text in the query {given[:80]!r}" + (" once it is cleaned" if index.clean else "")
            )
        vectors = self.embed_side([query], "query")

        def is_another(_: Rows, rows_Qk: Rows) -> npt.NDArray[np.bool_]:
            return np.array([[row >= 0 and index.text(row) != query for row in rows_k] for rows_k in rows_Qk.tolist()])

        rows_1k, distance_1k = nearest_allowed(
            index.index, index.embedding_ND, vectors.embedding.numpy(), is_another, count=top_k
        )
        found_k = rows_1k[0] >= 0
        rows_k, distance_k, probability_k = rows_1k[0][found_k], distance_1k[0][found_k], np.full(found_k.sum(), np.nan)
        if self.classifier is not None and len(rows_k):
            candidates = Vectors(torch.from_numpy(index.embedding_ND[rows_k]), torch.from_numpy(index.pooled_NH[rows_k]))
            probability_k = pair_probability(vectors, candidates, np.arange(len(rows_k))[None], self.classifier)[0]
        hits = [
            Hit(index.text(row), float(distance), float(probability))
            for row, distance, probability in zip(rows_k.tolist(), distance_k, probability_k, strict=True)
        ]
        return sorted(hits, key=lambda hit: -hit.probability) if rerank else hits


def encode_batches(
    encode: Callable[[Tokens], Sequence[torch.Tensor]],
    tokens: TokenizedTexts,
    text_ids_N: npt.NDArray[np.int64],
    batch_tokens: int,
) -> list[torch.Tensor]:
    """What `encode` makes of the texts with these ids, in batches of about one length; in the order of the ids."""
    order, parts = plan_batches(tokens.lengths(text_ids_N), batch_tokens, max_length=tokens.max_length), []
    with torch.inference_mode():
        for batch in order:
            parts.append([part.cpu() for part in encode(tokens.batch(text_ids_N[batch]))])
    back = torch.from_numpy(np.argsort(np.concatenate(order)))
    return [torch.cat(some)[back] for some in zip(*parts, strict=True)]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
