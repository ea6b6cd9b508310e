"""From sample positions to what the engine's forward takes: distinct texts, padded once, and rows into them."""

import numpy as np
import numpy.typing as npt
import torch

from biencoder.data import Split
from biencoder.model import TripletBatch
from biencoder.tokens import TokenizedTexts


def triplet_batch(
    samples_B: npt.NDArray[np.int64],
    split: Split,
    negative_text_P: npt.NDArray[np.int64],
    tokens: TokenizedTexts,
    *,
    shared: bool,
    device: torch.device,
) -> TripletBatch:
    """The triplets of these samples (positions of pairs in the split).

    Args:
        negative_text_P: for each pair of the split the text id of its mined negative.
        shared: whether both sides of the model share their weights; then all texts go through one forward.
    """
    B = len(samples_B)
    point_B, counter_B = split.point_text_P[samples_B], split.counter_text_P[samples_B]
    candidates_2B = np.concatenate([counter_B, negative_text_P[samples_B]])
    if shared:
        texts_U, rows_3B = np.unique(np.concatenate([point_B, candidates_2B]), return_inverse=True)
        queries, candidates, row_3B = tokens.batch(texts_U), None, rows_3B
    else:
        query_texts_U, point_row_B = np.unique(point_B, return_inverse=True)
        candidate_texts_U, candidate_row_2B = np.unique(candidates_2B, return_inverse=True)
        queries, candidates = tokens.batch(query_texts_U), tokens.batch(candidate_texts_U)
        row_3B = np.concatenate([point_row_B, candidate_row_2B])
    point_row, counter_row, negative_row = torch.from_numpy(row_3B).to(device).reshape(3, B)
    return TripletBatch(
        queries.to(device), candidates.to(device) if candidates else None, point_row, counter_row, negative_row
    )
