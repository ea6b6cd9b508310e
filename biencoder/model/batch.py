"""Batches: samples become the forward's input, which is distinct texts in groups of similar length and rows into these.

P: pairs of a split, B: samples of a batch, K: negatives of each, U: distinct texts of one side.
"""

import math

import numpy as np
import torch

from biencoder.data import Split
from biencoder.data.ids import Ids
from biencoder.data.tokens import Batch, Packing, TokenizedTexts, padded_width
from biencoder.model.bi_encoder import TripletBatch


def triplet_batch(
    samples_B: Ids,
    split: Split,
    negative_text_PK: Ids,
    tokens: TokenizedTexts,
    *,
    one_encoder: bool,
    rivals: bool,
    pass_cost: float,
    packing: Packing | None = None,
) -> TripletBatch:
    """The triplets of these samples (positions of pairs in the split), on the CPU.

    Args:
        negative_text_PK: for each pair of the split the text ids of its mined negatives.
        one_encoder: whether one encoder serves both sides of the model; then no text is encoded twice, unless it has
            another prompt as a candidate.
        rivals: whether the points are candidates, too.
        pass_cost: see `length_groups`; of no concern where texts are packed, since nothing is padded there.
        packing: how texts are packed; None: they are padded.
    """
    point_B, counter_B = split.point_text_P[samples_B], split.counter_text_P[samples_B]
    negative_BK = negative_text_PK[samples_B]
    parts = [counter_B, negative_BK.ravel(), *([point_B] if rivals else [])]

    def grouped(text_ids: Ids, tokens: TokenizedTexts) -> tuple[list[Batch], Ids]:
        """The distinct texts among these in groups of similar length, and the row of each text."""
        texts_U, nth = np.unique(text_ids, return_inverse=True)
        cost = pass_cost if packing is None else math.inf
        groups = length_groups(tokens.lengths(texts_U), cost, max_length=tokens.max_length)
        row_U = np.empty_like(texts_U)
        row_U[np.concatenate(groups)] = np.arange(len(texts_U))
        return [tokens.laid_out(texts_U[group], packing) for group in groups], row_U[nth]

    candidates = None
    if one_encoder and not tokens.candidate:
        texts, rows = grouped(np.concatenate([point_B, *parts]), tokens)
    else:
        texts, point_rows = grouped(point_B, tokens.query_alone)
        candidates, candidate_rows = grouped(np.concatenate(parts), tokens.candidate or tokens)
        rows = np.concatenate([point_rows, candidate_rows])
    B, K = negative_BK.shape
    point, counter, negative, rival = torch.split(torch.from_numpy(rows), [B, B, B * K, B * rivals])
    return TripletBatch(texts, candidates, point, counter, negative.reshape(B, K), rival if rivals else None)


def length_groups(lengths_U: Ids, pass_cost: float, *, max_length: int) -> list[Ids]:
    """Positions of texts in groups, longest first, that minimise padded tokens plus `pass_cost` for each group.

    Args:
        pass_cost: the cost of a further pass through the model, in tokens; infinite: one group.
        max_length: the length at which texts were cut; no group is padded further.
    """
    order_U = np.argsort(-lengths_U, kind="stable")
    if np.isinf(pass_cost):
        return [order_U]
    widths_U = padded_width(lengths_U[order_U], max_length)
    starts = np.append(np.flatnonzero(np.diff(widths_U, prepend=0)), len(widths_U))  # of each width, and the end
    least = np.zeros(len(starts))  # least cost of the texts from each start on
    following = np.zeros(len(starts), dtype=np.int64)  # the start of the next group
    for i in reversed(range(len(starts) - 1)):
        costs = widths_U[starts[i]] * (starts[i + 1 :] - starts[i]) + pass_cost + least[i + 1 :]
        following[i] = i + 1 + np.argmin(costs)
        least[i] = costs.min()
    groups, i = [], 0
    while i < len(starts) - 1:
        groups.append(order_U[starts[i] : starts[following[i]]])
        i = following[i]
    return groups
