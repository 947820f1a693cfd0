"""One page of an encoder's features: pictures, their patches as colours, a probe's attention, nearest neighbours.

Shape letters: B pictures shown, R/C rows and columns of patches, H heads, S pixels of a side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from evals.look_features import AttentionMaps, PatchColours
from pretrain.files import atomic_file

_SAME, _OTHER = "#1a7f5a", "#c2571a"  # told apart with any kind of colour vision, and marked as well
_INK, _FAINT = "#1c1e21", "#6b7178"
_DPI = 120
#: In inches: side of a picture, space between two, around all, for what stands below one; lines of headings and notes.
_TILE, _GAP, _MARGIN, _BELOW, _TITLE, _HEADING, _NOTE = 1.15, 0.09, 0.12, 0.25, 0.68, 0.2, 0.17
_MIN_WIDTH = 7.5
#: Pictures with fewer pixels than this a side are shown as the squares that they consist of.
_SMALL = 96


@dataclass(frozen=True)
class Tile:
    """A picture as the encoder sees it, and what stands below it.

    Attributes:
        image_SS3: uint8.
        text: its class, or its name.
        same: whether a neighbour has the query's class; None for queries and where there are no classes.
    """

    image_SS3: np.ndarray
    text: str = ""
    same: bool | None = None


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes:
        title: names the encoder.
        subtitle: names the data set and whether it is synthetic.
        shown: B pictures, which are the queries too.
        colours: of their patches.
        neighbours: of each, nearest first.
        attention: of a probe on them.
        each_head: show the heads apart, too.
        notes: lines for the foot of the page.
    """

    title: str
    subtitle: str
    shown: Sequence[Tile]
    colours: PatchColours
    neighbours: Sequence[Sequence[Tile]]
    attention: AttentionMaps | None = None
    each_head: bool = False
    notes: Sequence[str] = field(default_factory=tuple)


