"""Negative mining: each epoch the nearest allowed texts, or random ones, become the negatives of the training pairs.

`refresh.Miner` coordinates the ranks, `selection` decides which texts a sample gets, `audit` measures how hard the
negatives are, `pairs.mine` does all of it in one process, and `clusters` groups pairs for batches. Imports retrieval, which
has the indexes, and what is below it. Hands out `Miner` and its result, `Mined`, and `Clusters`.
"""

from biencoder.mining.clusters import Clusters
from biencoder.mining.refresh import Mined, Miner

__all__ = ["Clusters", "Mined", "Miner"]
