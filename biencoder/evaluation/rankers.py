"""Rankers: they rank candidates for queries, by the distance of embeddings or by the weights of words.

All rankers share one interface. Candidates with equal scores keep their order, so that all metrics are comparable.

Q: queries, C: candidates, N: texts, V: vocabulary, k: top.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.sparse import csr_array

from biencoder.data.ids import Ids
from biencoder.distributed.world import World
from biencoder.evaluation.protocol import (
    HeldCandidates,
    Ranking,
    empty_ranking,
    measure_hubness,
    nearest_candidates,
    smallest,
)
from biencoder.model.bi_encoder import PairClassifier
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.reranking import pair_probability

_CHUNK_BYTES = 256 * 2**20


class Ranker(Protocol):
    """Ranks candidates for queries; both are texts of the dataset."""

    def rank(self, query_text_Q: Ids, candidate_text_C: Ids, own_Q: Ids, *, k: int) -> Ranking:
        """The k best candidates of each query, -1 beyond the last one, with probabilities if there is a pair classifier.

        Args:
            own_Q: for each query the position of the candidate that it must not retrieve: itself; -1 for none.
        """


@dataclass(frozen=True, slots=True)
class EmbeddingRanker:
    """Ranks by the Euclidean distance of embeddings, as the evaluation in training does."""

    embedded: EmbeddedTexts
    """The vectors of all texts, in this process."""
    classifier: PairClassifier | None

    def rank(self, query_text_Q: Ids, candidate_text_C: Ids, own_Q: Ids, *, k: int) -> Ranking:
        queries = self.embedded.query.rows(torch.from_numpy(np.searchsorted(self.embedded.text_ids_N, query_text_Q)))
        ranking = nearest_candidates(queries, HeldCandidates.of(candidate_text_C, self.embedded), own_Q, k=k)
        if self.classifier is None:
            return ranking
        row_Qk = np.searchsorted(self.embedded.text_ids_N, candidate_text_C[ranking.candidate_Qk])
        hubness_Qk2 = None
        if self.classifier.uses_hubness:
            hubness = measure_hubness(query_text_Q, candidate_text_C, own_Q, self.embedded, World.alone())
            hubness_Qk2 = hubness.of_pairs(np.arange(len(query_text_Q)), ranking.candidate_Qk)
        probability_Qk = pair_probability(queries, self.embedded.candidate, row_Qk, self.classifier, hubness_Qk2)
        return ranking._replace(probability_Qk=np.where(ranking.candidate_Qk < 0, np.float32("nan"), probability_Qk))


@dataclass(frozen=True, slots=True)
class LexicalRanker:
    """Ranks by the inner product of query's and candidate's word weights; the distance is the negative product."""

    query_NV: csr_array
    candidate_NV: csr_array

    def rank(self, query_text_Q: Ids, candidate_text_C: Ids, own_Q: Ids, *, k: int) -> Ranking:
        C = len(candidate_text_C)
        ranking, depth = empty_ranking(len(query_text_Q), k), min(k, C)
        candidate_VC = self.candidate_NV[candidate_text_C].T.tocsr()
        chunk = max(1, _CHUNK_BYTES // (4 * C))
        for start in range(0, len(query_text_Q), chunk):
            block = slice(start, start + chunk)
            distance_qC = -(self.query_NV[query_text_Q[block]] @ candidate_VC).toarray()
            has_own = np.flatnonzero(own_Q[block] >= 0)
            distance_qC[has_own, own_Q[block][has_own]] = np.inf
            best_qk = smallest(torch.from_numpy(distance_qC), depth).numpy()
            ranking.distance_Qk[block, :depth] = np.take_along_axis(distance_qC, best_qk, axis=1)
            ranking.candidate_Qk[block, :depth] = best_qk
        ranking.candidate_Qk[np.isinf(ranking.distance_Qk)] = -1
        return ranking
