"""Retrieval accuracy: rank all candidates of a split for each of its points, re-rank the top, and compute metrics.

`protocol` does this on the ranks of a training run. The other modules serve the commands that evaluate and export:
`comparison` measures several systems (`systems`, with the `rankers` of models and `baselines`) on several `tasks`, with
confidence `intervals` and without `leaks` from training; `fidelity` compares an exported model with its original; `tables`
shows the results. Imports mining and what is below it, and the console of
tracking. Hands out `evaluate_split` and its result, of which `calibration` makes probabilities.
"""

from biencoder.evaluation.calibration import Calibration
from biencoder.evaluation.protocol import SplitResult, evaluate_split

__all__ = ["Calibration", "SplitResult", "evaluate_split"]
