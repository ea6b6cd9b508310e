"""The faster drop-in: FAISS, exact by brute force over all vectors (IndexFlatL2), on all threads of the process."""

import faiss
import numpy as np

from biencoder.mining.index import Rows, Vectors


class FaissIndex:
    def __init__(self, vectors_ND: Vectors) -> None:
        self._index = faiss.IndexFlatL2(vectors_ND.shape[1])
        self._index.add(np.ascontiguousarray(vectors_ND))

    def search(self, queries_QD: Vectors, k: int) -> Rows:
        _, rows = self._index.search(np.ascontiguousarray(queries_QD), k)
        rows_Qk: Rows = rows
        return rows_Qk
