"""The reference index: scikit-learn's ball tree, exact, on one thread.

N: vectors, Q: queries, k: rows for each, D: dimension.
"""

import numpy as np
from sklearn.neighbors import BallTree

from biencoder.retrieval.nearest import Embeddings, Rows


class BallTreeIndex:
    """A ball tree with leaf_size 2, as in the reference system."""

    exact = True

    def __init__(self, vectors_ND: Embeddings) -> None:
        self._tree = BallTree(vectors_ND, leaf_size=2)

    def search(self, queries_QD: Embeddings, k: int) -> Rows:
        rows: Rows = self._tree.query(queries_QD, k=k, return_distance=False).astype(np.int64)
        return rows
