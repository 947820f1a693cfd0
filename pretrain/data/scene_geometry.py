"""Geometry of scenes that their layout and their rendering share: outlines of shapes, coverage, extents of strings.

Unit coordinates unless a name says pixels: 0..1 from the top left corner, y downwards.

Shape letters: N objects, K points inside a shape, h/w height and width in pixels of an object's own bounding box.
"""

import cmath
import math
import string
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
Rect = tuple[float, float, float, float]

#: Width of a string's outline as a fraction of the picture's side.
TEXT_OUTLINE = 0.03
_NUM_POINTS = 80


def _arc(start: float, stop: float, *, num: int, radius: float = 1.0, x: float = 0.0) -> NDArray[np.float64]:
    angles = np.linspace(start, stop, num)
    return np.stack([x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _star() -> NDArray[np.float64]:
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.43)
    return _arc(-0.5 * math.pi, 1.5 * math.pi, num=11)[:10] * radii[:, None]


def _cross(half_width: float = 0.3) -> NDArray[np.float64]:
    a, b = half_width, math.sqrt(1 - half_width**2)
    quarter = np.array([(a, a), (a, b), (-a, b)])
    turn = np.array([(0.0, 1.0), (-1.0, 0.0)])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _crescent(cut_radius: float = 0.8, cut_x: float = 0.58) -> NDArray[np.float64]:
    tip_x = (1 - cut_radius**2 + cut_x**2) / (2 * cut_x)
    outer, inner = math.acos(tip_x), math.acos((tip_x - cut_x) / cut_radius)
    back = _arc(outer, 2 * math.pi - outer, num=40)
    return np.concatenate([back, _arc(2 * math.pi - inner, inner, num=28, radius=cut_radius, x=cut_x)])


def _heart() -> NDArray[np.float64]:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    # the notch is deepened, or at 12 pixels a heart is a triangle
    points = np.stack(
        [16 * np.sin(t) ** 3, -(y + 2.0) + 3.0 * np.exp(-((16 * np.sin(t) ** 3 / 4.0) ** 2)) * (y > 0)], 1
    )
    return points / np.linalg.norm(points, axis=1).max()


_CIRCLE = _arc(0, 2 * math.pi, num=49)[:48]
_OUTLINES = {
    "circle": _CIRCLE,
    "square": _arc(0, 2 * math.pi, num=5)[:4],
    "triangle": _arc(0, 2 * math.pi, num=4)[:3],
    "star": _star(),
    "cross": _cross(),
    "ring": _CIRCLE,
    "crescent": _crescent(),
    "heart": _heart(),
}
_RING_HOLE = 0.56
#: Diameter of the circle around a shape over its nominal diameter, so that shapes of one size class look alike in size.
EXTENT = {
    "circle": 0.96,
    "square": 1.16,
    "triangle": 1.22,
    "star": 1.22,
    "cross": 1.16,
    "ring": 1.06,
    "crescent": 1.12,
    "heart": 1.1,
}


def span(start: int, length: int) -> slice:
    """The slice from `start` that is `length` long."""
    return slice(start, start + length)


def shape_coverage(
    shape: str, center: Point, radius: float, rotation: float, img_size: int
) -> tuple[slice, slice, NDArray[np.uint8]]:
    """Rows, columns and [h, w] coverage 0..255 of a shape, drawn four times as large (twice if big).

    Args:
        shape: one of scenes.SHAPES.
        center: of the circle around the shape.
        radius: of that circle.
        rotation: radians.
        img_size: side of the picture in pixels.
    """
    x, y, radius = center[0] * img_size, center[1] * img_size, radius * img_size
    left, top = max(math.floor(x - radius), 0), max(math.floor(y - radius), 0)
    width = min(math.ceil(x + radius), img_size) - left
    height = min(math.ceil(y + radius), img_size) - top
    fine = 4 if width <= 64 else 2
    cos, sin = math.cos(rotation) * radius * fine, math.sin(rotation) * radius * fine
    # Pillow puts the centre of a pixel, not its corner, at whole coordinates
    shift = np.array(((x - left) * fine - 0.5, (y - top) * fine - 0.5))
    outline = _OUTLINES[shape] @ np.array(((cos, sin), (-sin, cos)))
    canvas = Image.new("L", (width * fine, height * fine))
    pen = ImageDraw.Draw(canvas)
    pen.polygon((outline + shift).ravel().tolist(), fill=255)
    if shape == "ring":
        pen.polygon((outline * _RING_HOLE + shift).ravel().tolist(), fill=0)
    return span(top, height), span(left, width), np.asarray(canvas.reduce(fine))


@cache
def _points(shape: str) -> NDArray[np.complex128]:
    """[K] points x + iy spread evenly inside a shape, in its unit circle; complex, to turn them in one go."""
    side = 48
    y, x = np.nonzero(shape_coverage(shape, (0.5, 0.5), 0.5, 0.0, side)[2] > 127)
    chosen = np.linspace(0, len(x) - 1, _NUM_POINTS).round().astype(int)
    return ((x[chosen] + 0.5) + 1j * (y[chosen] + 0.5)) * (2 / side) - (1 + 1j)


def visible_shares(
    shapes: Sequence[str],
    rotations: Sequence[float],
    centers: Sequence[Point],
    radii: Sequence[float],
    rect: Rect | None,
) -> NDArray[np.float64]:
    """[N] shares of points inside each shape that are clear of the circles around later objects and of the rectangle."""
    x_NK, y_NK = np.empty((len(shapes), _NUM_POINTS)), np.empty((len(shapes), _NUM_POINTS))
    for i, (shape, rotation, (x, y), radius) in enumerate(zip(shapes, rotations, centers, radii)):
        points_K, turn = _points(shape), cmath.rect(radius, rotation)
        x_NK[i], y_NK[i] = (turned := points_K * turn).real + x, turned.imag + y
    hidden_NK = np.zeros(x_NK.shape, dtype=bool)
    for i, ((x, y), radius) in enumerate(zip(centers, radii)):
        # only the objects painted before are covered
        hidden_NK[:i] |= (x_NK[:i] - x) ** 2 + (y_NK[:i] - y) ** 2 < radius**2
    if rect:
        hidden_NK |= (x_NK > rect[0]) & (x_NK < rect[2]) & (y_NK > rect[1]) & (y_NK < rect[3])
    return 1 - hidden_NK.mean(1)


@lru_cache(maxsize=256)
def font(size_px: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font at a size."""
    return ImageFont.load_default(size_px)


@lru_cache(maxsize=1)
def font_metrics() -> tuple[float, dict[str, float]]:
    """Capital height over font size, and each character's advance over capital height."""
    large = font(400.0)
    cap = -large.getbbox("H", anchor="ls")[1]
    return cap / 400, {char: large.getlength(char) / cap for char in string.ascii_uppercase + string.digits}


def text_half_extent(content: str, height: float) -> Point:
    """Half the width and height of a string with its outline, as fractions of the picture's side."""
    advances = font_metrics()[1]
    return 0.5 * sum(advances[c] for c in content) * height + TEXT_OUTLINE, 0.5 * height + TEXT_OUTLINE
