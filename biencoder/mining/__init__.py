"""Negative mining: an index answers who is near, selection decides which negative each sample gets, refresh moves the data.

refresh.mine_negatives   every rank takes part: rank 0 indexes and selects, ids are broadcast
selection                pure: random or nearest, never the point, its counter, or a text that equals one of them
index                    what an index is; ball_tree.py and faiss_index.py are the two that exist, build.py chooses
"""

from biencoder.mining.refresh import Mined, mine_negatives

__all__ = ["Mined", "mine_negatives"]
