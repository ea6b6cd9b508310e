"""Embedding a corpus on all ranks: every distinct text once, longest first, the same batches whatever the number of ranks.

The plan of batches is global, so each rank knows which rows the others hold, and all ranks make the same number of forwards
(the last round is filled up with repeats: under ZeRO-3 a forward is collective). Rows travel to rank 0 round by round.

N: texts, D: similarity embedding, H: hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from biencoder.distributed import World
from biencoder.engine import Engine
from biencoder.model import Side, Vectors
from biencoder.tokens import TokenizedTexts


@dataclass(frozen=True, slots=True)
class EmbeddedTexts:
    """Vectors of N texts as queries and as candidates (one object where both sides share their weights); on rank 0."""

    text_ids_N: npt.NDArray[np.int64]
    """Ascending."""
    query: Vectors
    candidate: Vectors

    def queries(self, text_ids: npt.NDArray[np.int64]) -> Vectors:
        return self.query.rows(self._rows(text_ids))

    def candidates(self, text_ids: npt.NDArray[np.int64]) -> Vectors:
        return self.candidate.rows(self._rows(text_ids))

    def _rows(self, text_ids: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(np.searchsorted(self.text_ids_N, text_ids))


def plan_batches(lengths_N: npt.NDArray[np.int64], batch_tokens: int) -> list[npt.NDArray[np.int64]]:
    """Positions of texts batch by batch, longest first, each batch at most `batch_tokens` tokens with padding."""
    order_N = np.argsort(-lengths_N, kind="stable")
    batches, start = [], 0
    while start < len(order_N):
        width = -(-int(lengths_N[order_N[start]]) // 8) * 8
        size = max(1, batch_tokens // width)
        batches.append(order_N[start : start + size])
        start += size
    return batches


def embed_texts(
    engine: Engine,
    tokens: TokenizedTexts,
    text_ids_N: npt.NDArray[np.int64],
    world: World,
    *,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda count: None,
) -> EmbeddedTexts | None:
    """Vectors of these texts (ascending ids) on rank 0, None elsewhere. Every rank takes part.

    Args:
        advance: called after each round with the number of texts that all ranks have embedded in it.
    """
    world.doing(f"embedding {len(text_ids_N)} texts")
    batches = plan_batches(tokens.lengths_N[text_ids_N], batch_tokens)
    rounds = [batches[start : start + world.size] for start in range(0, len(batches), world.size)]
    sides: list[Side] = ["query"] if engine.model.shared else ["query", "candidate"]
    vectors = [_embed_side(engine, tokens, text_ids_N, rounds, world, side, advance) for side in sides]
    if vectors[0] is None or vectors[-1] is None:
        return None
    return EmbeddedTexts(text_ids_N, vectors[0], vectors[-1])


def _embed_side(
    engine: Engine,
    tokens: TokenizedTexts,
    text_ids_N: npt.NDArray[np.int64],
    rounds: list[list[npt.NDArray[np.int64]]],
    world: World,
    side: Side,
    advance: Callable[[int], None],
) -> Vectors | None:
    rows_NC: torch.Tensor | None = None
    for batches in rounds:
        mine = batches[min(world.rank, len(batches) - 1)]  # in the last round ranks without a batch repeat one
        vectors = engine.encode(tokens.batch(text_ids_N[mine]), side)
        both_RC = torch.cat([vectors.embedding, vectors.pooled], dim=1)
        longest = max(len(batch) for batch in batches)
        padded_RC = torch.nn.functional.pad(both_RC, (0, 0, 0, longest - len(both_RC)))
        gathered = world.gather_rows(padded_RC)
        if gathered is not None:
            if rows_NC is None:
                rows_NC = torch.empty(len(text_ids_N), both_RC.shape[1])
            for batch, rows in zip(batches, gathered, strict=False):  # what comes from repeats is left over
                rows_NC[torch.from_numpy(batch)] = rows[: len(batch)]
        advance(sum(len(batch) for batch in batches))
    if rows_NC is None:
        return None
    embedding_dim = vectors.embedding.shape[1]
    return Vectors(rows_NC[:, :embedding_dim], rows_NC[:, embedding_dim:])
