"""Re-ranking: the pair classifier's probabilities of ranked candidates, in blocks of bounded memory.

Q: queries, k: ranked candidates of each.
"""

import numpy as np
import numpy.typing as npt
import torch

from biencoder.model.bi_encoder import PairClassifier, Vectors

_CHUNK_BYTES = 256 * 2**20


@torch.no_grad()
def pair_probability(
    queries: Vectors,
    candidates: Vectors,
    ranked_Qk: npt.NDArray[np.int64],
    classifier: PairClassifier,
    hubness_Qk2: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Probability (Q, k) that candidate ranked_Qk[q, i] answers query q.

    Args:
        hubness_Qk2: of each candidate and its query, for a residual classifier.
    """
    Q, k = ranked_Qk.shape
    probability_Qk = np.empty((Q, k), dtype=np.float32)
    # Memory of a pair: two vectors of each kind, three features of each kind, and the features normalised.
    pair_bytes = 4 * 8 * sum(part.shape[1] for part in queries)
    chunk = max(1, _CHUNK_BYTES // (k * pair_bytes))
    for start in range(0, Q, chunk):
        block = slice(start, start + chunk)
        v = candidates.rows(torch.from_numpy(ranked_Qk[block]))
        u = Vectors(*(part[block, None].expand(-1, k, -1) for part in queries))
        around = None if hubness_Qk2 is None else torch.from_numpy(hubness_Qk2[block])
        probability_Qk[block] = classifier(u, v, around).softmax(dim=-1)[..., 1].numpy()
    return probability_Qk
