"""A trained model in one process: embed texts, and find the best counter-arguments of a text among others.

    model = TrainedModel.load("runs/mine/model/best")
    for hit in model.rank(["Cars should leave the city."], texts, top_k=3)[0]:
        print(hit.distance, hit.text)

N: texts, Q: queries, k: nearest texts of a query, U: texts of a batch, D: similarity embedding, H: hidden size.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from biencoder import environment
from biencoder.config.paths import user_path
from biencoder.config.schema import EvalConfig, ModelConfig
from biencoder.data.cleaning import tidier
from biencoder.data.tokens import Batch, Packing, TokenizedTexts, tokenize, tokenize_sides
from biencoder.errors import DataError, ModelError
from biencoder.model.attention import use_blocks, use_gpu_kernels
from biencoder.model.bi_encoder import BiEncoder, PairClassifier, Side, Sides, Vectors, build_model
from biencoder.model.folder import Reranking, has_classifier, load_model, measured_reranking, trained_on_clean_texts
from biencoder.model.packed import hindrance, pack
from biencoder.model.precision import AskedPrecision, inference_dtype, precision_name
from biencoder.model.pretrained import load_pretrained
from biencoder.model.weight_order import reorder_weights
from biencoder.retrieval.embedding import EmbeddedTexts, plan_batches
from biencoder.retrieval.hubness import NEIGHBOURS, Hubness, hubness_of
from biencoder.retrieval.nearest import Rows, nearest_allowed
from biencoder.retrieval.reranking import pair_probability
from biencoder.retrieval.saved_index import SearchIndex

Advance = Callable[[int], None]
"""Told how many texts are done since it was last called."""


class Hit(NamedTuple):
    """A text that a search returns."""

    text: str
    """The text as it was compared: cleaned if the model was trained on cleaned texts."""
    distance: float
    """Euclidean distance of the similarity embeddings."""
    probability: float
    """The pair classifier's probability that the text is a counter; NaN without a classifier."""
    row: int = -1
    """The text's position among the candidates."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A saved model, loaded into this process."""

    model: BiEncoder
    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    device: torch.device
    has_classifier: bool = False
    """Whether the model's pair classifier was trained."""
    notices: tuple[str, ...] = ()
    """Sentences about the parts of a pretrained model that are not used."""
    clean: bool = True
    """Whether the training texts were cleaned; `encode` and `rank` treat their texts alike."""
    reranking: Reranking | None = None
    """What validation said of re-ranking by the pair classifier; None if the model's folder does not say."""
    packing: Packing | None = None
    """How texts are packed, on GPUs in bf16; None where they are padded."""

    @classmethod
    def load(
        cls, folder: str | Path, *, precision: AskedPrecision = "auto", trust_remote_code: bool = False, dim: int = 0
    ) -> "TrainedModel":
        """Load a saved model, onto the GPU if there is one.

        Args:
            precision: what the encoder computes in: fp32, bf16, or auto: bf16 on GPUs from Ampere on and on CPUs with AMX
                or AVX512-BF16, else fp32. Vectors are returned in fp32.
            trust_remote_code: whether Python code that the folder holds may run.
            dim: take the first `dim` dimensions of the embeddings, for a model that was trained with loss.matryoshka_dims,
                and no pair classifier; 0: all dimensions.

        Raises:
            ConfigError: there is no such precision.
            ModelError: the folder holds no model of this program, or its embeddings are shorter.
        """
        device, path = _device(), user_path(folder)
        dtype = inference_dtype(precision, device)
        model, tokenizer, config = load_model(path, trust_remote_code=trust_remote_code, dim=dim)
        whole = model.classifier.fits(model.query_tower.projection.out_features)
        return cls(
            _placed(model, device, dtype),
            tokenizer,
            config,
            device,
            has_classifier(path) and whole,
            clean=trained_on_clean_texts(path),
            reranking=measured_reranking(path) if whole else None,
            packing=_packing(model, device, dtype),
        )

    @classmethod
    def pretrained(cls, config: ModelConfig, *, precision: AskedPrecision = "auto") -> "TrainedModel":
        """An encoder before training. Use its pooled vectors, or with `embedding_dim` 0 its embeddings: another projection
        is untrained, and so is its classifier.

        Args:
            precision: see `load`.

        Raises:
            ModelError: there is no such encoder.
        """
        device = _device()
        dtype = inference_dtype(precision, device)
        pretrained = load_pretrained(config)
        model = _placed(build_model(pretrained.settled(config), pretrained, seed=0).eval(), device, dtype)
        return cls(
            model,
            pretrained.tokenizer,
            pretrained.settled(config),
            device,
            notices=pretrained.notices,
            packing=_packing(model, device, dtype),
        )

    @property
    def precision(self) -> str:
        """What the encoder computes in: fp32 or bf16."""
        return precision_name(self.model.query_tower.projection.weight.dtype)

    def weights_sha256(self) -> str:
        """SHA-256 of the weights and of the tokenizer."""
        digest = hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def classifier(self) -> PairClassifier | None:
        return self.model.classifier.cpu() if self.has_classifier else None

    @property
    def max_length(self) -> int:
        """Tokens at which texts are cut."""
        return self.config.max_length

    def encode(self, texts: Sequence[str], *, side: Side = "query") -> npt.NDArray[np.float32]:
        """Similarity embeddings (N, D): the smaller their Euclidean distance, the better two texts answer each other.

        Args:
            texts: raw texts; they are cleaned if the training texts were.
            side: whether the texts are queries or candidates, for a model that treats these differently.

        Raises:
            DataError: a text is empty before or after cleaning.
        """
        return self.embed_side(self._treated(texts), side).embedding.numpy()

    def rank(
        self, queries: Sequence[str], candidates: Sequence[str], *, top_k: int = 10, rerank: bool = False
    ) -> list[list[Hit]]:
        """For each query its nearest candidates, nearest first, without those that have its own text.

        To search the same candidates often, embed them once: see `biencoder.retrieval.saved_index`.

        Args:
            queries: raw texts; they are cleaned if the training texts were.
            candidates: raw texts; the same holds for them.
            top_k: candidates for each query; fewer are returned if there are fewer.
            rerank: order these by the pair classifier's probability, the highest first.

        Raises:
            DataError: a text is empty before or after cleaning.
            ModelError: `rerank` needs a pair classifier, and the model has none.
        """
        if rerank and not self.has_classifier:
            raise ModelError("the model has no pair classifier to re-rank with: its loss had no weight in training")
        if not queries or not candidates:
            return [[] for _ in queries]
        texts = self._treated(candidates)
        index = SearchIndex.in_memory(texts, self.embed_side(texts, "candidate"), clean=self.clean)
        return self._search(self._treated(queries), index, top_k=top_k, rerank=rerank)

    def _treated(self, texts: Sequence[str]) -> list[str]:
        """The texts with the treatment that the training texts had."""
        treated = list(map(tidier(self.clean), texts))
        if not all(treated):
            number = next(number for number, text in enumerate(treated) if not text)
            raise DataError(f"there is no text in number {number} of {len(texts)}: {texts[number][:80]!r}")
        return treated

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Token ids of the texts, as queries and as candidates."""
        return tokenize_sides(texts, self.tokenizer, max_length=self.config.max_length, prompts=self.config.prompts)

    def embed_texts(
        self, texts: Sequence[str], text_ids_N: npt.NDArray[np.int64], *, advance: Advance = lambda count: None
    ) -> EmbeddedTexts:
        """Vectors of the texts with these (ascending) ids.

        Args:
            advance: called after each batch with its number of texts.
        """
        tokens = self.tokenize([texts[text_id] for text_id in text_ids_N])
        embedded = self.embed(tokens, np.arange(len(text_ids_N)), advance=advance)
        return EmbeddedTexts.whole(text_ids_N, embedded.query, embedded.candidate)

    def embed(
        self, tokens: TokenizedTexts, text_ids_N: npt.NDArray[np.int64], *, advance: Advance = lambda count: None
    ) -> EmbeddedTexts:
        """Vectors of the texts with these (ascending) ids.

        Args:
            advance: see `embed_texts`.
        """

        def encode(batch: Batch) -> list[torch.Tensor]:
            sides: Sides = self.model(batch.to(self.device))
            return sides.parts()

        parts = encode_batches(encode, tokens, text_ids_N, self._batch_tokens, packing=self.packing, advance=advance)
        return EmbeddedTexts.whole(text_ids_N, *Sides.of(parts))

    def embed_side(self, texts: Sequence[str], side: Side, *, advance: Advance = lambda count: None) -> Vectors:
        """Vectors of these texts, as `load_texts` returns them, for one side. The pooled vectors are empty if no classifier
        uses them.

        Args:
            advance: see `embed_texts`.
        """
        tower = self.model.query_tower if side == "query" else self.model.candidate_tower
        uses_pooled = self.has_classifier and self.model.classifier.uses_pooled

        def encode(batch: Batch) -> list[torch.Tensor]:
            embedding_UD, pooled_UH = tower.project(tower.pool(batch.to(self.device)))
            return [embedding_UD.float(), pooled_UH.float() if uses_pooled else pooled_UH[:, :0].float()]

        prompt = self.config.prompts[side == "candidate"]
        tokens = tokenize(texts, self.tokenizer, max_length=self.config.max_length, prompt=prompt)
        every, limit, packing = np.arange(len(texts)), self._batch_tokens, self.packing
        return Vectors(*encode_batches(encode, tokens, every, limit, packing=packing, advance=advance))

    @property
    def _batch_tokens(self) -> int:
        return EvalConfig().batch_tokens_on(self.device.type)

    def search(self, query: str, index: SearchIndex, *, top_k: int, rerank: bool = False) -> list[Hit]:
        """The nearest texts, without the query's own text, nearest first.

        Args:
            query: a raw text; it is cleaned if the texts of the index were.
            rerank: order these by the pair classifier's probability, the highest first.

        Raises:
            DataError: the query holds no text.
        """
        treated = tidier(index.clean)(query)
        if not treated:
            raise DataError(
                f"there is no text in the query {query[:80]!r}" + (" once it is cleaned" if index.clean else "")
            )
        return self._search([treated], index, top_k=top_k, rerank=rerank)[0]

    def _search(self, queries: Sequence[str], index: SearchIndex, *, top_k: int, rerank: bool) -> list[list[Hit]]:
        """Search for queries that have the treatment of the index's texts."""
        vectors = self.embed_side(queries, "query")

        def is_another(queries_Q: Rows, rows_Qk: Rows) -> npt.NDArray[np.bool_]:
            return np.array(
                [
                    [row >= 0 and index.text(row) != queries[query] for row in rows_k]
                    for query, rows_k in zip(queries_Q.tolist(), rows_Qk.tolist(), strict=True)
                ]
            )

        rows_Qk, distance_Qk = nearest_allowed(
            index.index, index.embedding_ND, vectors.embedding.numpy(), is_another, count=max(top_k, NEIGHBOURS)
        )
        results = []
        for query, (rows_k, distance_k) in enumerate(zip(rows_Qk, distance_Qk, strict=True)):
            found_k = rows_k >= 0
            vector = vectors.rows(torch.tensor([query]))
            hits = self._hits(vector, index, rows_k[found_k], distance_k[found_k])[:top_k]
            results.append(sorted(hits, key=lambda hit: -hit.probability) if rerank else hits)
        return results

    def _hits(self, query: Vectors, index: SearchIndex, rows_k: Rows, distance_k: npt.NDArray[np.float64]) -> list[Hit]:
        probability_k = np.full(len(rows_k), np.nan)
        if self.classifier is not None and len(rows_k):
            candidates = Vectors(torch.from_numpy(index.embedding_ND[rows_k]), torch.from_numpy(index.pooled_NH[rows_k]))
            places_1k, hubness_1k2 = np.arange(len(rows_k))[None], None
            if self.classifier.uses_hubness:
                hubness = Hubness(hubness_of(distance_k[None, :NEIGHBOURS]), index.hubness(rows_k))
                hubness_1k2 = hubness.of_pairs(np.array([0]), places_1k)
            probability_k = pair_probability(query, candidates, places_1k, self.classifier, hubness_1k2)[0]
        return [
            Hit(index.text(row), float(distance), float(probability), row)
            for row, distance, probability in zip(rows_k.tolist(), distance_k, probability_k, strict=True)
        ]


