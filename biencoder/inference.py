"""A trained model in one process: embed texts, and search a corpus for the best counter-arguments of a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from biencoder.config import EvalConfig, ModelConfig
from biencoder.data.cleaning import normalise
from biencoder.embedding import EmbeddedTexts, plan_batches
from biencoder.evaluation.protocol import nearest_candidates, pair_probability
from biencoder.export import load_model
from biencoder.model import BiEncoder, PairClassifier, Sides, build_model
from biencoder.pretrained import load_pretrained
from biencoder.tokens import TokenizedTexts, tokenize


class Hit(NamedTuple):
    text: str
    distance: float
    """Euclidean distance of the similarity embeddings; the hits are ordered by it."""
    probability: float
    """Of the pair classifier that the text is a counter."""


@dataclass(frozen=True, slots=True)
class Inference:
    model: BiEncoder
    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    device: torch.device

    @classmethod
    def load(cls, folder: str) -> "Inference":
        """Load an exported model onto the GPU if there is one.

        Raises:
            ModelError: the folder holds no model of this program.
        """
        model, tokenizer, config = load_model(Path(folder).expanduser())
        device = _device()
        return cls(model.to(device), tokenizer, config, device)

    @classmethod
    def pretrained(cls, config: ModelConfig) -> "Inference":
        """An encoder as it is before training: its pooled vectors mean something, its embeddings and classifier nothing.

        Raises:
            ModelError: there is no such encoder.
        """
        found = load_pretrained(config)
        device = _device()
        return cls(build_model(config, found, seed=0).eval().to(device), found.tokenizer, config, device)

    @property
    def classifier(self) -> PairClassifier:
        return self.model.classifier.cpu()

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
        parts: list[list[torch.Tensor]] = []
        order = plan_batches(tokens.lengths(text_ids_N), EvalConfig().batch_tokens_on(self.device.type))
        with torch.inference_mode():
            for batch in order:
                sides: Sides = self.model(tokens.batch(text_ids_N[batch]).to(self.device))
                parts.append([part.cpu() for part in sides.parts()])
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        whole = [torch.cat(some)[back] for some in zip(*parts, strict=True)]
        return EmbeddedTexts.whole(text_ids_N, *Sides.of(whole))

    def search(self, query: str, corpus: EmbeddedTexts, texts: Sequence[str], *, top_k: int) -> list[Hit]:
        """The nearest texts of the corpus, without the query's own text."""
        query = normalise(query)
        queries = self.embed(self.tokenize([query]), np.array([0])).query
        own = np.array([texts.index(query)]) if query in texts else None
        N = len(corpus.text_ids_N)
        k = min(top_k, N - (own is not None))
        ranked_1k = nearest_candidates(queries, corpus, corpus.text_ids_N, np.arange(N), own, k=k).candidate_Qk
        probability_k = pair_probability(queries, corpus.candidate, ranked_1k, self.classifier)[0]
        distance_k = torch.linalg.vector_norm(corpus.candidate.embedding[ranked_1k[0]] - queries.embedding, dim=1)
        return [
            Hit(texts[row], float(distance), float(probability))
            for row, distance, probability in zip(ranked_1k[0], distance_k, probability_k, strict=True)
        ]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
