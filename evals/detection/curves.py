"""Curves of detection: precision over recall, and AP over training.

Shape letters: R levels of recall, K classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evals.detection.coco_eval import CocoScores
from pretrain.files import atomic_file
from pretrain.types import UserError

#: Told apart with any kind of colour vision (Wong 2011).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_INK, _FAINT, _GRID = "#1c1e21", "#6b7178", "#e3e6e8"
_DPI = 120
_RECALL = np.linspace(0, 1, 101)
#: In inches.
_PANEL, _HEIGHT, _MAX_PANELS = 3.1, 3.3, 3


def draw_precision_recall(path: str | Path, scores: Mapping[str, CocoScores], *, title: str = "") -> Path:
    """Precision over recall at overlap .50: a panel each, with its classes faint, their mean bold, and the others' means dotted.

    Args:
        path: the PNG to write.
        scores: by what they are of, e.g. the encoder's name.
        title: above all.

    Raises:
        UserError: nothing to draw.
    """
    if not scores:
        raise UserError("precision-recall curves: no scores to draw; give one or more")
    columns = min(len(scores), _MAX_PANELS)
    rows = -(-len(scores) // columns)
    figure, axes = _panels(rows, columns, title)
    means = {label: _mean_curve(one.precision_RK) for label, one in scores.items()}
    for number, (label, one) in enumerate(scores.items()):
        axis, color = axes[number], COLORS[number % len(COLORS)]
        for other, curve_R in means.items():
            if other != label and curve_R is not None:
                axis.plot(_RECALL, curve_R, color=_FAINT, linewidth=1.2, linestyle=":")
        for curve_R in one.precision_RK.T:
            axis.plot(_RECALL, curve_R, color=color, linewidth=0.8, alpha=0.35)
        if (curve_R := means[label]) is not None:
            axis.plot(_RECALL, curve_R, color=color, linewidth=2.2)
        ap50 = "no objects" if one.ap50 is None else f"AP50 {one.ap50:.1f}"
        _heading(axis, label, f"{one.kind}: {ap50}")
        axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall")
        if number % columns == 0:
            axis.set_ylabel("precision")
    for axis in axes[len(scores) :]:
        axis.set_visible(False)
    note = "at overlap .50; bold: mean of the classes, faint: each class" + (
        "; dotted: the others" if len(scores) > 1 else ""
    )
    return _write(figure, path, note)


def draw_learning_curves(
    path: str | Path,
    curves: Mapping[str, Sequence[tuple[float, float | None, float | None]]],
    *,
    chance: tuple[float, float] | None = None,
    progress: str = "epoch",
    title: str = "",
) -> Path:
    """AP and AP50 over training, a line each.

    Args:
        path: the PNG to write.
        curves: by what they are of: points of (step or epoch, AP, AP50) in percent; None where there was no object.
        chance: AP and AP50 of detections that have not looked at the picture.
        progress: what the points' first number is.
        title: above all.

    Raises:
        UserError: no points.
    """
    if not any(curves.values()):
        raise UserError("learning curves: no points to draw; give one or more")
    figure, axes = _panels(1, 2, title)
    for place, (axis, name) in enumerate(zip(axes, ("AP", "AP50"), strict=True), start=1):
        for number, (label, points) in enumerate(curves.items()):
            height = [np.nan if point[place] is None else point[place] for point in points]
            axis.plot(
                [point[0] for point in points],
                height,
                color=COLORS[number % len(COLORS)],
                linewidth=2,
                marker="o",
                markersize=3.5,
                label=label,
            )
        if chance is not None:
            axis.axhline(chance[place - 1], color=_FAINT, linewidth=1.2, linestyle="--", label="chance (picture-blind)")
        _heading(axis, name, "percent")
        axis.set(xlabel=progress, ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    # one legend for both panels, below them, where no line runs
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize=8, frameon=False)
    return _write(figure, path)


def _mean_curve(precision_RK: np.ndarray) -> np.ndarray | None:
    """[R], over the classes that have objects."""
    present_RK = precision_RK[:, ~np.isnan(precision_RK[0])]
    return present_RK.mean(1) if present_RK.size else None


def _panels(rows: int, columns: int, title: str) -> tuple[Figure, list[Axes]]:
    width = max(_PANEL * columns, 4.5)
    figure = Figure(figsize=(width, _HEIGHT * rows + 0.3), dpi=_DPI, facecolor="white", layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11, color=_INK, weight="bold", x=0.02, ha="left", parse_math=False)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.grid(color=_GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8, color=_FAINT, labelcolor=_INK)
        axis.xaxis.label.set(fontsize=8.5, color=_INK)
        axis.yaxis.label.set(fontsize=8.5, color=_INK)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(_FAINT)
    return figure, axes


def _heading(axis: Axes, name: str, value: str) -> None:
    name = name if len(name) <= 34 else "…" + name[-33:]  # the end tells runs apart
    axis.set_title(f"{name}\n{value}", fontsize=9, color=_INK, loc="left", parse_math=False)


def _write(figure: Figure, path: str | Path, note: str = "") -> Path:
    if note:
        figure.supxlabel(note, fontsize=8, color=_FAINT, x=0.02, ha="left")
    with atomic_file(path) as file:
        figure.savefig(file, format="png")
    return Path(path)
