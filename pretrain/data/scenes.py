"""Scenes: small synthetic pictures whose every label is true by construction.

A scene is a pure function of (seed, split, index, level); it is described in unit coordinates (0..1 from the top left
corner, y downwards), so that one scene can be rendered at any size. Everything else (captions, questions, boxes,
masks) is read off the description and never drawn anew.

Shape letters: N objects, H/W height and width in pixels, h/w those of an object's own bounding box.

The file is longer than most since what is drawn and how it is rendered share every table.
"""

import cmath
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pretrain.rng import draw_rng
from pretrain.types import UserError

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "heart")
_COLOR_RGB = {
    "red": (222, 32, 32),
    "orange": (250, 138, 16),
    "yellow": (246, 214, 24),
    "green": (36, 160, 52),
    "cyan": (48, 214, 222),
    "blue": (34, 66, 220),
    "purple": (124, 36, 172),
    "pink": (252, 130, 196),
}
COLORS = tuple(_COLOR_RGB)
TEXTURES = ("solid", "striped", "checkered")
#: Diameters as fractions of the picture's side; with the jitter a larger class is larger in area for any two shapes.
SIZES = {"small": 0.25, "medium": 0.37, "large": 0.54}
_SIZE_JITTER = 0.04
SPLITS = ("train", "val", "test")

BACKGROUND_KINDS = ("plain", "gradient", "striped", "checkered", "grainy", "speckled")
_BACKGROUND_RGB = {
    "white": (238, 238, 236),
    "grey": (132, 132, 132),
    "black": (26, 26, 28),
    "brown": (104, 80, 62),
    "beige": (206, 190, 160),
    "slate": (82, 96, 112),
}
BACKGROUND_COLORS = tuple(_BACKGROUND_RGB)

#: Without I, O and Q (easily taken for digits or each other), nor M and W (three of them do not fit).
LETTERS = "ABCDEFGHJKLNPRSTUVXYZ"
_TEXT_HEIGHTS = (0.38, 0.36, 0.34, 0.32, 0.30, 0.28, 0.26)
_TEXT_MAX_WIDTH = 0.94
#: Width of a string's outline, and the gap kept around strings and objects, as fractions of the picture's side.
_OUTLINE = 0.03
_GAP = 0.015

T = TypeVar("T")
Rgb = tuple[int, int, int]
Point = tuple[float, float]
Rect = tuple[float, float, float, float]


@dataclass(frozen=True)
class Level:
    """How hard a scene is; a config mixes levels by weight.

    Attributes:
        min_objects: fewest objects.
        max_objects: most objects.
        text_probability: how often something is written.
        overlap: whether objects may cover each other (never more than the shares below).
        largest_weights: weights of small, medium, large for the largest object.
    """

    min_objects: int
    max_objects: int
    text_probability: float
    overlap: bool
    largest_weights: tuple[float, float, float]


LEVELS = {
    "one": Level(1, 1, 0.0, False, (0.1, 0.45, 0.45)),
    "two": Level(2, 2, 0.0, False, (0.0, 0.5, 0.5)),
    "three": Level(3, 3, 0.0, False, (0.0, 0.5, 0.5)),
    "word": Level(1, 1, 1.0, False, (0.2, 0.8, 0.0)),
    "crowd": Level(4, 5, 0.3, True, (0.0, 0.4, 0.6)),
}
#: In a crowd the largest object keeps 60% of its area; these are higher because they are checked on sampled points.
_MIN_VISIBLE_LARGEST, _MIN_VISIBLE_OTHER = 0.66, 0.55
#: In a crowd, the least distance of two centres over the sum of their radii.
_CROWD_CLOSEST = 0.72
_MAX_PLACEMENTS = 40
_NUM_POINTS = 80


