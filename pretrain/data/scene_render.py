"""Scenes as pictures, masks and boxes, at any size: read off the description, never drawn anew.

Shape letters: N objects, H/W height and width in pixels, h/w those of an object's own bounding box.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pretrain.data.scene_geometry import TEXT_OUTLINE, font, font_metrics, shape_coverage, span
from pretrain.data.scenes import Scene, SceneObject, WrittenText
from pretrain.rng import draw_rng
from pretrain.types import UserError


@lru_cache(maxsize=4096)
def _glyph(char: str, height_px: float, bold_px: float, outline_px: float) -> NDArray[np.uint8]:
    """[2, h, w] coverage of a character's inside, and of inside and outline; `pad` pixels around the capital's box."""
    cap, advances = font_metrics()
    fitted, pad = font(height_px / cap), math.ceil(bold_px + outline_px) + 1
    size = (math.ceil(advances[char] * height_px) + 2 * pad, math.ceil(height_px) + 2 * pad)
    layers = []
    for stroke in (bold_px, bold_px + outline_px):
        canvas = Image.new("L", size)
        ImageDraw.Draw(canvas).text((pad, size[1] - pad), char, fill=255, font=fitted, anchor="ls", stroke_width=stroke)
        layers.append(np.asarray(canvas))
    return np.stack(layers)


def _text_coverage(text: WrittenText, img_size: int) -> tuple[slice, slice, NDArray[np.uint8]]:
    """Rows, columns and [2, h, w] coverage of a string: inside; inside with outline."""
    advances = font_metrics()[1]
    height_px, bold_px, outline_px = text.height * img_size, 0.008 * img_size, max(0.6, 0.7 * TEXT_OUTLINE * img_size)
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
    return span(top + rows, whole.shape[1]), span(left + columns, whole.shape[2]), whole


@lru_cache(maxsize=16)
def _axis(img_size: int) -> NDArray[np.float32]:
    """[img_size] centres of the pixels in unit coordinates."""
    axis = (np.arange(img_size, dtype=np.float32) + 0.5) / img_size
    axis.setflags(write=False)
    return axis


def _coverage(obj: SceneObject, img_size: int) -> tuple[slice, slice, NDArray[np.uint8]]:
    """Rows, columns and [h, w] coverage 0..255 of an object."""
    return shape_coverage(obj.shape, (obj.center_x, obj.center_y), obj.radius, obj.rotation, img_size)


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
