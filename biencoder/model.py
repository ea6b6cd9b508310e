"""The bi-encoder: a text becomes a similarity embedding and a pooled vector; two texts become the logits of "is a counter".

B: triplets, U: distinct texts in a batch, L: tokens, H: hidden size of the encoder, D: similarity embedding.

The model is the Bipolar-encoder of Shi, Cao, Nguyen 2023 (arXiv 2304.08807): e = W pooled, and a pair is classified from
[e_u, e_v, |e_u - e_v|, p_u, p_v, |p_u - p_v|]. All work goes through `forward`, because the DeepSpeed engine gathers
sharded parameters (ZeRO-3) only there.
"""

import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from biencoder.config import ModelConfig
from biencoder.pretrained import Pooling, Pretrained
from biencoder.rng import stream_seed
from biencoder.tokens import Tokens

Side = Literal["query", "candidate"]


class Vectors(NamedTuple):
    """What one text becomes: the similarity embedding (…, D) and the pooled vector (…, H)."""

    embedding: torch.Tensor
    pooled: torch.Tensor

    def rows(self, index: torch.Tensor) -> "Vectors":
        return Vectors(self.embedding[index], self.pooled[index])


@dataclass(frozen=True, slots=True)
class TripletBatch:
    """B triplets as rows of encoded texts, so that a text that occurs twice is encoded once.

    The texts of a side come in groups of similar length, each padded for itself; rows count through them in order.
    `candidates` is None when both sides share their weights: then all rows index `queries`.
    """

    queries: list[Tokens]
    candidates: list[Tokens] | None
    point_row_B: torch.Tensor
    counter_row_B: torch.Tensor
    negative_row_B: torch.Tensor


class Scores(NamedTuple):
    """What the loss needs of B triplets: three embeddings (B, D) and two pairs of logits (B, 2)."""

    point_BD: torch.Tensor
    counter_BD: torch.Tensor
    negative_BD: torch.Tensor
    counter_logits_B2: torch.Tensor
    negative_logits_B2: torch.Tensor


