"""Power laws of loss over size, data or compute, with bootstrap intervals; the compute-optimal split; cost against quality.

L(x) = E + A x^-alpha and L(N, D) = E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, eq. 2), fitted to log L by least squares, or
with Huber's loss as in their approach 3. `benchmarks.least_squares` holds the solver.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.least_squares import PowerSum, Solution, check_points, positive
from benchmarks.resampling import Interval, counts, interval, percentiles
from pretrain.types import UserError

#: Intervals are given only where at least this share of the resamples could be fitted.
MIN_FITTED = 0.5


@dataclass(frozen=True)
class Prediction:
    """Points of a fitted curve; arrays of the shape of what was asked for.

    Attributes:
        value: of the fit.
        low: end of the 95% bootstrap interval of the curve itself; one more run scatters around the curve by its own noise.
            None where the fit has no intervals.
        high: likewise.
    """

    value: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


@dataclass(frozen=True)
class PowerLaw:
    """L(x) = E + A x^-alpha.

    Attributes:
        E: loss that no x removes, in the unit of the loss; 0 without offset.
        A: loss at x = 1 above E.
        alpha: exponent; below 0 where the loss grows with x.
        interval_alpha: 95% bootstrap interval; None where fewer than half of the resamples could be fitted, or none were drawn.
        interval_E: likewise; None without offset too.
        r2: share of the variance of log L that the fit explains.
        n: points.
        failed_share: of the resamples that could not be fitted (too few different x, no convergence, exponent at its bound).
        method: how it was fitted, in a line.
        num_drawn: runs, or groups of them, that each resample drew from.
        residuals: log L - log fit of each point.
        draws_R3: E, log A, alpha of each fitted resample.
    """

    E: float
    A: float
    alpha: float
    interval_alpha: Interval | None
    interval_E: Interval | None
    r2: float
    n: int
    failed_share: float
    method: str
    num_drawn: int = 0
    residuals: tuple[float, ...] = ()
    draws_R3: np.ndarray | None = field(default=None, repr=False, compare=False)

    def predict(self, x: ArrayLike) -> Prediction:
        """Loss at `x`, a number or an array of them. UserError for x that is not above 0."""
        terms = [positive(x, "x")]
        return _predict(np.array([self.E, math.log(self.A), self.alpha]), self.draws_R3, terms, self.num_drawn)


@dataclass(frozen=True)
class JointLaw:
    """L(N, D) = E + A N^-alpha + B D^-beta. Fields as `PowerLaw`.

    Attributes:
        optimal_exponent: N_opt grows as C^(beta / (alpha + beta)), D_opt as C^(alpha / (alpha + beta)), for C ~ N D.
        interval_optimal_exponent: its 95% bootstrap interval.
        draws_R5: E, log A, alpha, log B, beta of each fitted resample.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    interval_alpha: Interval | None
    interval_beta: Interval | None
    interval_E: Interval | None
    optimal_exponent: float
    interval_optimal_exponent: Interval | None
    r2: float
    n: int
    failed_share: float
    method: str
    num_drawn: int = 0
    residuals: tuple[float, ...] = ()
    draws_R5: np.ndarray | None = field(default=None, repr=False, compare=False)

    def predict(self, num_params: ArrayLike, num_samples: ArrayLike) -> Prediction:
        """Loss at pairs of sizes and samples, which broadcast. UserError for those that are not above 0."""
        terms = np.broadcast_arrays(positive(num_params, "num_params"), positive(num_samples, "num_samples"))
        point = np.array([self.E, math.log(self.A), self.alpha, math.log(self.B), self.beta])
        return _predict(point, self.draws_R5, list(terms), self.num_drawn)

    def optimal(self, flops: float, *, flops_per_param_and_sample: float) -> tuple[float, float]:
        """Parameters and samples of the lowest loss at a budget (Hoffmann et al. 2022, eq. 4).

        Args:
            flops: the budget C.
            flops_per_param_and_sample: k of C = k N D; 6 times the tokens of a sample for forward and backward.

        Raises:
            UserError: where more parameters or more samples do not lower the fitted loss, for then there is no best split.
        """
        if min(self.alpha, self.beta) <= 0:
            raise UserError(f"exponents: {self.alpha:.3g}, {self.beta:.3g}; a best split needs both above 0")
        product = float(positive([flops], "flops")[0]) / float(positive([flops_per_param_and_sample], "k")[0])
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        num_params = scale * product**self.optimal_exponent
        return num_params, product / num_params


