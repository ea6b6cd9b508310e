"""The faster indexes: FAISS on all threads of the process, or on the rank's own GPU if faiss-gpu is installed.

flat   exact, by brute force over all vectors
ivf    k-means cells (4 sqrt(N) of them); a search visits `probes` cells (Jégou, Douze, Schmid 2011)
hnsw   a navigable small-world graph of 32 neighbours; a search keeps `ef` candidates (Malkov, Yashunin 2018)

N: vectors, Q: queries, k: rows for each, D: dimension.
"""

import math
from contextlib import nullcontext

import faiss
import numpy as np
import torch

from biencoder.config.schema import MiningConfig
from biencoder.distributed.idle_cores import own_cores
from biencoder.retrieval.nearest import MOST_ROWS, Embeddings, Rows


class FaissIndex:
    """The index of kind `mining.faiss_kind`."""

    def __init__(self, vectors_ND: Embeddings, config: MiningConfig) -> None:
        vectors_ND = np.ascontiguousarray(vectors_ND)
        self.exact = config.exact
        self._index = _empty_index(vectors_ND, config)
        self._most_rows = len(vectors_ND)
        if hasattr(faiss, "StandardGpuResources") and torch.cuda.is_available() and config.faiss_kind != "hnsw":
            self._resources = faiss.StandardGpuResources()  # the index does not keep them
            self._index = faiss.index_cpu_to_gpu(self._resources, torch.cuda.current_device(), self._index)
            self._most_rows = MOST_ROWS
        # The links of a graph depend on the number of threads that make them; the other kinds do not.
        with own_cores() if config.faiss_kind == "hnsw" else nullcontext():
            self._index.add(vectors_ND)

    def search(self, queries_QD: Embeddings, k: int) -> Rows:
        _, rows = self._index.search(np.ascontiguousarray(queries_QD), min(k, self._most_rows))
        rows_Qk: Rows = rows
        return rows_Qk


class FlatIndex:
    """Brute force over vectors in memory or in a mapped file; none is copied."""

    exact = True

    def __init__(self, vectors_ND: Embeddings) -> None:
        self._vectors_ND = vectors_ND

    def search(self, queries_QD: Embeddings, k: int) -> Rows:
        _, rows = faiss.knn(queries_QD, self._vectors_ND, k)
        rows_Qk: Rows = rows
        return rows_Qk


def nearest_centroids(vectors_ND: Embeddings, count: int, *, seed: int) -> Rows:
    """The centroid (N,) nearest to each vector of length 1, of `count` that k-means finds by cosine."""
    means = faiss.Kmeans(vectors_ND.shape[1], count, niter=20, spherical=True, seed=seed % 2**31, min_points_per_centroid=1)
    means.train(np.ascontiguousarray(vectors_ND))
    _, nearest_N1 = means.index.search(vectors_ND, 1)
    numbers_N: Rows = nearest_N1[:, 0]
    return numbers_N


def num_cells(num_vectors: int) -> int:
    """Cells of an ivf index: 4 sqrt(N), but at least 39 vectors for each, as k-means in FAISS requires."""
    return max(1, min(round(4 * math.sqrt(num_vectors)), num_vectors // 39))


def _empty_index(vectors_ND: Embeddings, config: MiningConfig) -> faiss.Index:
    N, D = vectors_ND.shape
    if config.faiss_kind == "hnsw":
        graph = faiss.IndexHNSWFlat(D, 32)
        graph.hnsw.efConstruction = 80
        graph.hnsw.efSearch = config.hnsw_ef
        return graph
    if config.faiss_kind == "ivf":
        lists = faiss.IndexIVFFlat(faiss.IndexFlatL2(D), D, num_cells(N))
        lists.train(vectors_ND)
        lists.nprobe = config.ivf_probes
        return lists
    return faiss.IndexFlatL2(D)
