"""The bi-encoder: a similarity embedding and a pooled vector of each text, and the logits of "is a counter" of two texts.

B: triplets, K: negatives of each, U: distinct texts in a batch, L: tokens, H: hidden size of the encoder, D: similarity
embedding.

The model is the Bipolar-encoder of Shi, Cao, Nguyen 2023 (arXiv 2304.08807): e = W pooled, and a pair is classified from
[e_u, e_v, |e_u - e_v|, p_u, p_v, |p_u - p_v|]. Its classifier is linear; `model.classifier` may ask for one that begins at
the order of the embeddings. All computation goes through `forward`: only there does the DeepSpeed engine gather sharded
parameters (ZeRO-3).
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from biencoder.config.schema import ModelConfig
from biencoder.data.tokens import Batch, PackedTokens
from biencoder.model.packed import pool_packed
from biencoder.model.pretrained import Pooling, Pretrained
from biencoder.rng import stream_seed

Side = Literal["query", "candidate"]
_RESIDUAL_UNITS = 64
"""Width of the residual classifier's hidden layer."""
_UNIT_SCALE = 20.0
"""What the residual classifier multiplies nearness with at its start, for embeddings of length 1: that of a temperature of
0.05."""


class Vectors(NamedTuple):
    """The vectors of texts: similarity embeddings (…, D) and pooled vectors (…, H)."""

    embedding: torch.Tensor
    pooled: torch.Tensor

    def rows(self, index: torch.Tensor) -> "Vectors":
        return Vectors(self.embedding[index], self.pooled[index])


class Sides(NamedTuple):
    """The vectors of texts as queries and as candidates; one object where the sides share all weights."""

    query: Vectors
    candidate: Vectors

    def parts(self) -> list[torch.Tensor]:
        """The distinct tensors in fp32: 2 if the sides share all weights, 3 if they share the encoder, else 4."""
        return [tensor.float() for tensor in dict.fromkeys(tensor for side in self for tensor in side)]

    @classmethod
    def of(cls, parts: Sequence[torch.Tensor]) -> "Sides":
        """The inverse of `parts`."""
        query = candidate = Vectors(*parts[:2])
        if len(parts) > 2:
            candidate = Vectors(parts[2], parts[-1] if len(parts) == 4 else query.pooled)
        return cls(query, candidate)


@dataclass(frozen=True, slots=True)
class TripletBatch:
    """B triplets as rows of encoded texts, so that a text that occurs twice is encoded once.

    Texts come in groups of similar length, each with a padding of its own, or packed in one group without any; rows count
    through the groups in order. If a text is encoded once for both sides, `candidates` is None and all rows index `texts`.
    Otherwise `texts` are the queries.
    """

    texts: Sequence[Batch]
    candidates: Sequence[Batch] | None
    point_row_B: torch.Tensor
    counter_row_B: torch.Tensor
    negative_row_BK: torch.Tensor
    rival_row_B: torch.Tensor | None
    """The points as candidates; None if no loss uses them."""

    def to(self, device: torch.device) -> "TripletBatch":
        """On this device. A copy of what is `pinned` does not wait for it."""
        return self._made_by(lambda part: part.to(device), lambda rows: rows.to(device, non_blocking=True))

    def pinned(self) -> "TripletBatch":
        """In memory that a GPU copies from by itself."""
        return self._made_by(lambda part: part.pinned(), torch.Tensor.pin_memory)

    def _made_by(
        self, of_tokens: Callable[[Batch], Batch], of_rows: Callable[[torch.Tensor], torch.Tensor]
    ) -> "TripletBatch":
        return TripletBatch(
            [of_tokens(group) for group in self.texts],
            None if self.candidates is None else [of_tokens(group) for group in self.candidates],
            of_rows(self.point_row_B),
            of_rows(self.counter_row_B),
            of_rows(self.negative_row_BK),
            None if self.rival_row_B is None else of_rows(self.rival_row_B),
        )


class Scores(NamedTuple):
    """The model's output for B triplets: embeddings, and the pair classifier's logits."""

    point_BD: torch.Tensor
    counter_BD: torch.Tensor
    negative_BKD: torch.Tensor
    counter_logits_B2: torch.Tensor
    negative_logits_BK2: torch.Tensor
    rival_BD: torch.Tensor | None
    """The points as candidates; None if no loss uses them."""


