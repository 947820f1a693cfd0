"""Bootstrap over runs: how often each resample holds each point, and percentile intervals."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from pretrain.types import UserError

Interval = tuple[float, float]

LEVEL = 0.95


def counts(n: int, groups: Sequence[Hashable] | None, *, num_bootstrap: int, seed: int) -> np.ndarray:
    """How often each resample holds each point, float64[R, N]: points, or groups as a whole, drawn with replacement."""
    if num_bootstrap < 0:
        raise UserError(f"num_bootstrap: {num_bootstrap}; give 0 (no intervals) or more, 1,000 is usual")
    if groups is None:
        groups = range(n)
    if len(groups) != n:
        raise UserError(f"groups: {len(groups)} for {n} points; give one for each point")
    names = list(dict.fromkeys(groups))
    if len(names) < 2 and num_bootstrap:
        raise UserError(
            f"groups: all points are of {names[0]!r}; resamples need at least 2 groups, or num_bootstrap: 0"
        )
    group_N = np.array([names.index(group) for group in groups])
    rng = np.random.default_rng(seed)
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num_bootstrap)[:, group_N].astype(
        float
    )


def percentiles(draws: np.ndarray | None, *, num_drawn: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Ends of the 95% interval over the first axis; None without draws.

    Expanded percentiles (Hesterberg 2015): the plain ones are too narrow for few runs, by sqrt((n - 1) / n) and by the normal
    quantile in place of Student's.

    Args:
        draws: one for each resample.
        num_drawn: n, the runs or groups that a resample drew from.
    """
    if draws is None or not len(draws):
        return None
    t = student.ppf((1 + LEVEL) / 2, num_drawn - 1) * math.sqrt(num_drawn / (num_drawn - 1))
    tail = float(norm.sf(t))
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return low, high


def interval(draws_R: np.ndarray | None, *, num_drawn: int) -> Interval | None:
    """`percentiles` of one number."""
    ends = percentiles(draws_R, num_drawn=num_drawn)
    return None if ends is None else (float(ends[0]), float(ends[1]))
