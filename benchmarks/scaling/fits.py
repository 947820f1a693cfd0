"""Power laws through the rows of a scaling study, and why there is none where the points do not determine one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.power_law import JointLaw, PowerLaw, fit_joint, fit_power_law, pareto
from benchmarks.scaling.rows import NumberedRow, ScalingRow
from pretrain.types import UserError

#: Points that a fit needs here, beyond what determines it: with an offset (3 parameters), without (2), jointly (5).
MIN_OFFSET, MIN_PLAIN, MIN_JOINT = 5, 3, 8
NUM_BOOTSTRAP = 1000
#: Cool-downs of one trunk share its luck: a bootstrap draws trunks where there are so many, and points where there are fewer.
MIN_TRUNKS = 4


@dataclass(frozen=True)
class Fit:
    """A fit of one loss.

    Attributes:
        metric: loss without "val/".
        kind: "samples", "params", "flops" or "joint".
        label: what was held fixed, e.g. a size's name or a budget.
        law: None where there is none.
        note: how it was fitted, or why there is no fit.
        rows: whose points it goes through, in the order of the points.
        x: of the points; empty for a joint fit.
        y: losses of the points.
    """

    metric: str
    kind: str
    label: str
    law: PowerLaw | JointLaw | None
    note: str
    rows: tuple[NumberedRow, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]


def usable(rows: Sequence[NumberedRow], metric: str, cost: Callable[[ScalingRow], float | None]) -> list[NumberedRow]:
    """Rows with a loss and a cost that a logarithm can be taken of."""

    def good(value: float | None) -> bool:
        return value is not None and bool(np.isfinite(value)) and value > 0

    return [one for one in rows if good(one.row.val.get(metric)) and good(cost(one.row))]


def frontier(rows: Sequence[NumberedRow], metric: str, cost: Callable[[ScalingRow], float | None]) -> list[NumberedRow]:
    """Rows that no other one beats in cost and loss, by rising cost."""
    rows = usable(rows, metric, cost)
    return (
        [rows[k] for k in pareto([cost(one.row) for one in rows], [one.row.val[metric] for one in rows])]
        if rows
        else []
    )


def _fit(
    kind: str, label: str, rows: Sequence[NumberedRow], metric: str, cost: Callable[[ScalingRow], float | None]
) -> Fit:
    rows = usable(rows, metric, cost)
    x, y = [float(cost(one.row)) for one in rows], [one.row.val[metric] for one in rows]
    law, note = _power_law(x, y, _trunks(rows))
    return Fit(metric, kind, label, law, note, tuple(rows), tuple(x), tuple(y))


def _trunks(rows: Sequence[NumberedRow]) -> list[tuple[str, int]] | None:
    """The trunk of each row; None where there are too few to draw from."""
    trunks = [(one.row.size, one.row.seed) for one in rows]
    return trunks if len(set(trunks)) >= MIN_TRUNKS else None


def _power_law(
    x: Sequence[float], y: Sequence[float], trunks: Sequence[tuple[str, int]] | None
) -> tuple[PowerLaw | None, str]:
    """With an offset where the points allow it, else without one; None and the reason where neither can be fitted."""
    different = len(set(x))
    if different < MIN_PLAIN:
        return None, f"not fitted: {different} different values, at least {MIN_PLAIN} are needed"
    why = f"E = 0 was assumed: {different} different values, E needs {MIN_OFFSET}"
    if different >= MIN_OFFSET:
        try:
            law = fit_power_law(x, y, groups=trunks, num_bootstrap=NUM_BOOTSTRAP)
            return law, law.method
        except UserError as error:
            why = f"E = 0 was assumed: with E, {error}"
    try:
        law = fit_power_law(x, y, offset=False, groups=trunks, num_bootstrap=NUM_BOOTSTRAP)
    except UserError as error:
        return None, f"not fitted: {error}"
    return law, f"{why}; {law.method}"


def _joint(rows: Sequence[NumberedRow], metric: str) -> Fit:
    rows = usable(rows, metric, lambda row: row.samples_seen)
    sizes, samples = [one.row.encoder_params for one in rows], [one.row.samples_seen for one in rows]
    y, law = [one.row.val[metric] for one in rows], None
    pairs = len(set(zip(sizes, samples, strict=True)))
    note = f"not fitted: {pairs} pairs of size and samples, at least {MIN_JOINT} are needed, with 3 sizes and 3 budgets"
    if pairs >= MIN_JOINT and min(len(set(sizes)), len(set(samples))) >= 3:
        try:
            law = fit_joint(sizes, samples, y, groups=_trunks(rows), num_bootstrap=NUM_BOOTSTRAP)
            note = law.method
        except UserError as error:
            note = f"not fitted: {error}"
    return Fit(metric, "joint", "all", law, note, tuple(rows), (), tuple(y))


def all_fits(rows: Sequence[NumberedRow], metric: str) -> list[Fit]:
    """Loss against samples for each size, against parameters at each budget, against FLOPs along the frontier, and jointly."""
    by_params = sorted(rows, key=lambda one: one.row.encoder_params)
    sizes = dict.fromkeys(one.row.size for one in by_params)
    fits = [
        _fit("samples", size, [one for one in rows if one.row.size == size], metric, lambda row: row.samples_seen)
        for size in sizes
    ]
    for budget in sorted({one.row.budget for one in rows}):
        here = [one for one in by_params if one.row.budget == budget]
        fits.append(_fit("params", f"{budget:,} samples", here, metric, lambda row: row.encoder_params))
    best = frontier(rows, metric, lambda row: row.training_flops)
    fits.append(_fit("flops", "frontier", best, metric, lambda row: row.training_flops))
    return [*fits, _joint(rows, metric)]