@dataclass(frozen=True)
class SceneObject:
    """One object. `diameter` is nominal: shapes of one diameter look alike in size; see :attr:`radius` for the reach.

    Attributes:
        shape: one of SHAPES.
        color: one of COLORS.
        texture: one of TEXTURES.
        size: one of SIZES.
        center_x: 0..1, from the left.
        center_y: 0..1, from the top.
        diameter: fraction of the picture's side.
        rotation: radians.
        rgb: the colour's exact shade, 0..255.
    """

    shape: str
    color: str
    texture: str
    size: str
    center_x: float
    center_y: float
    diameter: float
    rotation: float
    rgb: Rgb

    @property
    def radius(self) -> float:
        """Radius of the circle around the shape, as a fraction of the picture's side."""
        return 0.5 * self.diameter * _EXTENT[self.shape]


@dataclass(frozen=True)
class Background:
    """Attributes: kind and color are names; amplitude in 0..255; angle in radians; period and phase in unit lengths."""

    kind: str
    color: str
    rgb: Rgb
    amplitude: float
    angle: float
    period: float
    phase: float


@dataclass(frozen=True)
class WrittenText:
    """A written string. `height` is that of a capital letter, as a fraction of the picture's side."""

    content: str
    center_x: float
    center_y: float
    height: float
    rgb: Rgb
    outline_rgb: Rgb


@dataclass(frozen=True)
class Scene:
    """Attributes: objects are in the order of painting, the largest first; text is painted last."""

    seed: int
    split: str
    index: int
    level: str
    objects: tuple[SceneObject, ...]
    background: Background
    text: WrittenText | None

    @property
    def key(self) -> str:
        """Unique: (seed, split, index, level) settle everything, whatever the weights of the levels were."""
        return f"scene_s{self.seed}_{self.split}_{self.index:08d}_{self.level}"

    @property
    def largest(self) -> SceneObject:
        """The only object of its size class, which is larger than all others'."""
        return self.objects[0]

    @property
    def largest_shape_label(self) -> int:
        """Index into SHAPES."""
        return SHAPES.index(self.largest.shape)

    @property
    def largest_color_label(self) -> int:
        """Index into COLORS."""
        return COLORS.index(self.largest.color)


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
_EXTENT = {
    "circle": 0.96,
    "square": 1.16,
    "triangle": 1.22,
    "star": 1.22,
    "cross": 1.16,
    "ring": 1.06,
    "crescent": 1.12,
    "heart": 1.1,
}


