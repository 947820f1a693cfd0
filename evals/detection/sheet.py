"""A page of pictures with boxes on them, on which everything has its place in inches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from pretrain.files import atomic_file

INK, FAINT = "#1c1e21", "#6b7178"
#: In inches: edges of the page, height of a line of text, side of a box's number.
MARGIN, LINE, TAG = 0.14, 0.145, 0.13
#: Height of a page's title and of the line below it.
HEADING = 0.62
#: Pictures with fewer pixels than this a side are shown as the squares that they consist of.
SMALL = 160
_DPI = 110
#: The tallest picture for its width.
_TALLEST = 1.0


class Sheet:
    """A figure on which everything has its place in inches, from the top left corner."""

    def __init__(self, *, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")

    def text(self, x: float, y: float, text: str, *, size: float, color: str = INK, bold: bool = False) -> None:
        """A line of text that hangs from `y`."""
        self.figure.text(
            *(x / self.width, 1 - (y + 0.76 * size / 72) / self.height, text),
            fontsize=size,
            color=color,
            weight="bold" if bold else "normal",
            va="baseline",
            parse_math=False,
        )

    def heading(self, title: str, subtitle: str) -> float:
        """A title and a line below it; returns where the next thing goes."""
        for y, text, size, color in ((MARGIN, title, 11, INK), (MARGIN + 0.22, subtitle, 8.5, FAINT)):
            self.text(
                MARGIN, y, shorten(text, self.width - 2 * MARGIN, size=size), size=size, color=color, bold=size > 10
            )
        return HEADING

    def picture(self, x: float, y: float, image: Image.Image, *, width: float) -> tuple[Axes, float]:
        """The picture's axes, in its pixels, and its height in inches."""
        shown, height = shown_size(image, width)
        box = (x / self.width, 1 - (y + height) / self.height, shown / self.width, height / self.height)
        axis = self.figure.add_axes(box, xticks=[], yticks=[])
        axis.imshow(image, interpolation=_interpolation(image), extent=(0, image.width, image.height, 0))
        axis.set(xlim=(0, image.width), ylim=(image.height, 0))
        for spine in axis.spines.values():
            spine.set_visible(False)
        return axis, height

    def write(self, path: str | Path) -> Path:
        with atomic_file(path) as file:
            self.figure.savefig(file, format="png")
        return Path(path)


def shown_size(image: Image.Image, width: float) -> tuple[float, float]:
    """Width and height in inches of a picture that has `width` at most."""
    shown = width * min(1.0, _TALLEST * image.width / image.height)
    return shown, shown * image.height / image.width


def _interpolation(image: Image.Image) -> str:
    return "nearest" if max(image.size) < SMALL else "antialiased"


def draw_box(axis: Axes, box: Sequence[float], *, color: str, dashed: bool = False) -> None:
    """The part of a box (x0, y0, x1, y1) that lies in the picture, with a dark halo."""
    x0, y0, x1, y1 = _inside(axis, box)  # what lies outside would run through the text below
    width = 1.0 if dashed else 1.7
    axis.add_patch(
        Rectangle(
            (x0, y0),
            x1 - x0,
            y1 - y0,
            fill=False,
            edgecolor=color,
            linewidth=width,
            linestyle=(0, (3, 2)) if dashed else "solid",
            path_effects=[patheffects.withStroke(linewidth=width + 1.1, foreground=INK, alpha=0.7)],
            clip_on=False,  # a line along the picture's edge would lose its half
        )
    )


def _inside(axis: Axes, box: Sequence[float]) -> tuple[float, float, float, float]:
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    (x0, x1), (y0, y1) = np.clip(box[::2], left, right), np.clip(box[1::2], top, bottom)
    return float(x0), float(y0), float(x1), float(y1)


def draw_tag(axis: Axes, text: str, box: Sequence[float], taken: list[tuple[float, float]], *, side: float) -> None:
    """The number of a box in the first of its corners, or places along its edges, that no other number has."""
    half = side / 2
    x0, y0, x1, y1 = _inside(axis, box)
    low_x, low_y, high_x, high_y = x0 + half, y0 + half, max(x0 + half, x1 - half), max(y0 + half, y1 - half)
    places = [(low_x, low_y), (high_x, low_y), (high_x, high_y), (low_x, high_y)]
    places += [(x, low_y) for x in np.arange(low_x + side, high_x, side)]
    places += [(low_x, y) for y in np.arange(low_y + side, high_y, side)]

    def free(place: tuple[float, float]) -> bool:
        return all(max(abs(place[0] - x), abs(place[1] - y)) >= side for x, y in taken)

    x, y = next((place for place in places if free(place)), places[0])
    taken.append((x, y))
    axis.text(
        x,
        y,
        text,
        fontsize=6.5,
        color="white",
        ha="center",
        va="center_baseline",
        bbox=dict(boxstyle="square,pad=0.12", facecolor=INK, edgecolor="none", alpha=0.85),
    )


def shorten(text: str, width: float, *, size: float = 7.5) -> str:
    """As much of a line as fits into `width` inches; a letter is 0.6 of the font's size wide on average."""
    limit = int(width * 72 / (0.6 * size))
    return text if len(text) <= limit else text[: limit - 1] + "…"
