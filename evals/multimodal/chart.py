"""Charts of a comparison: percent by kind of question with intervals, and losses over training."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from evals.detection.sheet import FAINT, INK, MARGIN, Sheet
from evals.multimodal.draw import printable, shorten, text_width
from pretrain.types import UserError

#: Task, kind, label, percent, its 95% interval, number of examples.
Row = tuple[str, str, str, float, tuple[float, float], int]

#: Told apart with any kind of colour vision (Wong 2011); markers and strokes tell the same.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS, _STROKES = "osD^vP", ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 3)))
_GRID, _CHANCE = "#e3e6e8", (0, (3, 2))
#: In points.
_TITLE, _SIZE = 11, 8
#: In inches: a chart's width; the columns of names and of numbers beside it; a line of a group, its name above its count, space
#: between groups, a task's heading, a line of the legend and what its sign takes; what stands above and below; the height of a
#: plot of losses.
_WIDTH, _NAMES, _NUMBERS = 7.6, 1.75, 1.5
_LINE, _NAME, _BETWEEN, _TASK, _KEY, _HANDLE = 0.19, 0.29, 0.19, 0.26, 0.19, 0.7
_ABOVE, _BELOW, _PLOT = 0.42, 0.5, 2.9
#: Curves of more points than this are drawn faint, below the mean over a part of them.
_MANY_POINTS, _WINDOW_SHARE = 100, 25
#: Each point is marked up to here, since one between two gaps would not be seen.
_FEW_POINTS = 20


def draw_by_kind(
    path: str | Path, rows: Sequence[Row], *, title: str, chance: Mapping[tuple[str, str], float] | None = None
) -> Path:
    """Percent with its interval, a group of lines for each kind of each task.

    Args:
        path: the PNG to write.
        rows: (task, kind, label, percent, (low, high), n); tasks, kinds and labels keep their order.
        title: above all.
        chance: percent that a baseline reaches, by (task, kind); a dashed line through its group.

    Raises:
        UserError: no rows, one that is no finite number, or two of one task, kind and label.
    """
    tasks = _by_task(rows)
    labels, chance = list(dict.fromkeys(row[2] for row in rows)), chance or {}
    # in inches from the top of the plot
    y, headings, names, points, dashes = 0.04, [], [], [], []
    for task, kinds in tasks.items():
        if len(tasks) > 1:
            headings.append((y, task))
            y += _TASK
        for kind, own in kinds.items():
            tall = max(_NAME, len(own) * _LINE)
            top = y + (tall - len(own) * _LINE) / 2
            names.append((y + tall / 2, kind, _count([row[5] for row in own])))
            points += [(top + (place + 0.5) * _LINE, row) for place, row in enumerate(own)]
            if (task, kind) in chance:
                dashes.append((y, y + tall, chance[task, kind]))
            y += tall + _BETWEEN
    height = y - _BETWEEN + 0.1
    keys = {
        label: Line2D([], [], color=_color(place), marker=_marker(place), markersize=5.5, linewidth=1.6)
        for place, label in enumerate(labels)
    }
    if dashes:
        keys["chance"] = Line2D([], [], color=INK, linewidth=1.2, linestyle=_CHANCE)
    sheet, axis = _plot(title, height=height, keys=keys, left=MARGIN + _NAMES, right=_NUMBERS)
    for middle, (_, _, label, percent, interval, _) in points:
        _draw_point(axis, middle, percent, interval, labels.index(label))
        words = f"{percent:.1f}  ({interval[0]:.1f} to {interval[1]:.1f})"
        sheet.text(_WIDTH - _NUMBERS + 0.1, _ABOVE + middle - 0.06, words, size=_SIZE)
    for first, last, percent in dashes:
        axis.plot([percent] * 2, [first, last], color=INK, linewidth=1.2, linestyle=_CHANCE)
    for top, task in headings:
        name = shorten(printable(task), _NAMES - 0.1, size=_SIZE + 0.5, bold=True)
        sheet.text(MARGIN, _ABOVE + top + 0.04, name, size=_SIZE + 0.5, bold=True)
    for middle, kind, count in names:
        top = _ABOVE + middle - _NAME / 2
        sheet.text(MARGIN, top, shorten(printable(kind or "all"), _NAMES - 0.1, size=_SIZE), size=_SIZE)
        sheet.text(MARGIN, top + _NAME / 2, count, size=_SIZE - 0.5, color=FAINT)
    highest = max(max(percent, interval[1]) for _, (_, _, _, percent, interval, _) in points)
    axis.set(ylim=(height, 0), xlim=(0, 1.03 * max(highest, 1.0, *(dash[2] for dash in dashes))), yticks=[])
    axis.set_xlabel("percent, with its 95% interval", fontsize=_SIZE, color=INK)
    axis.grid(axis="x", color=_GRID, linewidth=0.8)
    return sheet.write(path)


def draw_learning(path: str | Path, curves: Mapping[str, Sequence[tuple[int, float]]], *, title: str) -> Path:
    """Loss over steps, a line each; many points are drawn faint, below their running mean. What is no number leaves a gap.

    Args:
        path: the PNG to write.
        curves: (step, loss) by label.
        title: above all.

    Raises:
        UserError: no points.
    """
    finite = [math.isfinite(loss) for points in curves.values() for _, loss in points]
    if not any(finite):
        raise UserError(f"{path}: there are no losses to draw; give one or more")
    keys = {
        label: Line2D([], [], color=_color(number), linestyle=_stroke(number), linewidth=1.8)
        for number, label in enumerate(curves)
    }
    sheet, axis = _plot(title, height=_PLOT, keys=keys, left=0.65, right=MARGIN + 0.1)
    smooth = False
    for number, points in enumerate(curves.values()):
        step_S, loss_S = np.array([point[0] for point in points]), np.array([point[1] for point in points], dtype=float)
        loss_S[~np.isfinite(loss_S)] = np.nan
        style = dict(color=_color(number), linestyle=_stroke(number))
        if len(points) > _MANY_POINTS:
            smooth = True
            axis.plot(step_S, loss_S, color=_color(number), linewidth=0.7, alpha=0.3)
            axis.plot(step_S, running_mean(loss_S, max(2, len(points) // _WINDOW_SHARE)), linewidth=1.8, **style)
        else:
            marker = _marker(number) if len(points) <= _FEW_POINTS else None
            axis.plot(step_S, loss_S, linewidth=1.8, marker=marker, markersize=4, **style)
    axis.set_ylim(0, None)
    axis.margins(x=0.02)
    axis.set_xlabel("step", fontsize=_SIZE, color=INK)
    axis.set_ylabel("loss (bold: running mean)" if smooth else "loss", fontsize=_SIZE, color=INK)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axis.grid(color=_GRID, linewidth=0.8)
    return sheet.write(path)


def read_losses(folder: str | Path, *, column: str = "train/loss") -> list[tuple[int, float]]:
    """(step, loss) from the metrics.csv of Lightning's CSVLogger; a loss that came out as nan or inf is among them.

    Args:
        folder: of the training; what earlier attempts have logged is read too (metrics_1.csv, ...), later ones win.
        column: of the loss.

    Raises:
        UserError: no file, no such column, or a value that is no number.
    """
    latest = Path(folder) / "metrics.csv"
    if not latest.is_file():
        raise UserError(f"{latest}: no such file; give the folder that a training has logged to")
    earlier = [path for path in latest.parent.glob("metrics_*.csv") if path.stem.removeprefix("metrics_").isdigit()]
    losses: dict[int, float] = {}
    for path in [*sorted(earlier, key=lambda one: int(one.stem.removeprefix("metrics_"))), latest]:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if missing := {column, "step"} - set(reader.fieldnames or ()):
                raise UserError(
                    f"{path}: there is no column {min(missing)!r}; it has {', '.join(reader.fieldnames or ()) or 'none'}"
                )
            for row in reader:
                if row[column]:
                    try:
                        losses[int(row["step"])] = float(row[column])
                    except ValueError as error:
                        raise UserError(
                            f"{path} line {reader.line_num}: step {row['step']!r}, {column} {row[column]!r}: both must be numbers"
                        ) from error
    return sorted(losses.items())


def running_mean(value_S: np.ndarray, window: int) -> np.ndarray:
    """[S], of the values up to `window` // 2 places away on either side; fewer at the ends, nan is left out of the mean."""
    half = window // 2
    padded_S = np.concatenate([np.full(half, np.nan), value_S, np.full(half, np.nan)])
    window_SW = np.lib.stride_tricks.sliding_window_view(padded_S, 2 * half + 1)
    known_S = np.isfinite(window_SW).sum(1)
    return np.where(np.isfinite(value_S), np.nansum(window_SW, axis=1) / np.maximum(known_S, 1), np.nan)