def encode_batches(
    encode: Callable[[Batch], Sequence[torch.Tensor]],
    tokens: TokenizedTexts,
    text_ids_N: npt.NDArray[np.int64],
    batch_tokens: int,
    *,
    packing: Packing | None = None,
    advance: Advance = lambda count: None,
) -> list[torch.Tensor]:
    """The output of `encode` for the texts with these ids, in their order. Batches hold texts of similar length.

    Args:
        packing: how texts are packed; None: they are padded.
        advance: called after each batch with its number of texts.
    """
    order, parts = plan_batches(tokens.lengths(text_ids_N), batch_tokens, max_length=tokens.max_length), []
    with torch.inference_mode():
        for batch in order:
            parts.append([part.cpu() for part in encode(tokens.laid_out(text_ids_N[batch], packing))])
            advance(len(batch))
    back = torch.from_numpy(np.argsort(np.concatenate(order)))
    return [torch.cat(pieces)[back] for pieces in zip(*parts, strict=True)]


def _placed(model: BiEncoder, device: torch.device, dtype: torch.dtype) -> BiEncoder:
    """The model on its device; the pair classifier, which takes vectors of any text, stays in fp32."""
    model.towers.to(dtype)
    model.to(device)
    reorder_weights(model.towers)
    return model


def _packing(model: BiEncoder, device: torch.device, dtype: torch.dtype) -> Packing | None:
    """How its texts are packed; None where they are padded. Its encoders use this device's fast attention afterwards."""
    if device.type == "cuda":
        use_gpu_kernels(model.encoders)
    else:
        use_blocks(model.encoders, dtype)
    return None if hindrance(model.encoders, device, dtype) else pack(model.encoders)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and not environment.cpu_is_chosen() else "cpu")
