"""Builds the index that a configuration names, and imports only the library that this index needs.

N: vectors, D: dimension.
"""

from biencoder.config.schema import MiningConfig
from biencoder.retrieval.nearest import Embeddings, Fp64Index, NegativeIndex, NothingHeld


def build_index(vectors_ND: Embeddings, config: MiningConfig) -> NegativeIndex:
    """Index these vectors; rows are numbered in their order."""
    if not len(vectors_ND):
        return NothingHeld(exact=config.exact)
    if config.index == "balltree":
        from biencoder.retrieval.ball_tree import BallTreeIndex

        return BallTreeIndex(vectors_ND)
    from biencoder.retrieval.faiss_index import FaissIndex

    return FaissIndex(vectors_ND, config)


def reference_index(vectors_ND: Embeddings, *, fp64: bool) -> NegativeIndex:
    """An exact index to measure others against, which copies no vectors: in fp64, or FAISS's faster search."""
    if fp64 or not len(vectors_ND):
        return Fp64Index(vectors_ND)
    from biencoder.retrieval.faiss_index import FlatIndex

    return FlatIndex(vectors_ND)