def _predict(point_P: np.ndarray, draws_RP: np.ndarray | None, terms: list[np.ndarray], num_drawn: int) -> Prediction:
    def curve(params_RP: np.ndarray) -> np.ndarray:
        loss = params_RP[:, 0].reshape(-1, *[1] * terms[0].ndim)
        for k, x in enumerate(terms):
            a, alpha = (params_RP[:, 1 + 2 * k + i].reshape(loss.shape[:1] + (1,) * x.ndim) for i in (0, 1))
            loss = loss + np.exp(a - alpha * np.log(x))
        return loss

    ends = percentiles(None if draws_RP is None else curve(draws_RP), num_drawn=num_drawn)
    low, high = (None, None) if ends is None else ends
    return Prediction(curve(point_P[None])[0], low, high)


@dataclass(frozen=True)
class _Fit:
    point_P: np.ndarray
    draws_RP: np.ndarray | None
    failed_share: float
    r2: float
    residuals: tuple[float, ...]
    method: str
    n: int
    num_drawn: int

    def interval_of(self, of_draws: Callable[[np.ndarray], np.ndarray]) -> Interval | None:
        """Of a number that each fitted resample gives."""
        return interval(None if self.draws_RP is None else of_draws(self.draws_RP), num_drawn=self.num_drawn)

    def about(self) -> dict[str, Any]:
        """The fields that laws have in common."""
        names = ("r2", "n", "failed_share", "method", "num_drawn", "residuals")
        return {name: getattr(self, name) for name in names}


def _fit(
    loss: ArrayLike,
    sizes: dict[str, ArrayLike],
    *,
    offset: bool,
    num_bootstrap: int,
    seed: int,
    huber: float | None,
    groups: Sequence[Hashable] | None,
) -> _Fit:
    """A sum of one power of each size; arguments and errors as `fit_power_law`."""
    terms, y_N = check_points(loss, sizes, num_free=2 * len(sizes) + offset)
    counts_RN = counts(len(y_N), groups, num_bootstrap=num_bootstrap, seed=seed)
    problem = PowerSum(terms, y_N, offset=offset, huber=huber)
    if problem.offset and np.ptp(problem.log_y_N) < 1e-12:
        raise UserError(
            f"loss: {problem.y_N[0]} at every point; E and A are not to be told apart, fit it with offset=False"
        )
    whole: Solution = problem.solve(np.ones((1, problem.n)))
    if not whole.ok_R[0]:
        raise UserError(
            "points: they determine no exponent (no curvature to fit, or a step); give more points over a wider range"
        )
    draws = problem.solve(counts_RN, start_P=whole.params_RP[0])
    failed = 1 - float(draws.ok_R.mean()) if len(counts_RN) else 0.0
    keep = len(counts_RN) > 0 and failed <= 1 - MIN_FITTED
    residual_N = problem.residuals(whole.params_RP)[0]
    spread = float(((problem.log_y_N - problem.log_y_N.mean()) ** 2).sum())
    # by rounding alone the explained share of a constant would be any number
    r2 = 1 - float((residual_N**2).sum()) / spread if spread > 1e-20 else math.nan
    objective = "least squares" if problem.huber is None else f"Huber's loss ({problem.huber:g})"
    bootstrap = f"{len(counts_RN)} bootstrap resamples of runs, seed {seed}, {failed:.1%} failed"
    return _Fit(
        point_P=problem.in_units(whole.params_RP)[0],
        draws_RP=problem.in_units(draws.params_RP[draws.ok_R]) if keep else None,
        failed_share=failed,
        r2=r2,
        residuals=tuple(float(-r) for r in residual_N),
        method=f"{objective} on log loss, {'E >= 0' if problem.offset else 'E = 0'}; {bootstrap}",
        n=len(y_N),
        num_drawn=len(y_N) if groups is None else len(set(groups)),
    )