class Draws:
    """Uniform numbers from a block, since one call per number costs more than all the rest."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._block: list[float] = []

    def unit(self) -> float:
        if not self._block:
            self._block = self._rng.random(128).tolist()
        return self._block.pop()

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def choice(self, items: Sequence[T]) -> T:
        return items[int(self.unit() * len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        left = self.unit() * sum(weights)
        last = 0
        for k, weight in enumerate(weights):
            if weight > 0:
                last = k
                left -= weight
                if left < 0:
                    break
        return items[last]


def check_level_weights(level_weights: Mapping[str, float]) -> None:
    """Raises UserError where a level is unknown, a weight is negative, or all are zero."""
    known = ", ".join(LEVELS)
    for name, weight in level_weights.items():
        if name not in LEVELS:
            raise UserError(f"scene level {name!r} is unknown; known levels: {known}")
        if not (weight >= 0 and math.isfinite(weight)):
            raise UserError(f"weight of scene level {name!r} is {weight}; it must be a finite number, 0 or more")
    if not sum(level_weights.values()) > 0:
        raise UserError(
            f"level weights {dict(level_weights)} add up to 0; at least one of {known} needs a weight above 0"
        )


def draw_scene(seed: int, split: str, index: int, level_weights: Mapping[str, float]) -> Scene:
    """The scene number `index` of a split; a pure function of its arguments.

    Args:
        seed: of the data set.
        split: "train", "val" or "test"; each has its own stream of draws.
        index: 0 or more, without an upper end.
        level_weights: weight of each level of LEVELS that is wanted, e.g. {"one": 1, "crowd": 2}.

    Raises:
        UserError: unknown split or level, weights that cannot be used, negative index.
    """
    check_level_weights(level_weights)
    if split not in SPLITS:
        raise UserError(f"scene split {split!r} is unknown; known splits: {', '.join(SPLITS)}")
    if index < 0:
        raise UserError(f"scene index {index} is negative; it must be 0 or more")
    draws = Draws(draw_rng(seed, f"scene/{split}", index))
    # in the order of LEVELS, so that the order in a config does not matter
    name = draws.weighted(tuple(LEVELS), [level_weights.get(level, 0.0) for level in LEVELS])
    level = LEVELS[name]
    background = _draw_background(draws)
    # first of all, so that no retry of the placement touches what the labels are
    looks = [_draw_look(draws) for _ in range(draws.choice(range(level.min_objects, level.max_objects + 1)))]
    # three characters leave no room for a crowd, and a crowd with a string no room for a fifth object
    content = _draw_content(draws, max_num=2 if level.overlap else 3) if draws.unit() < level.text_probability else None
    looks = looks[:4] if content and level.overlap else looks
    sizes = _draw_sizes(draws, level, num_objects=len(looks))
    text_height = _fit_text(content, tallest=0.3 if level.overlap else max(_TEXT_HEIGHTS)) if content else 0.0
    objects, center = _place(draws, looks, sizes, content, text_height, overlap=level.overlap)
    text = None
    if content and center:
        dark, light = draws.choice(((12, 12, 16), (30, 16, 60))), draws.choice(((255, 255, 255), (255, 250, 225)))
        on_light = sum(background.rgb) > 3 * 150
        text = WrittenText(content, *center, text_height, *((dark, light) if on_light else (light, dark)))
    return Scene(seed, split, index, name, objects, background, text)


def _jittered(draws: Draws, rgb: Rgb, scale: float, shift: float) -> Rgb:
    factor = draws.uniform(1 - scale, 1 + scale)
    red, green, blue = (min(max(round(c * factor + draws.uniform(-shift, shift)), 0), 255) for c in rgb)
    return red, green, blue


def _draw_look(draws: Draws) -> tuple[str, str, str, float, Rgb]:
    """Shape, colour, texture, rotation, exact shade."""
    shape, color = draws.choice(SHAPES), draws.choice(COLORS)
    texture = draws.weighted(TEXTURES, (0.5, 0.25, 0.25))
    return shape, color, texture, draws.uniform(0, 2 * math.pi), _jittered(draws, _COLOR_RGB[color], 0.04, 8)


def _draw_background(draws: Draws) -> Background:
    kind, color = draws.choice(BACKGROUND_KINDS), draws.choice(BACKGROUND_COLORS)
    return Background(
        kind=kind,
        color=color,
        rgb=_jittered(draws, _BACKGROUND_RGB[color], 0.06, 3),
        amplitude=draws.uniform(12, 22),
        angle=draws.uniform(0, math.pi),
        period=draws.uniform(0.14, 0.28),
        phase=draws.unit(),
    )


def _draw_content(draws: Draws, *, max_num: int) -> str:
    """A number of 1-3 digits without leading zeros, or 1-3 letters."""
    num = 1 + int(draws.unit() * max_num)
    if draws.unit() < 0.5:
        return draws.choice("123456789") + "".join(draws.choice("0123456789") for _ in range(num - 1))
    return "".join(draws.choice(LETTERS) for _ in range(num))


def _draw_sizes(draws: Draws, level: Level, *, num_objects: int) -> list[str]:
    """Size classes, the only largest one first. At most one medium beside a large one, or they would not fit apart."""
    largest = draws.weighted(tuple(SIZES), level.largest_weights)
    others = ["small"] * (num_objects - 1)
    if others and largest == "large" and draws.unit() < 0.35:
        others[0] = "medium"
    return [largest, *others]


def _place(
    draws: Draws,
    looks: Sequence[tuple[str, str, str, float, Rgb]],
    sizes: Sequence[str],
    content: str | None,
    text_height: float,
    *,
    overlap: bool,
) -> tuple[tuple[SceneObject, ...], Point | None]:
    """Objects in the order of painting, and the centre of the string if there is one.

    Positions are drawn until the level's promise holds; the corners, which keep it for any shapes, are the last resort.
    """
    jittered = (SIZES[size] * draws.uniform(1 - _SIZE_JITTER, 1 + _SIZE_JITTER) for size in sizes)
    # classes do not overlap, so sorting the diameters keeps them with their classes
    diameters = sorted(jittered, reverse=True)
    radii = [0.5 * diameter * _EXTENT[look[0]] for diameter, look in zip(diameters, looks)]
    half_width, half_height = _text_half_extent(content, text_height) if content else (0.0, 0.0)
    rect, text_center = None, None
    for _ in range(_MAX_PLACEMENTS):
        if content:
            x, y = text_center = (
                draws.uniform(half_width, 1 - half_width),
                draws.uniform(half_height, 1 - half_height),
            )
            rect = (x - half_width, y - half_height, x + half_width, y + half_height)
        centers = _draw_centers(draws, radii, rect, overlap=overlap)
        if centers and (not overlap or _enough_visible(looks, centers, radii, rect)):
            break
    else:
        text_center = (1 - half_width, 1 - half_height) if content and not overlap else None
        if overlap:  # five objects and a string do not always fit: without the string, and with small others
            sizes = [sizes[0], *("small" for _ in sizes[1:])]
            diameters = [diameters[0], *(SIZES["small"] for _ in sizes[1:])]
            radii = [0.5 * diameter * _EXTENT[look[0]] for diameter, look in zip(diameters, looks)]
        centers, text_center = _corners(radii, text_center, flip_x=draws.unit() < 0.5, flip_y=draws.unit() < 0.5)
    objects = tuple(
        SceneObject(shape, color, texture, size, x, y, diameter, rotation, rgb)
        for (shape, color, texture, rotation, rgb), size, (x, y), diameter in zip(looks, sizes, centers, diameters)
    )
    return objects, text_center


def _corners(
    radii: Sequence[float], text_center: Point | None, *, flip_x: bool, flip_y: bool
) -> tuple[list[Point], Point | None]:
    """The largest in one corner, the next in the one opposite, the rest beside: apart for all sizes that are drawn."""
    r = [*radii, 0.0, 0.0, 0.0, 0.0][:5]
    spots = [(r[0], r[0]), (1 - r[1], 1 - r[1]), (1 - r[2], r[2]), (r[3], 1 - r[3]), (1 - r[4], 0.5)]

    def flipped(spot: Point) -> Point:
        return 1 - spot[0] if flip_x else spot[0], 1 - spot[1] if flip_y else spot[1]

    return [flipped(spot) for spot in spots[: len(radii)]], flipped(text_center) if text_center else None


def _draw_centers(draws: Draws, radii: Sequence[float], rect: Rect | None, *, overlap: bool) -> list[Point] | None:
    """Centres one after the other, or None where an object finds no place.

    Circles around objects, and a string's box, stay apart; in a crowd they may come closer.
    """
    closest, gap = (_CROWD_CLOSEST, 0.0) if overlap else (1.0, _GAP)
    left, top, right, bottom = rect or (9.0, 9.0, 9.0, 9.0)
    placed: list[tuple[float, float, float]] = []
    for radius in radii:
        for _ in range(12):
            x, y = draws.uniform(radius, 1 - radius), draws.uniform(radius, 1 - radius)
            if math.hypot(max(left - x, 0.0, x - right), max(top - y, 0.0, y - bottom)) < closest * radius + 2 * gap:
                continue
            for a, b, c in placed:
                if (x - a) ** 2 + (y - b) ** 2 < (closest * (radius + c) + gap) ** 2:
                    break
            else:
                break
        else:
            return None
        placed.append((x, y, radius))
    return [(x, y) for x, y, _ in placed]


def _enough_visible(
    looks: Sequence[tuple[str, str, str, float, Rgb]],
    centers: Sequence[Point],
    radii: Sequence[float],
    rect: Rect | None,
) -> bool:
    """Whether points inside each shape stay clear of the circles around later objects and of the string's box."""
    x_NK, y_NK = np.empty((len(looks), _NUM_POINTS)), np.empty((len(looks), _NUM_POINTS))
    for i, ((shape, _, _, rotation, _), (x, y), radius) in enumerate(zip(looks, centers, radii)):
        points_K, turn = _points(shape), cmath.rect(radius, rotation)
        x_NK[i], y_NK[i] = (turned := points_K * turn).real + x, turned.imag + y
    hidden_NK = np.zeros(x_NK.shape, dtype=bool)
    for i, ((x, y), radius) in enumerate(zip(centers, radii)):
        # only the objects painted before are covered
        hidden_NK[:i] |= (x_NK[:i] - x) ** 2 + (y_NK[:i] - y) ** 2 < radius**2
    if rect:
        hidden_NK |= (x_NK > rect[0]) & (x_NK < rect[2]) & (y_NK > rect[1]) & (y_NK < rect[3])
    share_N = 1 - hidden_NK.mean(1)
    return bool(share_N[0] >= _MIN_VISIBLE_LARGEST and (share_N >= _MIN_VISIBLE_OTHER).all())


