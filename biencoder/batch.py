"""From sample positions to what the forward takes: distinct texts in groups of similar length, and rows into them."""

import numpy as np
import numpy.typing as npt
import torch

from biencoder.data import Split
from biencoder.model import TripletBatch
from biencoder.tokens import TokenizedTexts, Tokens, padded_width

Ids = npt.NDArray[np.int64]


def triplet_batch(
    samples_B: Ids,
    split: Split,
    negative_text_P: Ids,
    tokens: TokenizedTexts,
    *,
    shared: bool,
    pass_cost: float,
    device: torch.device,
) -> TripletBatch:
    """The triplets of these samples (positions of pairs in the split).

    Args:
        negative_text_P: for each pair of the split the text id of its mined negative.
        shared: whether both sides of the model share their weights; then no text is encoded twice.
        pass_cost: see `length_groups`.
    """
    B = len(samples_B)
    point_B, counter_B = split.point_text_P[samples_B], split.counter_text_P[samples_B]
    candidates_2B = np.concatenate([counter_B, negative_text_P[samples_B]])

    def grouped(text_ids: Ids) -> tuple[list[Tokens], Ids]:
        """The distinct ones of these texts, and the row of each."""
        texts_U, nth = np.unique(text_ids, return_inverse=True)
        groups = length_groups(tokens.lengths(texts_U), pass_cost)
        row_U = np.empty_like(texts_U)
        row_U[np.concatenate(groups)] = np.arange(len(texts_U))
        return [tokens.batch(texts_U[group]).to(device) for group in groups], row_U[nth]

    candidates = None
    if shared:
        queries, row_3B = grouped(np.concatenate([point_B, candidates_2B]))
    else:
        queries, point_row_B = grouped(point_B)
        candidates, candidate_row_2B = grouped(candidates_2B)
        row_3B = np.concatenate([point_row_B, candidate_row_2B])
    point_row, counter_row, negative_row = torch.from_numpy(row_3B).to(device).reshape(3, B)
    return TripletBatch(queries, candidates, point_row, counter_row, negative_row)


def length_groups(lengths_U: Ids, pass_cost: float) -> list[Ids]:
    """Positions of texts, longest first, cut where padded tokens plus `pass_cost` for each group are fewest in sum.

    Args:
        pass_cost: what a further pass through the model costs, in tokens; infinite: one group.
    """
    order_U = np.argsort(-lengths_U, kind="stable")
    if np.isinf(pass_cost):
        return [order_U]
    widths_U = padded_width(lengths_U[order_U])
    starts = np.append(np.flatnonzero(np.diff(widths_U, prepend=0)), len(widths_U))  # where a new width begins; the end
    least = np.zeros(len(starts))  # cost of the texts from each start on
    following = np.zeros(len(starts), dtype=np.int64)  # which start the next group has
    for i in reversed(range(len(starts) - 1)):
        costs = widths_U[starts[i]] * (starts[i + 1 :] - starts[i]) + pass_cost + least[i + 1 :]
        following[i] = i + 1 + np.argmin(costs)
        least[i] = costs.min()
    groups, i = [], 0
    while i < len(starts) - 1:
        groups.append(order_U[starts[i] : starts[following[i]]])
        i = following[i]
    return groups
