"""Comparisons over seeds: means, paired differences with their t intervals, and what a claim comes to by them.

Values of a seed are paired, since the seed fixes data order, initialisation and draws of both runs. All intervals and tests take
the differences for independent and normal, which a handful of seeds can not check.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student

from pretrain.types import UserError

Outcome = Literal["supported", "contradicted", "not resolved", "not run"]  # as benchmarks.tables.Verdict.outcome
Interval = tuple[float, float]

LEVEL = 0.95
#: Of each of the two one-sided tests of equivalence: both hold where the 90% interval lies inside the margin (Schuirmann 1987).
TOST_ALPHA = 0.05
POWER = 0.8
#: Differences that are this close together, in terms of the values they were taken of, differ by rounding only.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Summary:
    """Values over seeds, in the unit of the values.

    Attributes:
        mean: of them.
        std: their deviation (n - 1); None for one value.
        n: how many.
    """

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Paired difference, own - base, over seeds, in the unit of the values.

    Attributes:
        mean: over pairs.
        std: deviation of the differences (n - 1); None for one pair, 0 where all differences are equal but for rounding.
        n: pairs.
        interval: 95% t interval of the mean; None for one pair, a single point where `std` is 0.
        detectable: smallest true difference (its size) that the two-sided paired t test at 5% finds with 80% power at this n, if
            `std` is the true deviation; None for one pair.
        seeds: of the pairs, sorted.
        unpaired: seeds that only one of both sides has, sorted; they are in no other number here.
    """

    mean: float
    std: float | None
    n: int
    interval: Interval | None
    detectable: float | None
    seeds: tuple[int, ...]
    unpaired: tuple[int, ...] = ()


@dataclass(frozen=True)
class ClaimRule:
    """What a claim says about the difference, stated before the runs.

    Attributes:
        expect: "higher" or "lower" than the base by more than `margin`, or "equal" to it within `margin`.
        margin: in the unit of the values; at least 0, above 0 for "equal".

    Raises:
        UserError: for another word or margin.
    """

    expect: Literal["higher", "lower", "equal"]
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.expect not in ("higher", "lower", "equal"):
            raise UserError(f'expect: {self.expect!r} is none of "higher", "lower", "equal"')
        if self.expect == "equal" and not 0 < self.margin < math.inf:
            raise UserError(
                f"margin: {self.margin} with expect: equal; give the largest difference that counts as none, above 0"
            )
        if not 0 <= self.margin < math.inf:
            raise UserError(f"margin: {self.margin} with expect: {self.expect}; give 0 or more")


def _finite(values: Iterable[float], what: str) -> np.ndarray:
    array_N = np.asarray(list(values), dtype=np.float64)
    if not np.isfinite(array_N).all():
        raise UserError(
            f"{what}: {array_N[~np.isfinite(array_N)][0]} is among the values; only finite numbers have a mean"
        )
    return array_N


def summarise(values: Sequence[float]) -> Summary:
    """Mean, deviation (n - 1) and n. UserError for no values and for values that are not finite."""
    array_N = _finite(values, "summary")
    n = len(array_N)
    if n == 0:
        raise UserError("summary: there are no values; give at least one")
    return Summary(float(array_N.mean()), float(array_N.std(ddof=1)) if n > 1 else None, n)


def _t_interval(mean: float, std: float, n: int, level: float) -> Interval:
    half = float(student.ppf((1 + level) / 2, n - 1)) * std / math.sqrt(n)
    return mean - half, mean + half


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> Interval | None:
    """Student's t interval of the mean; None for one value. UserError as `summarise`."""
    summary = summarise(values)
    return None if summary.std is None else _t_interval(summary.mean, summary.std, summary.n, level)


@lru_cache(maxsize=256)
def detectable_effect(n: int) -> float:
    """Smallest true mean of n differences, in units of their deviation, that a two-sided t test at 5% finds with 80% power.

    Exact: under a true mean d the statistic follows the noncentral t distribution with n - 1 degrees and noncentrality d sqrt(n).

    Args:
        n: at least 2.

    Raises:
        UserError: for fewer.
    """
    if n < 2:
        raise UserError(f"n: {n}; a t test needs at least 2 differences")
    critical = student.ppf((1 + LEVEL) / 2, n - 1)

    def lack(noncentrality: float) -> float:
        # the lower tail as the upper one of the mirrored distribution: scipy 1.17's nct.cdf(-critical, ...) is NaN at times
        # for n < 4
        return float(nct.sf(critical, n - 1, noncentrality) + nct.sf(critical, n - 1, -noncentrality)) - POWER

    # twice the critical value is found with a power of 0.95 and more at any n
    return float(brentq(lack, 1e-6, 2 * critical, xtol=1e-12)) / math.sqrt(n)