@lru_cache(maxsize=len(SHAPES))
def _points(shape: str) -> NDArray[np.complex128]:
    """[K] points x + iy spread evenly inside a shape, in its unit circle; complex, to turn them in one go."""
    side = 48
    upright = SceneObject(shape, "red", "solid", "large", 0.5, 0.5, 1 / _EXTENT[shape], 0.0, (0, 0, 0))
    y, x = np.nonzero(_coverage(upright, side)[2] > 127)
    chosen = np.linspace(0, len(x) - 1, _NUM_POINTS).round().astype(int)
    return ((x[chosen] + 0.5) + 1j * (y[chosen] + 0.5)) * (2 / side) - (1 + 1j)


@lru_cache(maxsize=256)
def _font(size_px: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size_px)


@lru_cache(maxsize=1)
def _font_metrics() -> tuple[float, dict[str, float]]:
    """Capital height over font size, and each character's advance over capital height."""
    font = _font(400.0)
    cap = -font.getbbox("H", anchor="ls")[1]
    return cap / 400, {char: font.getlength(char) / cap for char in LETTERS + "0123456789"}


def _text_half_extent(content: str, height: float) -> Point:
    """Half the width and height of a string with its outline, as fractions of the picture's side."""
    advances = _font_metrics()[1]
    return 0.5 * sum(advances[c] for c in content) * height + _OUTLINE, 0.5 * height + _OUTLINE


