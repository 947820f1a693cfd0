"""Fits of sums of power terms, many weightings of the same points at once.

Letters: R weightings (resamples), N points, K power terms, P parameters: E, then log A and the exponent of each term.
Levenberg-Marquardt with bounds, written for a batch: scipy.optimize.least_squares takes milliseconds for each resample.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import nnls

from pretrain.types import UserError

#: Bounds of an exponent: the term falls by at most e^20 over the points (below that only one point sees it), and A stays a float.
_MAX_FALL, _MAX_EXPONENT = 20.0, 25.0
#: Bounds of log A in terms of the mean loss: a term of less than 1e-8 of it is none.
_MIN_LOG_A, _MAX_LOG_A = np.log(1e-8), 2 * _MAX_FALL
#: Falls over the points that starts are tried at, both ways.
_START_FALLS = (0.1, 0.3, 0.7, 1.5, 3.0, 6.0, 12.0)
_MAX_STEPS = 300
#: A step that changes no log loss by more than this is the last one.
_TOLERANCE = 1e-10
#: Nor one that changes the sum by less than this share of it.
_MIN_GAIN = 1e-10
#: Sums differ by this share of them by rounding alone.
_ROUNDING = 1e-13


def positive(values: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    wrong = array[~(np.isfinite(array) & (array > 0))]
    if wrong.size:
        raise UserError(f"{name}: {wrong.flat[0]} is among the values; a power law needs finite numbers above 0")
    return array


def check_points(y: ArrayLike, terms: dict[str, ArrayLike], *, num_free: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The checked points: x of each term, and the loss."""
    xs_N = {name: np.atleast_1d(positive(values, name)) for name, values in terms.items()}
    y_N = np.atleast_1d(positive(y, "loss"))
    for name, x_N in xs_N.items():
        if x_N.shape != y_N.shape or y_N.ndim != 1:
            raise UserError(
                f"{name}: shape {x_N.shape} beside losses of shape {y_N.shape}; give one list of each, equally long"
            )
    names = ", ".join(xs_N)
    if len(y_N) < num_free + 1:
        raise UserError(f"{names}: {len(y_N)} points; a fit of {num_free} parameters needs at least {num_free + 1}")
    distinct = len(np.unique(np.stack(list(xs_N.values()), 1), axis=0))
    if distinct < num_free:
        raise UserError(
            f"{names}: {distinct} different values; a fit of {num_free} parameters needs at least {num_free}"
        )
    each = min_different(len(xs_N), num_free)
    for name, x_N in xs_N.items():
        if len(np.unique(x_N)) < each:
            raise UserError(f"{name}: {len(np.unique(x_N))} different values; its exponent needs at least {each}")
    return list(xs_N.values()), y_N


def min_different(num_terms: int, num_free: int) -> int:
    """How many values of x a term's exponent needs: through two of them there is a solution for any E, or any other term."""
    return 2 if (num_terms, num_free) == (1, 2) else 3


@dataclass(frozen=True)
class Solution:
    """Parameters in the solver's units, and whether they are a solution inside the bounds (E = 0 is inside)."""

    params_RP: np.ndarray
    ok_R: np.ndarray