def paired_difference(own: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """Difference own - base over the seeds that both have; None where there is no such seed.

    Args:
        own: value by seed.
        base: value by seed.

    Raises:
        UserError: for values that are not finite.
    """
    seeds = tuple(sorted(own.keys() & base.keys()))
    if not seeds:
        return None
    own_N, base_N = (_finite((side[seed] for seed in seeds), "difference") for side in (own, base))
    difference_N = own_N - base_N
    summary, n = summarise(difference_N.tolist()), len(seeds)
    std = summary.std
    if std is not None and np.ptp(difference_N) <= _ROUNDING * max(np.abs(own_N).max(), np.abs(base_N).max()):
        std = 0.0
    return Difference(
        mean=summary.mean,
        std=std,
        n=n,
        interval=None if std is None else _t_interval(summary.mean, std, n, LEVEL),
        detectable=None if std is None else std * detectable_effect(n),
        seeds=seeds,
        unpaired=tuple(sorted(own.keys() ^ base.keys())),
    )


def _p_above(difference: Difference, point: float) -> float:
    """One-sided p value: how likely a mean this high or higher is where the true difference is `point`."""
    assert difference.std
    statistic = (difference.mean - point) / (difference.std / math.sqrt(difference.n))
    return float(student.sf(statistic, difference.n - 1))


def _p_below(difference: Difference, point: float) -> float:
    return _p_above(_mirrored(difference), -point)


def _mirrored(difference: Difference) -> Difference:
    return Difference(-difference.mean, difference.std, difference.n, None, None, difference.seeds)


def p_value(difference: Difference, rule: ClaimRule) -> float | None:
    """What `holm` may be given. None for one pair, and where all differences are equal.

    Returns:
        For "higher" and "lower" the two-sided p value of the t test against a difference of +margin or -margin: below 0.05 where
        `judge` says supported or contradicted. For "equal" the larger one of the two one-sided p values: below 0.05 where it says
        supported.
    """
    if not difference.std:
        return None
    if rule.expect == "equal":
        return max(_p_above(difference, -rule.margin), _p_below(difference, rule.margin))
    point = rule.margin if rule.expect == "higher" else -rule.margin
    return min(1.0, 2 * min(_p_above(difference, point), _p_below(difference, point)))


def judge(difference: Difference | None, rule: ClaimRule) -> tuple[Outcome, str]:
    """What a claim comes to, and why in one line.

    With the 95% t interval (low, high) of the difference own - base and the margin m:

    - "higher": supported if low > m, contradicted if high < m, else not resolved. With m > 0 a difference that is surely above 0
      and surely below m contradicts the claim.
    - "lower": supported if high < -m, contradicted if low > -m, else not resolved.
    - "equal": supported if both one-sided t tests at 5% reject, which is the 90% t interval inside (-m, m); contradicted if the
      95% interval lies outside [-m, m] (low > m or high < -m); else not resolved. A difference that is surely not 0 and surely
      smaller than m supports the claim.
    - one pair: not resolved. No pair (None): not run.
    - equal differences: not resolved. They come of numbers that do not move, at a floor or counted in coarse steps, and tell
      nothing of other seeds.
    """
    if difference is None:
        return "not run", "no seed was run on both sides"
    if difference.std is None or difference.interval is None:
        return "not resolved", f"difference {difference.mean:+.3g}, n = {difference.n}: one seed shows no deviation"
    if difference.std == 0:
        return "not resolved", f"difference {difference.mean:+.3g}, n = {difference.n}: all differences are equal"
    (low, high), m = difference.interval, rule.margin
    if rule.expect == "equal":
        low90, high90 = _t_interval(difference.mean, difference.std, difference.n, 1 - 2 * TOST_ALPHA)
        supported, contradicted = -m < low90 and high90 < m, low > m or high < -m
    elif rule.expect == "higher":
        supported, contradicted = low > m, high < m
    else:
        supported, contradicted = high < -m, low > -m
    outcome: Outcome = "supported" if supported else "contradicted" if contradicted else "not resolved"
    return outcome, _evidence(difference, rule)


def _evidence(difference: Difference, rule: ClaimRule) -> str:
    assert difference.std is not None
    assert difference.interval is not None
    low, high = difference.interval
    parts = [f"difference {difference.mean:+.3g} (95% interval {low:+.3g} to {high:+.3g})", f"n = {difference.n}"]
    if rule.expect == "equal":
        low90, high90 = _t_interval(difference.mean, difference.std, difference.n, 1 - 2 * TOST_ALPHA)
        above, below = _p_above(difference, -rule.margin), _p_below(difference, rule.margin)
        parts.append(f"90% interval {low90:+.3g} to {high90:+.3g}")
        parts.append(
            f"p = {above:.2g} against {-rule.margin:+.3g} and {below:.2g} against {rule.margin:+.3g}, one-sided"
        )
    else:
        point = rule.margin if rule.expect == "higher" else -rule.margin
        against = f" against {point:+.3g}" if point else ""
        parts.append(f"p = {p_value(difference, rule):.2g}{against}")
    if difference.unpaired:
        parts.append(f"left out, on one side only: seeds {', '.join(map(str, difference.unpaired))}")
    return "; ".join(parts)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values of several claims (Holm 1979), in the order given: those below 0.05 hold together at 5%.

    The k-th smallest of m is multiplied by m - k + 1; none is smaller than the one before it, none above 1.

    Raises:
        UserError: for a p value outside 0..1.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise UserError(f"p value: {p}; give numbers in 0..1")
    adjusted, largest, m = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, place in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (m - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