def fit_power_law(
    x: ArrayLike,
    y: ArrayLike,
    *,
    offset: bool = True,
    num_bootstrap: int = 1000,
    seed: int = 0,
    huber: float | None = None,
    groups: Sequence[Hashable] | None = None,
) -> PowerLaw:
    """Fits L(x) = E + A x^-alpha to one point per run.

    Args:
        x: size, samples or compute of each run; above 0.
        y: its loss; above 0.
        offset: whether E >= 0 is fitted; it is 0 otherwise.
        num_bootstrap: resamples; 0 for no intervals.
        seed: of the resamples.
        huber: residual of log loss from which on it counts linearly (1e-3 in Hoffmann et al. 2022); least squares where None.
        groups: of each point; points of one group (cool-downs of one trunk, runs of one seed) are drawn together.

    Raises:
        UserError: values that are not finite or not above 0, fewer points than parameters + 1, too few different x, points that
            determine no exponent.
    """
    fit = _fit(y, {"x": x}, offset=offset, num_bootstrap=num_bootstrap, seed=seed, huber=huber, groups=groups)
    E, log_A, alpha = map(float, fit.point_P)
    return PowerLaw(
        E=E,
        A=math.exp(log_A),
        alpha=alpha,
        interval_alpha=fit.interval_of(lambda draws_RP: draws_RP[:, 2]),
        interval_E=fit.interval_of(lambda draws_RP: draws_RP[:, 0]) if offset else None,
        draws_R3=fit.draws_RP,
        **fit.about(),
    )


def fit_joint(
    num_params: ArrayLike,
    num_samples: ArrayLike,
    loss: ArrayLike,
    *,
    offset: bool = True,
    num_bootstrap: int = 1000,
    seed: int = 0,
    huber: float | None = None,
    groups: Sequence[Hashable] | None = None,
) -> JointLaw:
    """Fits L(N, D) = E + A N^-alpha + B D^-beta to one point per run; arguments and errors as `fit_power_law`.

    Both sizes must vary apart from each other: along one line of N against D many pairs of exponents fit alike.
    """
    sizes = {"num_params": num_params, "num_samples": num_samples}
    fit = _fit(loss, sizes, offset=offset, num_bootstrap=num_bootstrap, seed=seed, huber=huber, groups=groups)
    E, log_A, alpha, log_B, beta = map(float, fit.point_P)
    return JointLaw(
        E=E,
        A=math.exp(log_A),
        alpha=alpha,
        B=math.exp(log_B),
        beta=beta,
        interval_alpha=fit.interval_of(lambda draws_RP: draws_RP[:, 2]),
        interval_beta=fit.interval_of(lambda draws_RP: draws_RP[:, 4]),
        interval_E=fit.interval_of(lambda draws_RP: draws_RP[:, 0]) if offset else None,
        optimal_exponent=beta / (alpha + beta),
        interval_optimal_exponent=fit.interval_of(lambda draws_RP: draws_RP[:, 4] / (draws_RP[:, 2] + draws_RP[:, 4])),
        draws_R5=fit.draws_RP,
        **fit.about(),
    )


def pareto(cost: ArrayLike, loss: ArrayLike) -> list[int]:
    """Indices of the points that no other one beats: none costs as little or less and has a lower or equal loss; by rising cost.

    Of points alike in both the first one is kept. UserError for values that are not finite and lists that are not equally long.
    """
    cost_N, loss_N = (np.asarray(values, dtype=np.float64).ravel() for values in (cost, loss))
    if len(cost_N) != len(loss_N):
        raise UserError(f"cost: {len(cost_N)} values beside {len(loss_N)} losses; give one of each for a point")
    if not (np.isfinite(cost_N).all() and np.isfinite(loss_N).all()):
        raise UserError("cost, loss: a value is not finite; leave such points out")
    found: list[int] = []
    for i in np.lexsort((loss_N, cost_N)):
        if not found or loss_N[i] < loss_N[found[-1]]:
            found.append(int(i))
    return found
