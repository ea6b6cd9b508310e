"""Calibration: on which scale the log-odds of a pair classifier are probabilities (Platt 1999), and what hubness adds to
them.

X: ranked candidates of all queries, f: log-odds and hubness.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, logit


class Calibration(NamedTuple):
    """Log-odds become `scale * log-odds + shift + hubness * (the candidate's) + query_hubness * (the query's hubness)`.

    The scale is above 0.
    """

    scale: float
    shift: float
    hubness: float
    """0 where hubness was not measured; below 0 if hubs are less likely right than their log-odds say."""
    query_hubness: float
    """The same of queries; it changes no order."""


def fit_calibration(
    probability_X: npt.NDArray[np.float32],
    right_X: npt.NDArray[np.bool_],
    hubness_X2: npt.NDArray[np.float32] | None = None,
) -> Calibration | None:
    """What makes these answers likeliest; None if right candidates have no higher probabilities than wrong ones.

    Args:
        hubness_X2: of candidate and query.

    Right and wrong count as slightly less than certain, so that the fit is finite where the probabilities separate them.
    """
    eps = float(np.finfo(np.float32).tiny), 1 - float(np.finfo(np.float32).epsneg)
    odds_X = logit(np.clip(probability_X.astype(np.float64), *eps))
    num_right, num_wrong = int(right_X.sum()), int((~right_X).sum())
    features_Xf = np.column_stack([odds_X, np.zeros((len(odds_X), 2)) if hubness_X2 is None else hubness_X2])
    centre_f, spread_f = features_Xf.mean(axis=0), features_Xf.std(axis=0)
    if not num_right or not num_wrong or spread_f[0] == 0:
        return None
    target_X = np.where(right_X, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))
    spread_f[spread_f == 0] = 1  # such a feature is 0 throughout, and so is the weight that is fitted
    design_X4 = np.column_stack([(features_Xf - centre_f) / spread_f, np.ones_like(odds_X)])

    def loss(weights_4: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        fitted_X = design_X4 @ weights_4
        value = np.logaddexp(0, fitted_X) - target_X * fitted_X
        return float(value.mean()), design_X4.T @ (expit(fitted_X) - target_X) / len(target_X)

    *weight_f, shift = minimize(loss, np.zeros(4), jac=True, method="BFGS").x
    scale, hubness, query_hubness = (weight_f / spread_f).tolist()
    if scale <= 0:
        return None
    return Calibration(scale, float(shift - (weight_f / spread_f) @ centre_f), hubness, query_hubness)