class Tower(nn.Module):
    """One side of the bi-encoder: encoder, pooling, projection."""

    def __init__(self, encoder: PreTrainedModel, *, pooling: Pooling, embedding_dim: int, normalize: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.normalize = normalize
        hidden = encoder.config.hidden_size
        self.projection = nn.Linear(hidden, embedding_dim or hidden, bias=False)
        # Start close to the pretrained geometry: with the identity, or with an orthonormal projection.
        if self.projection.out_features == hidden:
            nn.init.eye_(self.projection.weight)
        else:
            nn.init.orthogonal_(self.projection.weight)

    def pool(self, tokens: Batch) -> torch.Tensor:
        """The pooled vectors (U, H) of a batch."""
        if isinstance(tokens, PackedTokens):
            return pool_packed(self.encoder, tokens, self.pooling)
        output = self.encoder(input_ids=tokens.input_ids_UL, attention_mask=tokens.attention_mask_UL)
        return self._pool(output, tokens.attention_mask_UL)

    def project(self, pooled_UH: torch.Tensor) -> Vectors:
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
        if self.pooling == "last":  # texts are padded on the right
            return states_ULH[torch.arange(len(mask_UL), device=mask_UL.device), mask_UL.sum(1) - 1]
        mask_UL1 = mask_UL.unsqueeze(-1).to(states_ULH.dtype)
        # Sums in fp32: bf16 counts tokens exactly up to 256 only.
        sum_UH, count_U1 = (part.sum(1, dtype=torch.float32) for part in (states_ULH * mask_UL1, mask_UL1))
        return (sum_UH / count_U1).to(states_ULH.dtype)


class PairClassifier(nn.Module):
    """Two logits for (u, v): 1 means that v is a counter of u.

    The residual form adds to the nearness -|e_u - e_v|^2 / 2, on a learned scale, a network whose last layer starts at 0,
    and whose features include the products of the vectors. Its first logit is 0, so that the second orders candidates as
    their distance does until something is learned. The hubness of v and u (hubness.py) counts from `calibrate` on.
    """

    def __init__(self, config: ModelConfig, *, embedding_dim: int, hidden: int) -> None:
        super().__init__()
        self._made_from = {"config": config, "embedding_dim": embedding_dim, "hidden": hidden}
        self.features, self.gradient = config.classifier_features, config.classifier_gradient
        self.residual = config.classifier == "residual"
        kinds = embedding_dim * (self.features != "pooled") + hidden * (self.features != "embedding")
        if self.residual:
            width, last = 4 * kinds, nn.Linear(_RESIDUAL_UNITS, 1)
            self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, _RESIDUAL_UNITS), nn.GELU(), last)
            self.nearness = nn.Linear(3, 1)  # of the pair, and of v and of u to the candidates around them
            with torch.no_grad():
                last.weight.zero_()
                self.nearness.weight.copy_(torch.tensor([[_UNIT_SCALE if config.normalize else 1.0, 0.0, 0.0]]))
                for layer in (last, self.nearness):
                    layer.bias.zero_()
        else:
            width = 3 * kinds
            before = [nn.LayerNorm(width), nn.ReLU()] if config.classifier_norm else []
            self.layers = nn.Sequential(*before, nn.Linear(width, 2))

    def forward(self, u: Vectors, v: Vectors, hubness: torch.Tensor | None = None) -> torch.Tensor:
        """The logits (…, 2). Args: hubness: of v and of u (…, 2); None counts as 0, as in training."""
        if self.gradient < 1:
            u, v = (Vectors(*(_with_gradient(part, self.gradient) for part in side)) for side in (u, v))
        parts = []
        if self.features != "pooled":
            parts += self._features(u.embedding, v.embedding)
        if self.features != "embedding":
            parts += self._features(u.pooled, v.pooled)
        logits: torch.Tensor = self.layers(torch.cat(parts, dim=-1))
        if self.residual:
            near = (u.embedding.float() - v.embedding.float()).square().sum(-1) / -2
            near = near.unsqueeze(-1)
            around = torch.zeros_like(near).expand(*near.shape[:-1], 2) if hubness is None else hubness
            logits = logits + self.nearness(torch.cat([near, around], dim=-1).to(logits.dtype))
            logits = torch.cat([torch.zeros_like(logits), logits], dim=-1)
        return logits

    def _features(self, u: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
        return [u, v, (u - v).abs(), *([u * v] if self.residual else [])]

    @property
    def uses_pooled(self) -> bool:
        """Whether pooled vectors are among the features; where they are not, they may be empty."""
        return self.features != "embedding"

    @property
    def uses_hubness(self) -> bool:
        """Whether the log-odds depend on the hubness of candidate and query."""
        return self.residual and bool(self.nearness.weight[0, 1:].any())

    @torch.no_grad()
    def calibrate(self, scale: float, shift: float, hubness: float, query_hubness: float) -> None:
        """Let the log-odds of the residual form become what `Calibration` says, v being the candidate."""
        for layer in (self.layers[-1], self.nearness):
            layer.weight.mul_(scale)  # type: ignore[operator]  # a linear layer
            layer.bias.mul_(scale)  # type: ignore[operator]
        self.nearness.bias.add_(shift)
        self.nearness.weight[0, 1:] += torch.tensor([hubness, query_hubness])

    def fits(self, embedding_dim: int) -> bool:
        """Whether it was made for embeddings of this size."""
        return self._made_from["embedding_dim"] == embedding_dim

    def twin(self) -> "PairClassifier":
        """A classifier of the same shape on the CPU in fp32, with new weights and without this one's hooks."""
        return type(self)(**self._made_from)  # type: ignore[arg-type]  # the arguments of __init__


def _with_gradient(values: torch.Tensor, share: float) -> torch.Tensor:
    """The same values, of whose gradient this share goes on."""
    return values.detach() if share == 0 else values.detach() + share * (values - values.detach())


class BiEncoder(nn.Module):
    """The towers and the pair classifier.

    There is one tower for both sides, or one for queries and one for candidates, which may share their encoder.
    """

    def __init__(self, config: ModelConfig, encoders: list[PreTrainedModel], pooling: Pooling) -> None:
        """Args: encoders: one for each tower; the same one twice if only the projections differ."""
        super().__init__()
        self.towers = nn.ModuleList(
            Tower(encoder, pooling=pooling, embedding_dim=config.embedding_dim, normalize=config.normalize)
            for encoder in encoders
        )
        hidden = encoders[0].config.hidden_size
        self.classifier = PairClassifier(config, embedding_dim=config.embedding_dim or hidden, hidden=hidden)
        if not self.shared:  # both sides begin alike
            self.candidate_tower.projection.load_state_dict(self.query_tower.projection.state_dict())
        if config.freeze_encoder:
            for encoder in encoders:
                encoder.requires_grad_(False)

    @property
    def query_tower(self) -> Tower:
        tower: Tower = self.towers[0]  # type: ignore[assignment]  # a ModuleList of towers
        return tower

    @property
    def candidate_tower(self) -> Tower:
        tower: Tower = self.towers[-1]  # type: ignore[assignment]
        return tower

    @property
    def shared(self) -> bool:
        """Whether queries and candidates share all weights."""
        return len(self.towers) == 1

    @property
    def encoders(self) -> list[PreTrainedModel]:
        """The distinct encoders: one, or one for each tower."""
        return list(dict.fromkeys(tower.encoder for tower in self.towers))  # type: ignore[misc]  # towers hold encoders

    @property
    def one_encoder(self) -> bool:
        """Whether a text is encoded once for both sides, unless it has a prompt for each."""
        return self.query_tower.encoder is self.candidate_tower.encoder

    def shorten(self, size: int) -> None:
        """Let embeddings be their first `size` dimensions. The pair classifier no longer fits them."""
        for tower in dict.fromkeys((self.query_tower, self.candidate_tower)):
            weight_DH = tower.projection.weight.detach()[:size].clone()
            tower.projection = nn.Linear(weight_DH.shape[1], size, bias=False)
            tower.projection.load_state_dict({"weight": weight_DH})

    def forward(self, inputs: TripletBatch | Batch) -> Scores | Sides:
        """Score a batch of triplets, or encode a batch of texts as both sides."""
        if isinstance(inputs, TripletBatch):
            return self._score(inputs)
        pooled_UH = self.query_tower.pool(inputs)
        once = self.one_encoder and inputs.candidate is None
        return self._sides(pooled_UH, pooled_UH if once else self.candidate_tower.pool(inputs.candidate or inputs))

    def _sides(self, query_UH: torch.Tensor, candidate_UH: torch.Tensor) -> Sides:
        query = self.query_tower.project(query_UH)
        once = self.shared and candidate_UH is query_UH
        return Sides(query, query if once else self.candidate_tower.project(candidate_UH))

    def _score(self, batch: TripletBatch) -> Scores:
        query_UH = torch.cat([self.query_tower.pool(tokens) for tokens in batch.texts])
        candidate_UH = query_UH
        if batch.candidates is not None:
            candidate_UH = torch.cat([self.candidate_tower.pool(tokens) for tokens in batch.candidates])
        queries, candidates = self._sides(query_UH, candidate_UH)
        point, counter = queries.rows(batch.point_row_B), candidates.rows(batch.counter_row_B)
        negatives = candidates.rows(batch.negative_row_BK)
        points = queries.rows(batch.point_row_B[:, None].expand_as(batch.negative_row_BK))
        return Scores(
            point.embedding,
            counter.embedding,
            negatives.embedding,
            self.classifier(point, counter),
            self.classifier(points, negatives),
            None if batch.rival_row_B is None else candidates.embedding[batch.rival_row_B],
        )


def build_model(config: ModelConfig, pretrained: Pretrained, *, seed: int) -> BiEncoder:
    """The model before its first step: pretrained encoders, and projections and a classifier initialised from `seed`.

    Args:
        config: settled by `pretrained`. A projection that it brings along is where both sides start.
    """
    torch.manual_seed(stream_seed(seed, "initial weights"))
    encoders = [pretrained.encoder]
    if config.sides == "heads":
        encoders.append(pretrained.encoder)
    if config.sides == "encoders":
        twin = type(pretrained.encoder)(pretrained.encoder.config)
        if pretrained.pooling != "pooler" and hasattr(twin, "pooler"):
            twin.pooler = None  # type: ignore[assignment]  # BERT then uses no pooler
        twin.load_state_dict(pretrained.encoder.state_dict())
        encoders.append(twin)
    if config.gradient_checkpointing:
        for encoder in dict.fromkeys(encoders):
            _checkpoint_layers(encoder)
    model = BiEncoder(config, encoders, pretrained.pooling)
    if pretrained.projection_DH is not None:
        for tower in (model.query_tower, model.candidate_tower):
            tower.projection.load_state_dict({"weight": pretrained.projection_DH})
    return model


def _checkpoint_layers(encoder: PreTrainedModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer releases of transformers 5 rename an argument
        encoder.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
