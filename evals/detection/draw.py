"""Pictures of detections: beside what is annotated, and where they fail most.

Shape letters: K boxes, H/W pixels of a picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from PIL import Image
from pycocotools import mask as coco_mask

from evals.detection.misses import NOTHING, Miss, WorstMisses, pair
from evals.detection.samples import Detections, Objects
from evals.detection.sheet import (
    FAINT,
    HEADING,
    INK,
    LINE,
    MARGIN,
    SMALL,
    TAG,
    Sheet,
    draw_box,
    draw_tag,
    shorten,
    shown_size,
)
from pretrain.types import UserError

#: Bright enough for a line on a photograph; the halo keeps them apart from the ground.
_COLORS = ("#ff5a36", "#2f9bff", "#ffd02e", "#27c46b", "#e05cff", "#00d5d5", "#ff9ec4", "#b4e03c", "#c08a5a", "#9aa7ff")
_WRONG = "#ff4a1c"
#: In inches: width of a picture, small or not; gaps.
_TILE_SMALL, _TILE = 1.62, 2.6
_GAP, _GROUP_GAP = 0.1, 0.22
#: Pictures in a line, as far as groups that belong together allow.
_ACROSS_SMALL, _ACROSS = 6, 4


@dataclass(frozen=True)
class Example:
    """A picture, what is annotated on it and what detectors found.

    Attributes:
        image: as in its file.
        objects: in its pixels.
        found: by the detector's (the encoder's) name; the same names in each row.
    """

    image: Image.Image
    objects: Objects
    found: Mapping[str, Detections]


@dataclass(frozen=True)
class _Marks:
    """What is drawn on a picture: boxes with masks and a line of text each."""

    box_K4: np.ndarray
    label_K: np.ndarray
    masks: list[np.ndarray] | None
    texts: list[str]
    crowd_M4: np.ndarray
    more: int = 0


def draw_examples(
    path: str | Path,
    rows: Sequence[Example],
    *,
    classes: Sequence[str],
    threshold: float = 0.5,
    most: int = 6,
    title: str = "",
    subtitle: str = "",
) -> Path:
    """Pictures with what is annotated, beside what each detector found; a tick where class and box (overlap .50) are right.

    Args:
        path: the PNG to write.
        rows: pictures.
        classes: names by class number.
        threshold: lowest score that is shown.
        most: boxes shown on a picture, the largest annotated and the most certain found; further ones are counted.
        title: above all.
        subtitle: below the title, e.g. the data set's name and whether it is synthetic.

    Raises:
        UserError: no pictures, or rows with detections of different detectors.
    """
    names = list(rows[0].found) if rows else []
    if not rows or any(list(row.found) != names for row in rows):
        raise UserError(
            "pictures of detections: there must be one picture or more, with detections of the same encoders"
        )
    groups = []
    for row in rows:
        marks = [_truth(row.objects, classes, most), *(_found(row, name, classes, threshold, most) for name in names)]
        groups.append((row.image, marks))
    small = all(max(row.image.size) < SMALL for row in rows)
    width = _TILE_SMALL if small else _TILE
    columns = 1 + len(names)
    across = min(len(rows), max(1, (_ACROSS_SMALL if small else _ACROSS) // columns))
    group_width = columns * (width + _GAP) - _GAP
    lines = [groups[start : start + across] for start in range(0, len(groups), across)]
    heights = [_line_height(line, width) for line in lines]
    sheet = Sheet(
        width=max(2 * MARGIN + across * (group_width + _GROUP_GAP) - _GROUP_GAP, 6.0),
        height=HEADING + LINE * 1.6 + sum(heights) + MARGIN,
    )
    y = sheet.heading(title, subtitle)
    for number in range(across):
        for column, name in enumerate(["annotated", *names]):
            x = MARGIN + number * (group_width + _GROUP_GAP) + column * (width + _GAP)
            sheet.text(x, y, shorten(name, width, size=8), size=8, color=FAINT)
    y += LINE * 1.6
    for line, height in zip(lines, heights, strict=True):
        for number, (image, marks) in enumerate(line):
            x = MARGIN + number * (group_width + _GROUP_GAP)
            _draw_group(sheet, x, y, image, marks, width=width)
        y += height
    return sheet.write(path)


def draw_misses(
    path: str | Path,
    misses: WorstMisses,
    *,
    images: Mapping[int, tuple[Image.Image, Objects]],
    classes: Sequence[str],
    title: str = "",
    subtitle: str = "",
) -> Path:
    """The worst failures: the wrong or missed box in red, annotated ones in white.

    Args:
        path: the PNG to write.
        misses: of evals.detection.misses.worst_misses.
        images: picture and annotation of each of them, by COCO's id.
        classes: names by class number.
        title: above all.
        subtitle: below the title.

    Raises:
        UserError: a picture is not among `images`.
    """
    sections = [
        ("Wrong detections with the highest scores", misses.wrong),
        ("Objects that were missed, or found with the lowest scores", misses.missed),
    ]
    every = [miss for _, section in sections for miss in section]
    for miss in every:
        if miss.image_id not in images:
            raise UserError(
                f"pictures of misses: picture {miss.image_id} is not among the {len(images)} pictures given"
            )
    small = all(max(images[miss.image_id][0].size) < SMALL for miss in every)
    width = _TILE_SMALL if small else 1.3 * _TILE_SMALL
    across = _ACROSS_SMALL - 1 if small else _ACROSS
    below = 2.5 * LINE + _GAP
    layout: list[tuple[str, list[list[Miss]]]] = []
    height = HEADING
    for name, section in sections:
        lines = [section[start : start + across] for start in range(0, len(section), across)]
        layout.append((name, lines))
        height += 1.8 * LINE + (sum(_tallest(line, images, width) + below for line in lines) or 1.5 * LINE)
    sheet = Sheet(width=max(2 * MARGIN + across * (width + _GAP) - _GAP, 6.0), height=height + MARGIN)
    y = sheet.heading(title, subtitle)
    for name, lines in layout:
        sheet.text(MARGIN, y, name, size=9, bold=True)
        y += 1.8 * LINE
        if not lines:
            sheet.text(MARGIN, y, "none", size=8, color=FAINT)
            y += 1.5 * LINE
        for line in lines:
            for number, miss in enumerate(line):
                _draw_miss(sheet, MARGIN + number * (width + _GAP), y, miss, images[miss.image_id], classes, width)
            y += _tallest(line, images, width) + below
    return sheet.write(path)


def _draw_miss(
    sheet: Sheet,
    x: float,
    y: float,
    miss: Miss,
    shown: tuple[Image.Image, Objects],
    classes: Sequence[str],
    width: float,
) -> None:
    image, objects = shown
    axis, height = sheet.picture(x, y, image, width=width)
    for box in objects.box_N4.tolist():
        draw_box(axis, box, color="white", dashed=True)
    draw_box(axis, miss.box, color=_WRONG)
    for number, text in enumerate(miss.caption(classes)):
        sheet.text(x, y + height + 0.04 + number * LINE, shorten(text, width), size=7.5, color=FAINT if number else INK)


def _draw_group(
    sheet: Sheet, x: float, y: float, image: Image.Image, panels: Sequence[_Marks], *, width: float
) -> None:
    """Pictures of one example, with lines of text below each."""
    order = dict.fromkeys(label for marks in panels for label in marks.label_K.tolist())
    color = {label: _COLORS[place % len(_COLORS)] for place, label in enumerate(order)}
    for column, marks in enumerate(panels):
        left = x + column * (width + _GAP)
        axis, height = sheet.picture(left, y, image, width=width)
        colors = [color[label] for label in marks.label_K.tolist()]
        _draw_marks(axis, marks, colors, pixels_per_inch=image.height / height)
        for number, (text, own) in enumerate(zip(marks.texts, colors, strict=True)):
            top = y + height + 0.05 + number * LINE
            swatch = (left / sheet.width, 1 - (top + 0.09) / sheet.height, 0.09 / sheet.width, 0.09 / sheet.height)
            sheet.figure.patches.append(
                Rectangle(
                    swatch[:2], *swatch[2:], facecolor=own, transform=sheet.figure.transFigure, figure=sheet.figure
                )
            )
            sheet.text(left + 0.13, top, shorten(text, width - 0.13), size=7.5)
        if marks.more or not marks.texts:
            rest = f"and {marks.more} more" if marks.more else "nothing"
            sheet.text(left, y + height + 0.05 + len(marks.texts) * LINE, rest, size=7.5, color=FAINT)


def _draw_marks(axis: Axes, marks: _Marks, colors: Sequence[str], *, pixels_per_inch: float) -> None:
    for box in marks.crowd_M4.tolist():
        draw_box(axis, box, color="white", dashed=True)
    for mask, color in zip(marks.masks or [], colors):
        overlay = np.zeros((*mask.shape, 4))
        overlay[mask.astype(bool)] = (*to_rgb(color), 0.45)
        axis.imshow(overlay, interpolation="nearest", extent=(0, mask.shape[1], mask.shape[0], 0))
    taken: list[tuple[float, float]] = []
    for number, (box, color) in enumerate(zip(marks.box_K4.tolist(), colors, strict=True), start=1):
        draw_box(axis, box, color=color)
        if len(colors) > 1:
            draw_tag(axis, str(number), box, taken, side=TAG * pixels_per_inch)


def _truth(objects: Objects, classes: Sequence[str], most: int) -> _Marks:
    """What is annotated, the largest first."""
    box_N4 = objects.box_N4.numpy()
    largest_K = np.argsort(-(box_N4[:, 2:] - box_N4[:, :2]).prod(1), kind="stable")[:most]
    label_K = objects.label_N.numpy()[largest_K]
    return _Marks(
        box_N4[largest_K],
        label_K,
        None if objects.mask_NHW is None else list(objects.mask_NHW.numpy()[largest_K]),
        _numbered([classes[label] for label in label_K]),
        objects.crowd_M4.numpy(),
        more=max(0, len(objects) - most),
    )


def _found(row: Example, name: str, classes: Sequence[str], threshold: float, most: int) -> _Marks:
    """What a detector found with a score of the threshold or more."""
    found, objects = row.found[name], row.objects
    order_K = np.argsort(-found.score_K, kind="stable")
    order_K = order_K[found.score_K[order_K] >= threshold]
    taken_K = pair(
        found.box_K4[order_K],
        found.label_K[order_K],
        box_N4=objects.box_N4.numpy(),
        label_N=objects.label_N.numpy(),
        crowd_M4=objects.crowd_M4.numpy(),
    )
    shown_K = order_K[:most]
    texts = [
        f"{classes[found.label_K[place]]} {100 * found.score_K[place]:.0f}% " + ("✗" if taken == NOTHING else "✓")
        for place, taken in zip(shown_K, taken_K)
    ]
    masks = None if found.masks is None else [coco_mask.decode(found.masks[place]) for place in shown_K]
    return _Marks(
        found.box_K4[shown_K],
        found.label_K[shown_K],
        masks,
        _numbered(texts),
        np.zeros((0, 4)),
        more=len(order_K) - len(shown_K),
    )


def _numbered(texts: Sequence[str]) -> list[str]:
    return [f"{number} {text}" for number, text in enumerate(texts, start=1)] if len(texts) > 1 else list(texts)


def _line_height(line: Sequence[tuple[Image.Image, Sequence[_Marks]]], width: float) -> float:
    """In inches, of examples side by side with their lines of text."""
    tallest = max(
        shown_size(image, width)[1] + LINE * max(1, len(marks.texts) + (marks.more > 0))
        for image, panels in line
        for marks in panels
    )
    return tallest + 0.05 + 1.5 * _GAP


def _tallest(line: Sequence[Miss], images: Mapping[int, tuple[Image.Image, Objects]], width: float) -> float:
    return max(shown_size(images[miss.image_id][0], width)[1] for miss in line)
