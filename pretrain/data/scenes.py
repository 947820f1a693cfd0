"""Scenes: small synthetic pictures whose every label is true by construction.

A scene is a pure function of (seed, split, index, level); it is described in unit coordinates (0..1 from the top left
corner, y downwards), so that one scene can be rendered at any size. Everything else (captions, questions, boxes,
masks) is read off the description and never drawn anew.

The pictures, masks and boxes themselves are made in scene_render.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pretrain.data.scene_geometry import EXTENT, Point, Rect, text_half_extent, visible_shares
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
#: The gap kept around strings and objects, as a fraction of the picture's side.
_GAP = 0.015

T = TypeVar("T")
Rgb = tuple[int, int, int]


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
        return 0.5 * self.diameter * EXTENT[self.shape]


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
    radii = [0.5 * diameter * EXTENT[look[0]] for diameter, look in zip(diameters, looks)]
    half_width, half_height = text_half_extent(content, text_height) if content else (0.0, 0.0)
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
            radii = [0.5 * diameter * EXTENT[look[0]] for diameter, look in zip(diameters, looks)]
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
    """Whether enough of each object stays clear of later objects and of the string's box."""
    share_N = visible_shares([look[0] for look in looks], [look[3] for look in looks], centers, radii, rect)
    return bool(share_N[0] >= _MIN_VISIBLE_LARGEST and (share_N >= _MIN_VISIBLE_OTHER).all())


def _fit_text(content: str, *, tallest: float) -> float:
    """The tallest of the heights (few, so that glyphs can be kept) at which a string fits the picture."""
    fitting = (h for h in _TEXT_HEIGHTS if h <= tallest and 2 * text_half_extent(content, h)[0] <= _TEXT_MAX_WIDTH)
    return next(fitting)