def _fit_text(content: str, *, tallest: float) -> float:
    """The tallest of the heights (few, so that glyphs can be kept) at which a string fits the picture."""
    fitting = (h for h in _TEXT_HEIGHTS if h <= tallest and 2 * _text_half_extent(content, h)[0] <= _TEXT_MAX_WIDTH)
    return next(fitting)


@lru_cache(maxsize=4096)
def _glyph(char: str, height_px: float, bold_px: float, outline_px: float) -> NDArray[np.uint8]:
    """[2, h, w] coverage of a character's inside, and of inside and outline; `pad` pixels around the capital's box."""
    cap, advances = _font_metrics()
    font, pad = _font(height_px / cap), math.ceil(bold_px + outline_px) + 1
    size = (math.ceil(advances[char] * height_px) + 2 * pad, math.ceil(height_px) + 2 * pad)
    layers = []
    for stroke in (bold_px, bold_px + outline_px):
        canvas = Image.new("L", size)
        ImageDraw.Draw(canvas).text((pad, size[1] - pad), char, fill=255, font=font, anchor="ls", stroke_width=stroke)
        layers.append(np.asarray(canvas))
    return np.stack(layers)


def _text_coverage(text: WrittenText, img_size: int) -> tuple[slice, slice, NDArray[np.uint8]]:
    """Rows, columns and [2, h, w] coverage of a string: inside; inside with outline."""
    advances = _font_metrics()[1]
    height_px, bold_px, outline_px = text.height * img_size, 0.008 * img_size, max(0.6, 0.7 * _OUTLINE * img_size)
    glyphs = [_glyph(char, height_px, bold_px, outline_px) for char in text.content]
    starts = [0]
    for char in text.content:
        starts.append(starts[-1] + advances[char] * height_px)
    whole = np.zeros((2, glyphs[0].shape[1], max(round(s) + g.shape[2] for s, g in zip(starts, glyphs))), np.uint8)
    for start, glyph in zip(starts, glyphs):
        part = whole[:, :, round(start) : round(start) + glyph.shape[2]]
        np.maximum(part, glyph, out=part)
    top = round(text.center_y * img_size - whole.shape[1] / 2)
    left = round(text.center_x * img_size - whole.shape[2] / 2)
    rows, columns = max(-top, 0), max(-left, 0)
    whole = whole[:, rows : img_size - top, columns : img_size - left]
    return _span(top + rows, whole.shape[1]), _span(left + columns, whole.shape[2]), whole


