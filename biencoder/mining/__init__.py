"""Negative mining: an index answers who is near, selection decides which negative each sample gets, refresh moves the data.

refresh.Miner   every rank takes part: the holders of the embeddings search and select, ids are broadcast
selection       pure but for the merging of ranks: random or nearest, never the point, its counter, or a copy of them
audit           what the negatives are like
index           what an index is; ball_tree.py and faiss_index.py are the two that exist, build.py chooses
"""

from biencoder.mining.refresh import Mined, Miner

__all__ = ["Mined", "Miner"]
