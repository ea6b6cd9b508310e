"""Lexical baselines that a trained model must beat: common words, weighted by BM25 or TF-IDF.

Word statistics are those of all texts of the dataset. A query is one of these texts, with all its words.

N: texts, V: vocabulary, T: words of all texts.
"""

from collections.abc import Sequence

import bm25s
import numpy as np
from scipy.sparse import csc_array, csr_array
from sklearn.feature_extraction.text import TfidfVectorizer

from biencoder.evaluation.rankers import LexicalRanker

BM25 = "BM25 of the package bm25s (Lucene's form, k1 1.5, b 0.75), without English stop words"
TF_IDF = "cosine of scikit-learn's TF-IDF weights"


def bm25(texts: Sequence[str]) -> LexicalRanker:
    """BM25 (Robertson and Zaragoza 2009) as Lucene computes it; a repeated word of the query counts repeatedly."""
    words = bm25s.tokenize(list(texts), stopwords="english", show_progress=False)
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    index.index(words, show_progress=False)
    scores = index.scores  # of every word in every text, word by word
    shape = (len(texts), len(scores["indptr"]) - 1)
    candidate_NV = csc_array((scores["data"], scores["indices"], scores["indptr"]), shape=shape).tocsr()
    word_T = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in words.ids])
    text_T = np.repeat(np.arange(len(texts)), [len(ids) for ids in words.ids])
    query_NV = csr_array((np.ones(len(word_T), dtype=np.float32), (text_T, word_T)), shape=shape)
    return LexicalRanker(query_NV, candidate_NV)


def tf_idf(texts: Sequence[str]) -> LexicalRanker:
    weights_NV = csr_array(TfidfVectorizer(dtype=np.float32).fit_transform(texts))
    return LexicalRanker(weights_NV, weights_NV)