def _span(start: int, length: int) -> slice:
    return slice(start, start + length)


@lru_cache(maxsize=16)
def _axis(img_size: int) -> NDArray[np.float32]:
    """[img_size] centres of the pixels in unit coordinates."""
    axis = (np.arange(img_size, dtype=np.float32) + 0.5) / img_size
    axis.setflags(write=False)
    return axis


def _coverage(obj: SceneObject, img_size: int) -> tuple[slice, slice, NDArray[np.uint8]]:
    """Rows, columns and [h, w] coverage 0..255 of an object, drawn four times as large (twice if big)."""
    x, y, radius = obj.center_x * img_size, obj.center_y * img_size, obj.radius * img_size
    left, top = max(math.floor(x - radius), 0), max(math.floor(y - radius), 0)
    width = min(math.ceil(x + radius), img_size) - left
    height = min(math.ceil(y + radius), img_size) - top
    fine = 4 if width <= 64 else 2
    cos, sin = math.cos(obj.rotation) * radius * fine, math.sin(obj.rotation) * radius * fine
    # Pillow puts the centre of a pixel, not its corner, at whole coordinates
    shift = np.array(((x - left) * fine - 0.5, (y - top) * fine - 0.5))
    outline = _OUTLINES[obj.shape] @ np.array(((cos, sin), (-sin, cos)))
    canvas = Image.new("L", (width * fine, height * fine))
    pen = ImageDraw.Draw(canvas)
    pen.polygon((outline + shift).ravel().tolist(), fill=255)
    if obj.shape == "ring":
        pen.polygon((outline * _RING_HOLE + shift).ravel().tolist(), fill=0)
    return _span(top, height), _span(left, width), np.asarray(canvas.reduce(fine))


def _wave(x: NDArray[np.float32], sharpness: float) -> NDArray[np.float32]:
    """Square wave from -1 to 1 with soft edges, of period 1."""
    return np.clip(np.sin(x * np.float32(2 * math.pi)) * np.float32(sharpness), -1, 1)