class PowerSum:
    """log y = log(E + sum_k A_k x_k^-alpha_k) at given points.

    Works in units of its own: x over its geometric mean, y likewise, so that neither unit matters.

    Args:
        xs_N: x of each term, above 0.
        y_N: above 0.
        offset: whether E is free, and at least 0; it is 0 otherwise.
        huber: residual from which on the loss grows linearly; squares alone where None.
    """

    def __init__(self, xs_N: Sequence[np.ndarray], y_N: np.ndarray, *, offset: bool, huber: float | None) -> None:
        if huber is not None and not 0 < huber < np.inf:
            raise UserError(f"huber: {huber}; give a residual of log loss above 0 (1e-3), or none for least squares")
        log_x_KN = np.log(np.stack(xs_N))
        self.offset, self.huber, self.n, self.y_N = offset, huber, len(y_N), y_N
        self._centre_K, self._scale = log_x_KN.mean(1), float(np.log(y_N).mean())
        self._log_x_KN = log_x_KN - self._centre_K[:, None]
        self.log_y_N = np.log(y_N) - self._scale
        self._cap_K = np.minimum(_MAX_FALL / np.ptp(log_x_KN, axis=1), _MAX_EXPONENT)
        # E could only lie above every loss if the loss were below it everywhere
        low, high = [0.0], [float(np.exp(self.log_y_N.max())) if offset else 0.0]
        for cap in self._cap_K:
            low += [_MIN_LOG_A, -cap]
            high += [_MAX_LOG_A, cap]
        self._low_P, self._high_P = np.array(low), np.array(high)

    def in_units(self, params_RP: np.ndarray) -> np.ndarray:
        """Parameters in the units of x and y: E, then log A and alpha of each term."""
        out = params_RP.copy()
        out[:, 0] *= np.exp(self._scale)
        out[:, 1::2] += self._scale + params_RP[:, 2::2] * self._centre_K
        return out

    def _model(self, params_RP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals of log y [R, N], fit less points, and their derivatives [R, N, P]."""
        term_RKN = np.exp(params_RP[:, 1::2, None] - params_RP[:, 2::2, None] * self._log_x_KN)
        fit_RN = params_RP[:, :1] + term_RKN.sum(1)
        slope_RNP = np.empty((*fit_RN.shape, params_RP.shape[1]))
        slope_RNP[..., 0] = 1 / fit_RN
        share_RKN = term_RKN / fit_RN[:, None]
        slope_RNP[..., 1::2] = share_RKN.transpose(0, 2, 1)
        slope_RNP[..., 2::2] = (-share_RKN * self._log_x_KN).transpose(0, 2, 1)
        return np.log(fit_RN) - self.log_y_N, slope_RNP

    def residuals(self, params_RP: np.ndarray) -> np.ndarray:
        """Log of the fit less log y, float64[R, N]."""
        return self._model(params_RP)[0]

    def _loss(self, residual_RN: np.ndarray) -> np.ndarray:
        if self.huber is None:
            return residual_RN**2 / 2
        size = np.abs(residual_RN)
        return np.where(size <= self.huber, size**2 / 2, self.huber * (size - self.huber / 2))

    def _starts(self) -> np.ndarray:
        """Exponents on a grid, the rest by linear least squares of (E + sum A x^-alpha) / y = 1 with none below 0; [G, P]."""
        found = []
        falls = [sign * fall for fall in _START_FALLS for sign in (1, -1)]
        span_K = np.ptp(self._log_x_KN, axis=1)
        for falls_K in itertools.product(falls, repeat=len(span_K)):
            alpha_K = np.array(falls_K) / span_K
            columns_KN = np.exp(-alpha_K[:, None] * self._log_x_KN)
            design = np.stack(([np.ones(self.n)] if self.offset else []) + list(columns_KN), 1)
            coefficients, _ = nnls(design / np.exp(self.log_y_N)[:, None], np.ones(self.n))
            E, A_K = (coefficients[0], coefficients[1:]) if self.offset else (0.0, coefficients)
            rest = np.stack([np.log(np.maximum(A_K, 1e-4)), alpha_K], 1).ravel()
            found.append([E, *rest])
        return np.clip(np.array(found), self._low_P, self._high_P)

    def solve(self, weight_RN: np.ndarray, *, start_P: np.ndarray | None = None, num_starts: int = 3) -> Solution:
        """The best of several starts for each weighting.

        Args:
            weight_RN: of each point, at least 0.
            start_P: one more start.
            num_starts: how many points of the grid to start from.
        """
        num = len(weight_RN)
        best_RP, best_R, ok_R = np.zeros((num, len(self._low_P))), np.full(num, np.inf), np.zeros(num, dtype=bool)
        if not num:
            return Solution(best_RP, ok_R)
        grid_GP = self._starts()
        order_RG = np.argsort(weight_RN @ self._loss(self.residuals(grid_GP)).T, axis=1)
        starts = [grid_GP[order_RG[:, i]] for i in range(num_starts)]
        if start_P is not None:
            starts.append(np.broadcast_to(start_P, best_RP.shape))
        for start_RP in starts:
            params_RP, loss_R, converged_R = self._descend(start_RP.copy(), weight_RN)
            better_R = loss_R < best_R - 1e-15
            best_RP[better_R], best_R[better_R] = params_RP[better_R], loss_R[better_R]
            ok_R[better_R] = converged_R[better_R]
        return Solution(best_RP, ok_R & self._inside(best_RP) & self._determined(weight_RN))

    def _inside(self, params_RP: np.ndarray) -> np.ndarray:
        """Exponents and factors off their bounds: at them the points say nothing of the term."""
        room = 1e-6
        low, high = self._low_P[1:] + room, self._high_P[1:] - room
        return ((params_RP[:, 1:] > low) & (params_RP[:, 1:] < high)).all(1)

    def _determined(self, weight_RN: np.ndarray) -> np.ndarray:
        """Whether the points with a weight would do as points of a fit of their own (`check_points`)."""
        num_free = len(self._low_P) - (not self.offset)
        each = min_different(len(self._log_x_KN), num_free)
        enough_R = self._num_different(weight_RN, self._log_x_KN) >= num_free
        for log_x_N in self._log_x_KN:
            enough_R &= self._num_different(weight_RN, log_x_N[None]) >= each
        return enough_R

    @staticmethod
    def _num_different(weight_RN: np.ndarray, x_KN: np.ndarray) -> np.ndarray:
        _, place_N = np.unique(x_KN, axis=1, return_inverse=True)
        onehot_NM = np.eye(place_N.max() + 1)[place_N.ravel()]
        return ((weight_RN @ onehot_NM) > 0).sum(1)

    def _descend(self, params_RP: np.ndarray, weight_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Levenberg-Marquardt inside the bounds: parameters, loss, whether it came to rest."""
        damping_R, done_R = np.full(len(params_RP), 1e-2), np.zeros(len(params_RP), dtype=bool)
        loss_R = (weight_RN * self._loss(self.residuals(params_RP))).sum(1)
        for _ in range(_MAX_STEPS):
            at = np.flatnonzero(~done_R)
            if not len(at):
                break
            residual, slope = self._model(params_RP[at])
            step = self._step(params_RP[at], residual, slope, weight_RN[at], damping_R[at])
            trial = np.clip(params_RP[at] - step, self._low_P, self._high_P)
            trial_loss = (weight_RN[at] * self._loss(self.residuals(trial))).sum(1)
            change = np.abs(np.einsum("rnp,rp->rn", slope, trial - params_RP[at])).max(1)
            gain = loss_R[at] - trial_loss
            better = gain >= -(_ROUNDING * loss_R[at] + _ROUNDING**2)
            params_RP[at[better]], loss_R[at[better]] = trial[better], trial_loss[better]
            # a short step under strong damping is no rest, unless no step at all helps
            rest = (change < _TOLERANCE) | (np.abs(gain) <= _MIN_GAIN * loss_R[at])
            done_R[at] = (rest & (damping_R[at] < 1e-5)) | (~better & (damping_R[at] > 1e10))
            damping_R[at] = np.where(better, np.maximum(damping_R[at] / 8, 1e-12), damping_R[at] * 4)
        return params_RP, loss_R, done_R

    def _step(
        self, params: np.ndarray, residual: np.ndarray, slope: np.ndarray, weight: np.ndarray, damping: np.ndarray
    ) -> np.ndarray:
        if self.huber is not None:
            weight = weight * np.minimum(1, self.huber / np.maximum(np.abs(residual), 1e-300))
        weighted = slope * weight[..., None]
        gradient = np.einsum("rnp,rn->rp", weighted, residual)
        curvature = np.einsum("rnp,rnq->rpq", weighted, slope)
        diagonal = np.einsum("rpp->rp", curvature)
        diagonal += damping[:, None] * diagonal + 1e-14
        # a parameter at its bound that would leave it stays; its row becomes that of the identity
        stays = ((params <= self._low_P) & (gradient > 0)) | ((params >= self._high_P) & (gradient < 0))
        stays[:, 0] |= not self.offset
        free = (~stays).astype(float)
        curvature = curvature * free[:, :, None] * free[:, None, :] + np.eye(params.shape[1]) * stays[:, :, None]
        return np.linalg.solve(curvature, (gradient * free)[..., None])[..., 0]
