"""Retrieval accuracy: rank every candidate of a split for every point, then let the pair classifier re-rank the top.

protocol   what is ranked, and which metrics a split gets
metrics    accuracy@k, MRR@10 and nDCG@10 of ranked lists
"""

from biencoder.evaluation.protocol import SplitResult, evaluate_split

__all__ = ["SplitResult", "evaluate_split"]
