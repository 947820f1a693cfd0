"""Pictures of a scaling study as SVG: loss against samples, loss against FLOPs with its frontier, cost against quality."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.output import to_svg
from benchmarks.power_law import PowerLaw
from benchmarks.scaling.fits import Fit, frontier, usable
from benchmarks.scaling.rows import NumberedRow, ScalingRow
from benchmarks.tables import Figure

_CURVE_POINTS = 100
#: As many budgets as have room for a tick each.
_TICKS = 6


def sizes_of(rows: Sequence[NumberedRow]) -> list[str]:
    """Names of sizes by rising number of encoder parameters."""
    return list(dict.fromkeys(one.row.size for one in sorted(rows, key=lambda one: one.row.encoder_params)))


def _compact(value: float, _: object = None) -> str:
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{letter}" if value < 1000 * factor else f"{value:.0e}"
    return f"{value:g}"


def _log_axes(axis: Axes, *, x_label: str, y_label: str) -> None:
    axis.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
    axis.xaxis.set_major_formatter(FuncFormatter(_compact))
    axis.xaxis.set_minor_formatter(NullFormatter())
    # losses span less than a decade: label 1, 2, 3, ... of each
    axis.yaxis.set_major_locator(LogLocator(subs=range(1, 10)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3, which="both")


def _draw_law(axis: Axes, law: PowerLaw, x: Sequence[float], color: str) -> None:
    """The curve over the range of its points, with the 95% interval of the curve where there is one."""
    x_P = np.geomspace(min(x), max(x), _CURVE_POINTS)
    curve = law.predict(x_P)
    axis.plot(x_P, curve.value, color=color, lw=1)
    if curve.low is not None and curve.high is not None:
        axis.fill_between(x_P, np.maximum(curve.low, 1e-12), curve.high, color=color, alpha=0.12, lw=0)


def _figure(canvas: Canvas, name: str, caption: str) -> Figure:
    """As a file that is the same for the same numbers: no date, ids from the figure's name, text as text."""
    return Figure(name, caption, to_svg(canvas, {"svg.hashsalt": name, "svg.fonttype": "none"}))


def _cloud(axis: Axes, rows: Sequence[NumberedRow], metric: str, cost: Callable[[ScalingRow], float | None]) -> None:
    for number, size in enumerate(sizes_of(rows)):
        own = usable([one for one in rows if one.row.size == size], metric, cost)
        x, y = [cost(one.row) for one in own], [one.row.val[metric] for one in own]
        axis.plot(x, y, "o", color=f"C{number}", ms=4, label=size)


def _loss_panels(
    rows: Sequence[NumberedRow],
    metrics: Sequence[str],
    *,
    cost: Callable[[ScalingRow], float | None],
    x_label: str,
    draw: Callable[[Axes, str], None],
) -> Canvas:
    """Losses against a cost, one panel for each metric, one colour for each size; `draw` adds what a panel shows besides."""
    canvas = Canvas(figsize=(5.2 * len(metrics), 3.8), layout="constrained")
    for axis, metric in zip(np.atleast_1d(canvas.subplots(1, len(metrics))), metrics, strict=True):
        _cloud(axis, rows, metric, cost)
        _log_axes(axis, x_label=x_label, y_label=f"val/{metric}")
        draw(axis, metric)
        axis.legend(fontsize=8)
    return canvas


def samples_figure(rows: Sequence[NumberedRow], fits: Sequence[Fit], *, study: str, metrics: Sequence[str]) -> Figure:
    """Loss against samples, with each size's law."""
    budgets = sorted({one.row.samples_seen for one in rows})

    def draw(axis: Axes, metric: str) -> None:
        for number, size in enumerate(sizes_of(rows)):
            for fit in fits:
                if (fit.metric, fit.kind, fit.label) == (metric, "samples", size) and isinstance(fit.law, PowerLaw):
                    _draw_law(axis, fit.law, fit.x, f"C{number}")
        if len(budgets) <= _TICKS:
            axis.set_xticks(budgets)

    canvas = _loss_panels(rows, metrics, cost=lambda row: row.samples_seen, x_label="samples seen", draw=draw)
    caption = (
        f"{study}: validation loss against samples seen, by size. Points: runs (trunk and cool-down), one for each seed; "
        "lines: fitted power laws within the range of their points, shaded: 95% interval of the curve. Both axes are logarithmic."
    )
    return _figure(canvas, f"scaling_{study}_samples", caption)


def flops_figure(rows: Sequence[NumberedRow], fits: Sequence[Fit], *, study: str, metrics: Sequence[str]) -> Figure:
    """Loss against FLOPs of training, with the frontier and the law along it."""

    def cost(row: ScalingRow) -> float | None:
        return row.training_flops

    def draw(axis: Axes, metric: str) -> None:
        best = frontier(rows, metric, cost)
        x, y = [one.row.training_flops for one in best], [one.row.val[metric] for one in best]
        axis.plot(x, y, "s", mfc="none", mec="black", ms=8, label="frontier")
        for fit in fits:
            if (fit.metric, fit.kind) == (metric, "flops") and isinstance(fit.law, PowerLaw):
                _draw_law(axis, fit.law, fit.x, "black")

    canvas = _loss_panels(rows, metrics, cost=cost, x_label="FLOPs of training", draw=draw)
    caption = (
        f"{study}: validation loss against FLOPs of training. Squares: runs that no other one beats in both; line: the power law "
        "fitted through them, shaded: its 95% interval. The frontier is one of noisy losses: it lies a little too low."
    )
    return _figure(canvas, f"scaling_{study}_flops", caption)


def cost_figure(rows: Sequence[NumberedRow], *, study: str, metric: str) -> Figure:
    """Cost against quality: seconds and FLOPs of training on linear losses, with the frontier as steps."""
    canvas = Canvas(figsize=(10.4, 3.8), layout="constrained")
    costs = (("seconds of training", lambda row: row.seconds), ("FLOPs of training", lambda row: row.training_flops))
    for axis, (label, cost) in zip(canvas.subplots(1, 2), costs, strict=True):
        _cloud(axis, rows, metric, cost)
        best = frontier(rows, metric, cost)
        x, y = [cost(one.row) for one in best], [one.row.val[metric] for one in best]
        axis.step(x, y, where="post", color="black", lw=1, label="best for the cost")
        axis.set(xscale="log", xlabel=label, ylabel=f"val/{metric}")
        axis.xaxis.set_major_formatter(FuncFormatter(_compact))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    caption = (
        f"{study}: cost against quality. What a run would have cost if it had been trained alone, trunk and cool-down together, "
        "in seconds on the cores that a worker had (left) and in FLOPs (right); the line is the lowest loss that a cost bought."
    )
    return _figure(canvas, f"scaling_{study}_cost", caption)
