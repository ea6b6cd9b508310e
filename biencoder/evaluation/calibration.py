"""Calibration: on which scale the log-odds of a pair classifier are probabilities (Platt 1999).

X: ranked candidates of all queries.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, logit


class Calibration(NamedTuple):
    """Log-odds become `scale * log-odds + shift`. The scale is above 0, so that no order changes."""

    scale: float
    shift: float


def fit_calibration(probability_X: npt.NDArray[np.float32], right_X: npt.NDArray[np.bool_]) -> Calibration | None:
    """The scale and the shift under which these probabilities are likeliest; None if right candidates have no higher ones.

    Right and wrong count as slightly less than certain, so that the fit is finite where the probabilities separate them.
    """
    eps = float(np.finfo(np.float32).tiny), 1 - float(np.finfo(np.float32).epsneg)
    odds_X = logit(np.clip(probability_X.astype(np.float64), *eps))
    num_right, num_wrong = int(right_X.sum()), int((~right_X).sum())
    centre, spread = odds_X.mean(), odds_X.std()
    if not num_right or not num_wrong or spread == 0:
        return None
    target_X = np.where(right_X, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))
    design_X2 = np.stack([(odds_X - centre) / spread, np.ones_like(odds_X)], axis=1)

    def loss(weights_2: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        fitted_X = design_X2 @ weights_2
        value = np.logaddexp(0, fitted_X) - target_X * fitted_X
        return float(value.mean()), design_X2.T @ (expit(fitted_X) - target_X) / len(target_X)

    scale, shift = minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    if scale <= 0:
        return None
    return Calibration(float(scale / spread), float(shift - scale * centre / spread))
