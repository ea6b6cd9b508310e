"""Which samples make up which step: the global batches are a function of (seed, epoch), never of the number of ranks.

S: steps in an epoch, G: samples in a global batch, A: accumulation, M: samples in a micro-batch.
"""

import numpy as np
import numpy.typing as npt

from biencoder.rng import permutation


def global_batches(*, num_samples: int, global_batch_size: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Sample positions (S, G) of one epoch, shuffled; the incomplete last batch is dropped."""
    steps = num_samples // global_batch_size
    order_N = permutation(seed=seed, purpose="sample order", epoch=epoch, size=num_samples)
    return order_N[: steps * global_batch_size].reshape(steps, global_batch_size)


def rank_share(
    batch_G: npt.NDArray[np.int64],
    length_G: npt.NDArray[np.int64],
    *,
    rank: int,
    world_size: int,
    micro_batch_size: int,
) -> npt.NDArray[np.int64]:
    """This rank's micro-batches (A, M) of a global batch; over all ranks every sample occurs exactly once.

    Args:
        length_G: tokens of each sample. The samples are dealt longest first, back and forth over all micro-batches, so that
            these are of about equal length and no rank waits for another.
    """
    rounds_MX = batch_G[np.argsort(-length_G, kind="stable")].reshape(micro_batch_size, -1)  # X: all micro-batches
    rounds_MX[1::2] = rounds_MX[1::2, ::-1]
    mine_AM: npt.NDArray[np.int64] = rounds_MX.T[rank::world_size]
    return mine_AM
