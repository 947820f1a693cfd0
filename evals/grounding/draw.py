"""Pictures of grounding: sentences with the box that they mean and the boxes that models answer, and precision over training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from evals.detection.sheet import FAINT, HEADING, INK, LINE, MARGIN, SMALL, Sheet, draw_box, shorten, shown_size
from evals.grounding.expressions import Expression
from evals.grounding.metrics import MIN_IOU
from pretrain.files import atomic_file
from pretrain.types import UserError

#: On pictures: the box that is meant is white, answers are bright. On paper: told apart with any kind of colour vision.
_TRUE = "#ffffff"
_BRIGHT = ("#2f9bff", "#ff8a1c", "#27c46b", "#e05cff", "#ffd02e", "#00d5d5")
_CURVES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GRID = "#e3e6e8"
#: In inches: width of a picture, small or not; gap between two.
_TILE_SMALL, _TILE, _GAP = 1.62, 2.6, 0.2
_ACROSS_SMALL, _ACROSS = 6, 4
_DPI = 120


@dataclass(frozen=True)
class Answered:
    """One sentence on its picture.

    Attributes:
        image: as in its file.
        expression: the sentence and its box.
        boxes: the answer of each model by its name: x0, y0, x1, y1 in pixels, and its IoU; the same names everywhere.
    """

    image: Image.Image
    expression: Expression
    boxes: Mapping[str, tuple[np.ndarray, float]]


def draw_answers(path: str | Path, rows: Sequence[Answered], *, title: str = "", subtitle: str = "") -> Path:
    """Pictures with their sentence, the box that is meant (white) and the answers; small pictures are enlarged as squares.

    Args:
        path: the PNG to write.
        rows: sentences.
        title: above all.
        subtitle: below the title, e.g. the data set's name and whether it is synthetic.

    Raises:
        UserError: nothing to draw, or rows with answers of different models.
    """
    names = list(rows[0].boxes) if rows else []
    if not rows or any(list(row.boxes) != names for row in rows):
        raise UserError("pictures of grounding: there must be one sentence or more, with answers of the same models")
    small = all(max(row.image.size) < SMALL for row in rows)
    width, across = (_TILE_SMALL, _ACROSS_SMALL) if small else (_TILE, _ACROSS)
    across = min(across, len(rows))
    lines = [rows[start : start + across] for start in range(0, len(rows), across)]
    words = [[_wrap(row.expression.text, width) for row in line] for line in lines]
    below = [max(map(len, line)) + len(names) for line in words]
    heights = [
        max(shown_size(row.image, width)[1] for row in line) + LINE * (count + 0.9)
        for line, count in zip(lines, below, strict=True)
    ]
    legend = HEADING + LINE * (1.3 * (len(names) + 1) + 0.4)
    sheet = Sheet(width=max(2 * MARGIN + across * (width + _GAP) - _GAP, 5.0), height=legend + sum(heights) + MARGIN)
    y = sheet.heading(title, subtitle)
    for name, color in (("the object that is meant", _TRUE), *zip(names, _colors(_BRIGHT, names), strict=True)):
        _key(sheet, y, name, color)
        y += 1.3 * LINE
    y += 0.4 * LINE
    for line, texts, height in zip(lines, words, heights, strict=True):
        for number, (row, text) in enumerate(zip(line, texts, strict=True)):
            _draw_row(sheet, MARGIN + number * (width + _GAP), y, row, text, width=width)
        y += height
    return sheet.write(path)


def _key(sheet: Sheet, y: float, name: str, color: str) -> None:
    """A line of the legend: a filled square and a name."""
    side = 0.1
    axis = sheet.figure.add_axes(
        (MARGIN / sheet.width, 1 - (y + side) / sheet.height, side / sheet.width, side / sheet.height),
        xticks=[],
        yticks=[],
        facecolor=color,
    )
    for spine in axis.spines.values():
        spine.set(color=INK, linewidth=0.6)
    text = shorten(name, sheet.width - 2 * MARGIN - 2 * side, size=8)
    sheet.text(MARGIN + 1.8 * side, y + 0.005, text, size=8, color=INK)


def _draw_row(sheet: Sheet, x: float, y: float, row: Answered, words: Sequence[str], *, width: float) -> None:
    axis, height = sheet.picture(x, y, row.image, width=width)
    draw_box(axis, row.expression.box, color=_TRUE)
    colors = _colors(_BRIGHT, row.boxes)
    for (box, _), color in zip(row.boxes.values(), colors, strict=True):
        draw_box(axis, box.tolist(), color=color)
    y += height + 0.45 * LINE
    for line in words:
        sheet.text(x, y, line, size=7.5)
        y += LINE
    for (_, iou), color in zip(row.boxes.values(), colors, strict=True):
        right = iou >= MIN_IOU
        sheet.text(x, y, f"{'right' if right else 'wrong'}, IoU {iou:.2f}", size=7, color=_dark(color), bold=right)
        y += LINE


def _colors(colors: Sequence[str], names: Mapping[str, object] | Sequence[str]) -> list[str]:
    return [colors[number % len(colors)] for number in range(len(names))]


def _dark(color: str) -> str:
    """The shade for paper of a colour for pictures."""
    return _CURVES[_BRIGHT.index(color)]


def _wrap(text: str, width: float, *, size: float = 7.5, most: int = 3) -> list[str]:
    """Words on lines of `width` inches; what does not fit into `most` lines is shortened."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and shorten(longer, width, size=size) == longer:
            lines[-1] = longer
        elif len(lines) == most:
            lines[-1] = shorten(f"{lines[-1]} {word} ...", width, size=size)
            break
        else:
            lines.append(shorten(word, width, size=size))
    return lines


def draw_curves(
    path: str | Path,
    curves: Mapping[str, Sequence[float]],
    *,
    chances: Mapping[str, float],
    title: str = "",
    split: str = "val",
) -> Path:
    """Precision@1 on the watched split after each epoch, a line each, over chance levels.

    Args:
        path: the PNG to write.
        curves: percent after epoch 1, 2, ..., by model.
        chances: percent, by what is right without looking.
        title: above all.
        split: which one is watched.

    Raises:
        UserError: no points.
    """
    if not any(curves.values()):
        raise UserError("learning curves: no points to draw; give one or more")
    figure = Figure(figsize=(5.6, 3.9), dpi=_DPI, facecolor="white", layout="constrained")
    axis = figure.subplots()
    for color, (name, points) in zip(_colors(_CURVES, curves), curves.items(), strict=True):
        epochs = range(1, len(points) + 1)
        axis.plot(epochs, points, color=color, linewidth=2, marker="o", markersize=3.5, label=name)
    for style, (name, value) in zip(("--", ":", "-."), chances.items()):
        axis.axhline(value, color=FAINT, linewidth=1.2, linestyle=style, label=f"{name}: {value:.1f}")
    axis.set(
        xlabel="epoch",
        ylabel=f"precision@1 on {split}, percent",
        ylim=(0, None),
        xlim=(0.5, max(map(len, curves.values())) + 0.5),
    )
    axis.set_title(title, fontsize=10.5, color=INK, loc="left", weight="bold", parse_math=False)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axis.grid(color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    figure.legend(loc="outside lower center", ncols=1, fontsize=8, frameon=False)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")
    return Path(path)