def _pattern(kind: str, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stripes across u, or checks over u and v; coordinates in periods; values -1..1."""
    return _wave(u, 3) if kind == "striped" else _wave(u, 3) * _wave(v, 3)


def _background(scene: Scene, img_size: int) -> NDArray[np.float32]:
    """[H, W, 3] in 0..255, not clipped."""
    background, axis = scene.background, _axis(img_size)
    if background.kind == "plain":
        return np.full((img_size, img_size, 3), background.rgb, dtype=np.float32)
    if background.kind in ("grainy", "speckled"):
        rng = draw_rng(scene.seed, f"scene-grain/{scene.split}", scene.index)
        if background.kind == "grainy":
            relief = rng.random((img_size, img_size), dtype=np.float32) * 2 - 1
        else:
            cells = 14 + int(background.phase * 8)
            specks = np.sign(rng.random((cells, cells), dtype=np.float32) - 0.5) * (rng.random((cells, cells)) < 0.3)
            nearest = (axis * cells).astype(np.intp)
            relief = specks.astype(np.float32)[nearest][:, nearest]
    else:
        cos, sin = np.float32(math.cos(background.angle)), np.float32(math.sin(background.angle))
        u, v = axis * cos + (axis * sin)[:, None], axis * -sin + (axis * cos)[:, None]
        if background.kind == "gradient":
            relief = (u - u.mean()) * np.float32(2)
        else:
            period, phase = np.float32(background.period), np.float32(background.phase)
            relief = _pattern(background.kind, u / period + phase, v / period + phase)
    return relief[:, :, None] * np.float32(background.amplitude) + np.array(background.rgb, dtype=np.float32)


def _object_color(obj: SceneObject, axis: NDArray[np.float32], rows: slice, columns: slice) -> NDArray[np.float32]:
    """[3] or [h, w, 3] colour of an object's pixels; a texture is the colour and a darker shade of the same hue."""
    rgb = np.array(obj.rgb, dtype=np.float32)
    if obj.texture == "solid":
        return rgb
    # periods per diameter: at 32 pixels the stripes of a small object are two pixels wide
    scale = 2.2 / obj.diameter
    cos, sin = np.float32(math.cos(obj.rotation) * scale), np.float32(math.sin(obj.rotation) * scale)
    x, y = axis[columns] - np.float32(obj.center_x), (axis[rows] - np.float32(obj.center_y))[:, None]
    relief = _pattern(obj.texture, x * cos + y * sin, y * cos - x * sin)
    return (np.float32(0.78) + np.float32(0.22) * relief)[:, :, None] * rgb


def _blend(canvas: NDArray[np.float32], color: NDArray[np.float32], coverage: NDArray[np.uint8]) -> None:
    """Blends a colour into a part of the canvas, in place."""
    canvas += (coverage * np.float32(1 / 255))[:, :, None] * (color - canvas)


def _check_img_size(img_size: int) -> None:
    if img_size < 16:
        raise UserError(f"img_size {img_size} is too small for scenes; it must be 16 pixels or more")


def render(scene: Scene, img_size: int) -> NDArray[np.uint8]:
    """The picture: uint8 [img_size, img_size, 3], RGB, anti-aliased, the same in every process."""
    _check_img_size(img_size)
    canvas, axis = _background(scene, img_size), _axis(img_size)
    for obj in scene.objects:
        rows, columns, coverage = _coverage(obj, img_size)
        _blend(canvas[rows, columns], _object_color(obj, axis, rows, columns), coverage)
    if scene.text:
        rows, columns, layers = _text_coverage(scene.text, img_size)
        for rgb, coverage in ((scene.text.outline_rgb, layers[1]), (scene.text.rgb, layers[0])):
            _blend(canvas[rows, columns], np.array(rgb, dtype=np.float32), coverage)
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)


def masks(scene: Scene, img_size: int) -> NDArray[np.bool_]:
    """bool [N, img_size, img_size]: the visible part of each object, without what later objects and the string hide."""
    _check_img_size(img_size)
    visible_NHW = np.zeros((len(scene.objects), img_size, img_size), dtype=bool)
    for i, obj in enumerate(scene.objects):
        rows, columns, coverage = _coverage(obj, img_size)
        inside = coverage > 127
        visible_NHW[:i, rows, columns] &= ~inside
        visible_NHW[i, rows, columns] = inside
    if scene.text:
        rows, columns, layers = _text_coverage(scene.text, img_size)
        visible_NHW[:, rows, columns] &= layers[1] <= 127
    return visible_NHW


def boxes_xywh(visible_NHW: NDArray[np.bool_]) -> NDArray[np.float32]:
    """float32 [N, 4]: left, top, width, height in pixels, tight around each of the masks; zeros for an empty one."""
    boxes = np.zeros((len(visible_NHW), 4), dtype=np.float32)
    for box, visible in zip(boxes, visible_NHW):
        rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    return boxes
