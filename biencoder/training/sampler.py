"""Which samples make up which step: the global batches are a function of (seed, epoch), never of the number of ranks.

N: samples, S: steps in an epoch, G: samples in a global batch, R: ranks, A: accumulation, M: samples in a micro-batch.
"""

import numpy as np

from biencoder.data.ids import Ids
from biencoder.rng import permutation


def global_batches(*, num_samples: int, global_batch_size: int, seed: int, epoch: int, group_N: Ids | None = None) -> Ids:
    """Sample positions (S, G) of one epoch, shuffled; the incomplete last batch is dropped.

    Args:
        group_N: the group (debate, theme) of each sample, to have batches made of whole groups: groups in a random order
            are laid end to end and cut into batches, so that only the groups at a batch's ends are divided.
    """
    steps = num_samples // global_batch_size
    order_N = permutation(seed=seed, purpose="sample order", epoch=epoch, size=num_samples)
    if group_N is None:
        return order_N[: steps * global_batch_size].reshape(steps, global_batch_size)
    place_of_group = permutation(seed=seed, purpose="group order", epoch=epoch, size=int(group_N.max()) + 1)
    order_N = order_N[np.argsort(place_of_group[group_N[order_N]], kind="stable")]
    batches_SG = order_N[: steps * global_batch_size].reshape(steps, global_batch_size)
    return batches_SG[permutation(seed=seed, purpose="batch order", epoch=epoch, size=steps)]


def shares(batch_G: Ids, length_G: Ids, *, world_size: int, micro_batch_size: int) -> Ids:
    """Every rank's micro-batches (R, A, M) of a global batch; together they hold every sample exactly once.

    Args:
        length_G: tokens of each sample. The samples are dealt longest first, back and forth over all micro-batches, so that
            these are of about equal length and no rank waits for another.
    """
    rounds_MX = batch_G[np.argsort(-length_G, kind="stable")].reshape(micro_batch_size, -1)  # X: all micro-batches
    rounds_MX[1::2] = rounds_MX[1::2, ::-1]
    dealt_RAM: Ids = np.stack([rounds_MX.T[rank::world_size] for rank in range(world_size)])
    return dealt_RAM
