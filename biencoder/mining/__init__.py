"""Negative mining: an index answers who is near, selection decides which negative each sample gets, refresh moves the data.

refresh.Miner   every rank takes part: the holders of the embeddings search and select, ids are broadcast
selection       pure but for the merging of ranks: random or nearest, never the point, its counter, or a copy of them
audit           what the negatives are like

The indexes themselves are in retrieval. Imports retrieval and what is below. Hands out `Miner` and what it has `Mined`.
"""

from biencoder.mining.refresh import Mined, Miner

__all__ = ["Mined", "Miner"]