def _by_task(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Rows by task and kind, in their order."""
    if not rows:
        raise UserError("accuracy by kind: there are no rows to draw; give one or more")
    tasks: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        task, kind, label, percent, interval, _ = row
        own = tasks.setdefault(task, {}).setdefault(kind, [])
        if any(other[2] == label for other in own):
            raise UserError(f"accuracy by kind: {task}, {kind or 'all'}, {label} is there twice; give each once")
        if not all(map(math.isfinite, (percent, *interval))):
            raise UserError(
                f"accuracy by kind: {task}, {kind or 'all'}, {label} is {percent} ({interval[0]} to {interval[1]}); finite "
                "numbers are wanted"
            )
        own.append(row)
    return tasks


def _count(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"n = {low:,}" if low == high else f"n = {low:,} to {high:,}"


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]


def _stroke(number: int) -> str | tuple:
    # beyond the colours each stroke serves again with another colour
    return _STROKES[(number + number // len(_COLORS)) % len(_STROKES)]


def _marker(number: int) -> str:
    return _MARKERS[(number + number // len(_COLORS)) % len(_MARKERS)]


def _draw_point(axis: Axes, y: float, percent: float, interval: tuple[float, float], number: int) -> None:
    axis.plot(interval, [y, y], color=_color(number), linewidth=1.6, solid_capstyle="butt")
    axis.plot([percent], [y], color=_color(number), marker=_marker(number), markersize=5.5, linestyle="none")


def _plot(title: str, *, height: float, keys: Mapping[str, Line2D], left: float, right: float) -> tuple[Sheet, Axes]:
    """A sheet with a title, empty axes that are `height` inches tall, and a legend below them."""
    room = _WIDTH - 2 * MARGIN
    names = [shorten(printable(key), room - _HANDLE, size=_SIZE, end=True) for key in keys]  # the end tells runs apart
    widest = max(text_width(name, size=_SIZE) for name in names) + _HANDLE
    columns = max(1, min(len(names), int(room / widest)))
    below = _BELOW + _KEY * -(-len(names) // columns)
    sheet = Sheet(width=_WIDTH, height=_ABOVE + height + below + MARGIN)
    words = shorten(printable(title), room, size=_TITLE, bold=True)
    sheet.text(MARGIN, MARGIN, words, size=_TITLE, bold=True)
    box = (left / _WIDTH, 1 - (_ABOVE + height) / sheet.height, (_WIDTH - left - right) / _WIDTH, height / sheet.height)
    axis = sheet.figure.add_axes(box)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=_SIZE, color=FAINT, labelcolor=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(FAINT)
    legend = sheet.figure.legend(
        list(keys.values()),
        names,
        loc="upper left",
        bbox_to_anchor=(MARGIN / _WIDTH, 1 - (_ABOVE + height + _BELOW) / sheet.height),
        borderaxespad=0,
        borderpad=0,
        ncols=columns,
        fontsize=_SIZE,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set(parse_math=False, color=INK)
    return sheet, axis
