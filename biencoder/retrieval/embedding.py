"""Embedding a corpus on all ranks: each distinct text once, longest first, in batches that do not depend on the ranks.

All ranks know the whole plan of batches, so each knows which rows the others hold. All ranks make the same number of
forwards, because a forward is collective under ZeRO-3; the last round is filled up with repeats. The vectors are then
gathered on rank 0, round by round in messages of bounded size, or stay on the rank that made them (`sharded`).

N: texts held by this rank, M: all texts, Q: queries, X: pairs of texts, B: texts of a batch, D: similarity embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from biencoder.data.codes import contains
from biencoder.data.ids import Ids
from biencoder.data.prefetch import prefetched
from biencoder.data.tokens import Batch, Packing, TokenizedTexts, padded_width
from biencoder.distributed.world import World
from biencoder.model.bi_encoder import Side, Sides, Vectors
from biencoder.model.truncation import Truncation

_MESSAGE_BYTES = 64 * 2**20
"""Upper bound of a message to rank 0, and of a block of queries."""


class Block(NamedTuple):
    """Vectors of some of the texts that were asked for, first those that rank 0 holds, then those of rank 1, ..."""

    positions: Ids
    """In the list of texts that were asked for."""
    vectors: Vectors
    counts: list[int]
    """Number of texts that each rank holds."""


@dataclass(frozen=True, slots=True)
class EmbeddedTexts:
    """The vectors that this process holds, as queries and as candidates (one object if both sides share their weights).

    Either one process holds all texts, or each rank of a world holds a part of them. The same code searches both, with
    `World.alone()` or with that world.
    """

    text_ids_N: Ids
    """The texts held here, ascending."""
    query: Vectors
    candidate: Vectors
    all_text_ids_M: Ids
    """The texts held by all ranks, ascending."""
    holder_M: npt.NDArray[np.int32]
    """The rank that holds each text."""

    @classmethod
    def whole(cls, text_ids_N: Ids, query: Vectors, candidate: Vectors) -> "EmbeddedTexts":
        """The vectors of all texts in one process."""
        return cls(text_ids_N, query, candidate, text_ids_N, np.zeros(len(text_ids_N), dtype=np.int32))

    def cosine(self, *, pooled: bool) -> "EmbeddedTexts":
        """Embeddings at length 1, so that their Euclidean order is that of the cosine.

        Args:
            pooled: take the pooled vectors as embeddings.
        """

        def unit(vectors: Vectors) -> Vectors:
            chosen = vectors.pooled if pooled else vectors.embedding
            return Vectors(torch.nn.functional.normalize(chosen, dim=-1), vectors.pooled)

        return replace(self, query=unit(self.query), candidate=unit(self.candidate))

    def truncated(self, size: int, *, normalize: bool) -> "EmbeddedTexts":
        """Embeddings of the first `size` dimensions.

        Args:
            normalize: scale them to length 1.
        """

        def cut(vectors: Vectors) -> Vectors:
            return vectors._replace(embedding=Truncation(normalize=normalize).cut(vectors.embedding, size).contiguous())

        query = cut(self.query)
        return replace(self, query=query, candidate=query if self.candidate is self.query else cut(self.candidate))

    def blocks(self, text_ids_Q: Ids, world: World, *, side: Side = "query", pooled: bool) -> Iterator[Block]:
        """The texts' vectors of one side, block by block on every holder. Every holder must consume all blocks.

        Args:
            pooled: whether to send the pooled vectors; otherwise they are empty.
        """
        vectors = self.query if side == "query" else self.candidate
        holder_Q = self.holder_M[np.searchsorted(self.all_text_ids_M, text_ids_Q)]
        width = vectors.embedding.shape[1] + pooled * vectors.pooled.shape[1]
        size = max(1, _MESSAGE_BYTES // (4 * width * world.size))
        positions_of = [np.flatnonzero(holder_Q == rank) for rank in range(world.size)]
        for start in range(0, max(len(positions) for positions in positions_of), size):
            blocks = [positions[start : start + size] for positions in positions_of]
            counts = [len(block) for block in blocks]
            mine = vectors.rows(torch.from_numpy(np.searchsorted(self.text_ids_N, text_ids_Q[blocks[world.rank]])))
            embedding = world.all_gather_rows(mine.embedding, counts)
            rows = world.all_gather_rows(mine.pooled, counts) if pooled else embedding.new_empty(len(embedding), 0)
            yield Block(np.concatenate(blocks), Vectors(embedding, rows), counts)

    def distances(self, side: Side, text_X: Ids, candidate_text_X: Ids, world: World) -> npt.NDArray[np.float64]:
        """Euclidean distance (X,) of each text's vector of one side to its candidate's vector. Every holder takes part."""
        distance_X = np.empty(len(text_X))
        vectors_ND = self.candidate.embedding
        for block, mine, _ in self.blocks(text_X, world, side=side, pooled=False):
            here = np.flatnonzero(contains(self.text_ids_N, candidate_text_X[block]))
            rows = np.searchsorted(self.text_ids_N, candidate_text_X[block][here])
            gap_QD = mine.embedding[torch.from_numpy(here)] - vectors_ND[torch.from_numpy(rows)]
            distance_Q = torch.zeros(len(block), dtype=torch.float64)  # one rank holds each candidate, the others add 0
            distance_Q[torch.from_numpy(here)] = torch.linalg.vector_norm(gap_QD, dim=1).double()
            distance_X[block] = world.all_reduce(distance_Q, control=True).numpy()
        return distance_X


def plan_batches(lengths_N: Ids, batch_tokens: int, *, max_length: int) -> list[Ids]:
    """Positions of texts batch by batch, longest first, each batch at most `batch_tokens` tokens with padding.

    Args:
        max_length: the length at which texts were cut; no batch is padded further.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    batches, start = [], 0
    while start < len(order_N):
        size = max(1, batch_tokens // int(padded_width(lengths_N[order_N[start]], max_length)))
        batches.append(order_N[start : start + size])
        start += size
    return batches


def embed_texts(
    encode: Callable[[Batch], Sides],
    tokens: TokenizedTexts,
    text_ids_M: Ids,
    world: World,
    *,
    batch_tokens: int,
    sharded: bool = False,
    packing: Packing | None = None,
    pooled: bool = True,
    advance: Callable[[int], None] = lambda count: None,
) -> EmbeddedTexts | None:
    """The vectors of these texts (ascending ids). Every rank takes part.

    Args:
        encode: makes both sides' vectors of a batch, without graph; collective under ZeRO-3.
        sharded: leave the vectors on the ranks that make them.
        packing: how texts are packed; None: they are padded.
        pooled: whether to keep the pooled vectors; otherwise they are empty.
        advance: called after each round with the number of texts that all ranks have embedded in it.

    Returns:
        With `sharded` each rank's part; otherwise all vectors on rank 0, and None on other ranks.
    """
    world.doing(f"embedding {len(text_ids_M)} texts")
    batches = plan_batches(tokens.lengths(text_ids_M), batch_tokens, max_length=tokens.max_length)
    rounds = [batches[start : start + world.size] for start in range(0, len(batches), world.size)]
    holder_M = np.zeros(len(text_ids_M), dtype=np.int32)
    if sharded:
        for rank, batch in ((rank, batch) for round_ in rounds for rank, batch in enumerate(round_)):
            holder_M[batch] = rank
    positions_N = np.flatnonzero(holder_M == world.rank)
    table = VectorTable(positions_N)
    # In the last round ranks without a batch repeat one.
    mine = [round_[min(world.rank, len(round_) - 1)] for round_ in rounds]
    made = prefetched(tokens.laid_out(text_ids_M[positions], packing) for positions in mine)
    with closing(made):
        for round_, positions, laid_out in zip(rounds, mine, made, strict=True):
            parts = encode(laid_out).parts()
            if not pooled:
                parts[1::2] = [part[:, :0] for part in parts[1::2]]
            if sharded:
                table.put(positions if world.rank < len(round_) else positions[:0], parts)
            else:
                gather(parts, round_, table, world)
            advance(sum(map(len, round_)))
    if not sharded and not world.is_main:
        return None
    return EmbeddedTexts(text_ids_M[positions_N], *Sides.of(table.parts), text_ids_M, holder_M)


class VectorTable:
    """Vectors of the texts at these (ascending) positions, filled in batch by batch."""

    def __init__(self, positions_N: Ids) -> None:
        self._positions_N = positions_N
        self.parts: list[torch.Tensor] = []

    def put(self, positions: Ids, parts: Sequence[torch.Tensor]) -> None:
        """Fill in the first `len(positions)` rows of these parts (see `Sides.parts`)."""
        if not self.parts:
            self.parts = [torch.empty(len(self._positions_N), part.shape[1]) for part in parts]
        target = torch.from_numpy(np.searchsorted(self._positions_N, positions))
        for table, part in zip(self.parts, parts, strict=True):
            table[target] = part[: len(positions)].cpu()


def gather(parts: Sequence[torch.Tensor], round_: list[Ids], table: VectorTable, world: World) -> None:
    """Gather a round's vectors on rank 0, in messages of bounded size. Every rank takes part."""
    rows_BW = torch.cat(list(parts), dim=1)  # W: width of all parts side by side
    longest = max(len(batch) for batch in round_)
    padded_BW = torch.nn.functional.pad(rows_BW, (0, 0, 0, longest - len(rows_BW)))
    widths = [part.shape[1] for part in parts]
    size = max(1, _MESSAGE_BYTES // (4 * sum(widths) * world.size))
    for start in range(0, longest, size):
        gathered = world.gather(padded_BW[start : start + size].contiguous())
        for batch, part_BW in zip(round_, gathered or [], strict=False):  # the rest are repeats
            table.put(batch[start : start + size], torch.split(part_BW, widths, dim=1))