def upscale(grid_RC: np.ndarray, side: int) -> np.ndarray:
    """A grid of patches [R, C, ...] as pixels [side, side, ...], each patch a flat rectangle."""
    rows, columns = grid_RC.shape[:2]
    row_S, column_S = (np.arange(side) * count // side for count in (rows, columns))
    return grid_RC[row_S][:, column_S]


def heat(image_SS3: np.ndarray, weight_RC: np.ndarray) -> np.ndarray:
    """A map of weights over the picture in grey, uint8 [S, S, 3]; the largest weight is brightest.

    The weight is relative to an even spread over patches, so that a map without any preference does not look like one.
    """
    # dark pictures are lightened, or nothing could be seen below the map
    grey_SS1 = 0.25 + 0.75 * image_SS3.astype(np.float64).mean(-1, keepdims=True) / 255
    # an even spread is a fifth of the scale at most; sharper maps use the scale up
    top = max(float(weight_RC.max()), 5 * float(weight_RC.mean()), 1e-12)
    level_SS = upscale(weight_RC / top, len(image_SS3))
    colour_SS3 = colormaps["inferno"](level_SS)[..., :3]
    opacity_SS1 = 0.35 + 0.55 * level_SS[..., None]
    return np.round(255 * (opacity_SS1 * colour_SS3 + (1 - opacity_SS1) * grey_SS1)).astype(np.uint8)


def _shorten(text: str, limit: int = 17) -> str:
    # names of files hold what no font has, and a dollar sign would start a formula
    text = "".join(char if char.isprintable() and ord(char) < 0x2000 else "?" for char in text).replace("$", r"\$")
    return text if len(text) <= limit else text[: limit - 1] + "…"


class _Sheet:
    """A figure on which everything has its place in inches, from the top left corner."""

    def __init__(self, *, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float,
        color: str = _INK,
        align: str = "left",
        weight: str = "normal",
    ) -> None:
        """A line of text that hangs from `y`, by the size of its font: letters with and without tops stand alike."""
        y += 0.76 * size / 72
        self.figure.text(
            *(x / self.width, 1 - y / self.height, text),
            fontsize=size,
            color=color,
            ha=align,
            va="baseline",
            weight=weight,
        )

    def picture(self, x: float, y: float, side: float, image: np.ndarray, *, frame: str | None = None) -> None:
        box = (x / self.width, 1 - (y + side) / self.height, side / self.width, side / self.height)
        axis = self.figure.add_axes(box, xticks=[], yticks=[])
        axis.imshow(image, interpolation="nearest" if len(image) < _SMALL else "antialiased")
        for spine in axis.spines.values():
            spine.set(visible=frame is not None, edgecolor=frame, linewidth=2.2)

    def below(self, x: float, y: float, side: float, text: str, *, color: str) -> None:
        """What stands below a picture."""
        self.text(x + side / 2, y + side + 0.04, text, size=7.5, color=color, align="center")


def _draw_rows(sheet: _Sheet, page: Page, y: float) -> float:
    """A row for each picture: itself, its colours, attention, a gap, its neighbours. Returns where the next thing goes."""
    panels = 2 + (page.attention is not None)
    x_P = [_MARGIN + number * (_TILE + _GAP) for number in range(panels)]
    near_x = x_P[-1] + _TILE + 3 * _GAP
    for x, name in zip(x_P, ("picture", "patches, PCA", "probe looks at")):
        sheet.text(x + _TILE / 2, y, name, size=8.5, align="center")
    sheet.text(near_x, y, "nearest others, nearest first", size=8.5)
    y += _HEADING
    for number, tile in enumerate(page.shown):
        image = tile.image_SS3
        sheet.picture(x_P[0], y, _TILE, image)
        sheet.below(x_P[0], y, _TILE, _shorten(tile.text), color=_INK)
        sheet.picture(x_P[1], y, _TILE, upscale(page.colours.rgb_BRC3[number], max(len(image), _SMALL)))
        if page.attention is not None:
            sheet.picture(x_P[2], y, _TILE, heat(image, page.attention.mean_BRC[number]))
            if share := float(page.attention.prefix_share_B[number]):
                sheet.below(x_P[2], y, _TILE, f"{100 * share:.0f}% elsewhere", color=_FAINT)
        for place, near in enumerate(page.neighbours[number]):
            x = near_x + place * (_TILE + _GAP)
            frame = None if near.same is None else _SAME if near.same else _OTHER
            mark = "" if near.same is None else "✓ " if near.same else "✗ "
            sheet.picture(x, y, _TILE, near.image_SS3, frame=frame)
            sheet.below(x, y, _TILE, mark + _shorten(near.text), color=frame or _FAINT)
        y += _TILE + _BELOW
    return y


def _draw_heads(sheet: _Sheet, page: Page, attention: AttentionMaps, y: float) -> float:
    """A row for each picture: the map of each head."""
    heads, side = attention.weight_BHRC.shape[1], _head_side(sheet.width, attention)
    for head in range(heads):
        sheet.text(_MARGIN + head * (side + _GAP) + side / 2, y, f"head {head + 1}", size=8.5, align="center")
    y += _HEADING
    for tile, weight_HRC in zip(page.shown, attention.weight_BHRC, strict=True):
        for head, weight_RC in enumerate(weight_HRC):
            sheet.picture(_MARGIN + head * (side + _GAP), y, side, heat(tile.image_SS3, weight_RC))
        y += side + _GAP
    return y + _GAP


def _head_side(width: float, attention: AttentionMaps) -> float:
    """Side of a head's map: a tile, or less where the heads would not fit."""
    heads = attention.weight_BHRC.shape[1]
    return min(_TILE, (width - 2 * _MARGIN + _GAP) / heads - _GAP)


def draw_page(page: Page) -> Figure:
    """The page as a figure, nine to eleven inches wide with five neighbours."""
    panels = 2 + (page.attention is not None) + max(map(len, page.neighbours), default=0)
    width = max(_MIN_WIDTH, 2 * _MARGIN + panels * (_TILE + _GAP) + 2 * _GAP)
    attention = page.attention if page.each_head else None
    height = _TITLE + _HEADING + len(page.shown) * (_TILE + _BELOW) + _NOTE * len(page.notes) + _MARGIN
    if attention is not None:
        height += _HEADING + len(page.shown) * (_head_side(width, attention) + _GAP) + _GAP
    sheet = _Sheet(width=width, height=height)
    sheet.text(_MARGIN, _MARGIN, page.title, size=12, weight="bold")
    sheet.text(_MARGIN, _MARGIN + 0.26, page.subtitle, size=9, color=_FAINT)
    y = _draw_rows(sheet, page, _TITLE)
    if attention is not None:
        y = _draw_heads(sheet, page, attention, y)
    for number, note in enumerate(page.notes):
        sheet.text(_MARGIN, y + number * _NOTE, note, size=8)
    return sheet.figure


def write_page(page: Page, path: str | Path) -> Path:
    """Draw the page and write it as a PNG, whole or not at all; returns `path`."""
    figure = draw_page(page)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")
    return Path(path)
