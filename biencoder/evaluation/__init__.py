"""Retrieval accuracy: rank every candidate of a split for every point, then let the pair classifier re-rank the top.

protocol     what training ranks, and which metrics a split gets
metrics      accuracy@k, MRR@10 and nDCG@10 of ranked lists

Beyond training, for launcher/evaluate.py:

tasks        the eight tasks of the corpus paper, and BEIR's form
rankers      what ranks candidates: embeddings, words
baselines    BM25 and TF-IDF
systems      what a command line asks to compare
leaks        which queries training has seen
intervals    how sure a mean is
comparison   all of it, as figures
tables       what is shown of it
fidelity     what an exported graph loses against its model

Imports mining and what is below, and from tracking how texts are shown. Hands out `evaluate_split`.
"""

from biencoder.evaluation.protocol import SplitResult, evaluate_split

__all__ = ["SplitResult", "evaluate_split"]