class Tower(nn.Module):
    """One side of the bi-encoder: encoder, pooling, projection."""

    def __init__(self, encoder: PreTrainedModel, *, pooling: Pooling, embedding_dim: int, normalize: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.normalize = normalize
        hidden = encoder.config.hidden_size
        self.projection = nn.Linear(hidden, embedding_dim or hidden, bias=False)
        # Start as near to the pretrained geometry as the dimension allows: the identity, or an orthonormal projection.
        if self.projection.out_features == hidden:
            nn.init.eye_(self.projection.weight)
        else:
            nn.init.orthogonal_(self.projection.weight)

    def forward(self, tokens: Tokens) -> Vectors:
        output = self.encoder(input_ids=tokens.input_ids_UL, attention_mask=tokens.attention_mask_UL)
        pooled_UH = self._pool(output, tokens.attention_mask_UL)
        embedding_UD = self.projection(pooled_UH)
        if self.normalize:
            embedding_UD = F.normalize(embedding_UD.float(), dim=-1).to(pooled_UH.dtype)
        return Vectors(embedding_UD, pooled_UH)

    def _pool(self, output: object, mask_UL: torch.Tensor) -> torch.Tensor:
        if self.pooling == "pooler":
            pooled: torch.Tensor = output.pooler_output  # type: ignore[attr-defined]  # transformers' ModelOutput
            return pooled
        states_ULH: torch.Tensor = output.last_hidden_state  # type: ignore[attr-defined]
        if self.pooling == "cls":
            return states_ULH[:, 0]
        mask_UL1 = mask_UL.unsqueeze(-1).to(states_ULH.dtype)
        return (states_ULH * mask_UL1).sum(1) / mask_UL1.sum(1)


class PairClassifier(nn.Module):
    """Two logits for (u, v): 1 means that v is a counter of u."""

    def __init__(self, config: ModelConfig, *, embedding_dim: int, hidden: int) -> None:
        super().__init__()
        self._made_from = {"config": config, "embedding_dim": embedding_dim, "hidden": hidden}
        self.features = config.classifier_features
        width = 3 * embedding_dim * (self.features != "pooled") + 3 * hidden * (self.features != "embedding")
        before = [nn.LayerNorm(width), nn.ReLU()] if config.classifier_norm else []
        self.layers = nn.Sequential(*before, nn.Linear(width, 2))

    def forward(self, u: Vectors, v: Vectors) -> torch.Tensor:
        parts = []
        if self.features != "pooled":
            parts += [u.embedding, v.embedding, (u.embedding - v.embedding).abs()]
        if self.features != "embedding":
            parts += [u.pooled, v.pooled, (u.pooled - v.pooled).abs()]
        logits: torch.Tensor = self.layers(torch.cat(parts, dim=-1))
        return logits

    def twin(self) -> "PairClassifier":
        """A classifier of the same shape on the CPU in fp32, with weights of its own and none of this one's hooks."""
        return type(self)(**self._made_from)  # type: ignore[arg-type]  # the arguments of __init__


class BiEncoder(nn.Module):
    """One tower for both sides, or one for queries and one for candidates, and the pair classifier."""

    def __init__(self, config: ModelConfig, encoders: list[PreTrainedModel], pooling: Pooling) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            Tower(encoder, pooling=pooling, embedding_dim=config.embedding_dim, normalize=config.normalize)
            for encoder in encoders
        )
        hidden = encoders[0].config.hidden_size
        self.classifier = PairClassifier(config, embedding_dim=config.embedding_dim or hidden, hidden=hidden)
        if config.freeze_encoder:
            for tower in self.towers:
                tower.encoder.requires_grad_(False)

    @property
    def shared(self) -> bool:
        """Whether queries and candidates are encoded with the same weights."""
        return len(self.towers) == 1

    def forward(self, inputs: TripletBatch | Tokens, side: Side = "query") -> Scores | Vectors:
        """Score a batch of triplets, or encode a batch of texts as one side."""
        if isinstance(inputs, TripletBatch):
            return self._score(inputs)
        return self._encode(inputs, side)

    def _encode(self, tokens: Tokens, side: Side) -> Vectors:
        tower = self.towers[0 if side == "query" else -1]
        vectors: Vectors = tower(tokens)
        return vectors

    def _encode_groups(self, groups: list[Tokens], side: Side) -> Vectors:
        encoded = [self._encode(tokens, side) for tokens in groups]
        return Vectors(*(torch.cat(parts) for parts in zip(*encoded, strict=True)))

    def _score(self, batch: TripletBatch) -> Scores:
        queries = self._encode_groups(batch.queries, "query")
        candidates = queries if batch.candidates is None else self._encode_groups(batch.candidates, "candidate")
        point, counter = queries.rows(batch.point_row_B), candidates.rows(batch.counter_row_B)
        negative = candidates.rows(batch.negative_row_B)
        return Scores(
            point.embedding,
            counter.embedding,
            negative.embedding,
            self.classifier(point, counter),
            self.classifier(point, negative),
        )


def build_model(config: ModelConfig, pretrained: Pretrained, *, seed: int) -> BiEncoder:
    """The model before its first step: pretrained towers, a projection and a classifier drawn from `seed`."""
    torch.manual_seed(stream_seed(seed, "initial weights"))
    encoders = [pretrained.encoder]
    if config.separate_weights:
        twin = type(pretrained.encoder)(pretrained.encoder.config)
        if pretrained.pooling != "pooler" and hasattr(twin, "pooler"):
            twin.pooler = None  # type: ignore[assignment]  # BERT takes it for "no pooler"
        twin.load_state_dict(pretrained.encoder.state_dict())
        encoders.append(twin)
    if config.gradient_checkpointing:
        for encoder in encoders:
            _checkpoint_layers(encoder)
    return BiEncoder(config, encoders, pretrained.pooling)


def _checkpoint_layers(encoder: PreTrainedModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer releases of transformers 5 have another name for it
        encoder.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
