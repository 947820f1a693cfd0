"""Cells of tables."""

from collections.abc import Sequence

import numpy as np

from evals.results import EvalResult


def cell(rows: Sequence[EvalResult]) -> str:
    """Of several seeds mean, deviation and their number; of one the value and its interval, where it has one; else a dash."""
    values = [row.value for row in rows]
    if not values:
        return "-"
    if len(values) > 1:
        return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}\n[dim]{len(values)} seeds[/dim]"
    interval = rows[0].interval
    return f"{values[0]:.1f}" + (f"\n[dim]{interval[0]:.1f}-{interval[1]:.1f}[/dim]" if interval else "")
