"""Calibration: what hubness changes in the order of a pair classifier, and on which scale its log-odds are probabilities.

The two are fitted one after the other. The weight of hubness is the one under which the right candidates are likeliest
among those of their query (conditional logit, McFadden 1974): an order is a matter of each query's candidates alone. What
comes out is then brought onto the scale of probabilities (Platt 1999), on which the candidates of all queries are compared.

Q: queries, k: ranked candidates of each, X: all ranked candidates, f: features.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit, logsumexp

Floats = npt.NDArray[np.float64]


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
    probability_Qk: npt.NDArray[np.float32],
    right_Qk: npt.NDArray[np.bool_],
    hubness_Qk2: npt.NDArray[np.float32] | None = None,
) -> Calibration | None:
    """The calibration for these answers; None if right candidates have no higher probabilities than wrong ones.

    Args:
        probability_Qk: NaN where there is no candidate.
        hubness_Qk2: of candidate and query.
    """
    there_Qk = np.isfinite(probability_Qk)
    eps = float(np.finfo(np.float32).tiny), 1 - float(np.finfo(np.float32).epsneg)
    odds_Qk = logit(np.clip(np.where(there_Qk, probability_Qk, 0.5).astype(np.float64), *eps))
    hubness_Qk2 = np.zeros((*odds_Qk.shape, 2)) if hubness_Qk2 is None else hubness_Qk2.astype(np.float64)
    right_Qk = right_Qk & there_Qk
    weights = _weights_of_order(np.stack([odds_Qk, hubness_Qk2[..., 0]], axis=-1), right_Qk, there_Qk)
    odds_weight, weight = weights or (1.0, 0.0)
    if odds_weight <= 0:
        return None
    hubness = weight / odds_weight
    ordered_Qk = odds_Qk + hubness * hubness_Qk2[..., 0]
    fitted = _fit_scale(np.stack([ordered_Qk, hubness_Qk2[..., 1]], axis=-1)[there_Qk], right_Qk[there_Qk])
    if fitted is None:
        return None
    scale, query_hubness, shift = fitted
    return Calibration(scale, shift, scale * hubness, query_hubness)


def _weights_of_order(
    features_Qkf: Floats, right_Qk: npt.NDArray[np.bool_], there_Qk: npt.NDArray[np.bool_]
) -> tuple[float, ...] | None:
    """The weights of features under which the right candidates are likeliest among those of their query.

    Queries without a right or without a wrong candidate say nothing; None if there are no others. A standard normal prior
    on the weights of standardised features keeps them finite where an order makes no error, and near 0 where few queries
    speak.
    """
    speaks_Q = right_Qk.any(axis=1) & (there_Qk & ~right_Qk).any(axis=1)
    features_Qkf, right_Qk, there_Qk = features_Qkf[speaks_Q], right_Qk[speaks_Q], there_Qk[speaks_Q]
    num_features, num_queries = int(features_Qkf.shape[-1]), len(features_Qkf)
    if not num_queries:
        return None
    spread_f = features_Qkf[there_Qk].std(axis=0)
    spread_f[spread_f == 0] = 1  # such a feature orders nothing, and its weight stays 0
    standard_Qkf = (features_Qkf - features_Qkf[there_Qk].mean(axis=0)) / spread_f

    def loss(weight_f: Floats) -> tuple[float, Floats]:
        log_Qk = log_softmax(np.where(there_Qk, standard_Qkf @ weight_f, -np.inf), axis=1)
        right_log_Q = logsumexp(np.where(right_Qk, log_Qk, -np.inf), axis=1)
        share_Qk = np.where(right_Qk, np.exp(log_Qk - right_log_Q[:, None]), 0)  # of each among the right ones
        gradient_f = np.einsum("qkf,qk->f", standard_Qkf, np.exp(log_Qk) - share_Qk)
        return float(weight_f @ weight_f / 2 - right_log_Q.sum()) / num_queries, (weight_f + gradient_f) / num_queries

    weight_f: Floats = minimize(loss, np.zeros(num_features), jac=True, method="BFGS").x / spread_f
    return tuple(float(weight) for weight in weight_f)


def _fit_scale(features_X2: Floats, right_X: npt.NDArray[np.bool_]) -> tuple[float, float, float] | None:
    """The weights of log-odds and of the queries' hubness, and the shift, that make the answers likeliest; None if right
    candidates have no higher log-odds than wrong ones.

    Right and wrong count as slightly less than certain, so that the fit is finite where the log-odds separate them.
    """
    num_right, num_wrong = int(right_X.sum()), int((~right_X).sum())
    centre_2, spread_2 = features_X2.mean(axis=0), features_X2.std(axis=0)
    if not num_right or not num_wrong or spread_2[0] == 0:
        return None
    target_X = np.where(right_X, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))
    spread_2[spread_2 == 0] = 1  # hubness that was not measured is 0 throughout, and so is the weight that is fitted
    design_X3 = np.column_stack([(features_X2 - centre_2) / spread_2, np.ones(len(features_X2))])

    def loss(weight_3: Floats) -> tuple[float, Floats]:
        fitted_X = design_X3 @ weight_3
        value = np.logaddexp(0, fitted_X) - target_X * fitted_X
        return float(value.mean()), design_X3.T @ (expit(fitted_X) - target_X) / len(target_X)

    *weights, shift = minimize(loss, np.zeros(3), jac=True, method="BFGS").x
    weight_2 = np.array(weights) / spread_2
    scale, query_hubness = weight_2.tolist()
    return (scale, query_hubness, float(shift - weight_2 @ centre_2)) if scale > 0 else None
