"""Pictures of any shape on a detector's square canvas, boxes and masks moved with them; and the way back.

Training uses large-scale jitter as in ViTDet's recipe (Li et al. 2022, arXiv 2203.16527, App. A.2; Ghiasi et al. 2021,
arXiv 2012.07177): the longest side becomes `size` times a number from 0.1 to 2.0, what does not fit is cut off at random, what is
too small leaves the canvas empty to the right and below, half of the pictures are flipped.

Shape letters: N objects, M regions of crowds, K detections, C channels, H/W pixels of the file's picture, h/w those of its part
on the canvas, S side of the canvas.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from evals.detection.samples import Objects, Sample
from pretrain.data.transforms import to_tensor
from pretrain.rng import draw_rng
from pretrain.types import UserError

#: Smallest and largest scale of the jitter that the published recipe has.
LARGE_SCALE_JITTER = (0.1, 2.0)
#: Objects that are less wide or less high than this on the canvas are left out, in pixels.
MIN_SIDE = 1.0


class CanvasTransform:
    """A picture on a square canvas; its aspect is kept, and it fills the canvas from the top left corner.

    Without jitter its longest side becomes `size`. Pictures are resized bilinearly with anti-aliasing, masks by taking the pixel
    that the centre of each new pixel falls on, from the very same places. Boxes are clipped to what is on the canvas; where
    a crop cuts an object that has a mask, its box becomes the tight one of the rest (as in the recipe). Objects of less than
    one pixel, or without a pixel in their mask, are left out.

    Args:
        size: side of the canvas in pixels.
        jitter: smallest and largest scale of the random resizing; None resizes to fit.
        flip: whether half of the pictures are flipped, left to right.
        seed: of all draws.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self, size: int, *, jitter: tuple[float, float] | None = None, flip: bool = False, seed: int = 0
    ) -> None:
        if size < 1:
            raise UserError(f"size: {size} is no side in pixels; give at least 1")
        if jitter is not None and (len(jitter) != 2 or not 0 < jitter[0] <= jitter[1] < math.inf):
            raise UserError(f"jitter: {jitter} is no range of scales; give two, 0 < smallest <= largest, or none")
        self.size, self.jitter, self.flip, self.seed = size, None if jitter is None else tuple(jitter), flip, seed

    def __call__(
        self, image: Image.Image, objects: Objects, *, image_id: int, epoch: int = 0, index: int = 0
    ) -> Sample:
        """RGB picture and its objects to a sample: a function of these and (seed, epoch, index) alone."""
        rng = draw_rng(self.seed, "detection/canvas", index, attempt=epoch)
        scale_draw, left_draw, top_draw, flip_draw = rng.random(4)
        scale = self.size / max(image.size)
        if self.jitter is not None:
            scale *= self.jitter[0] + (self.jitter[1] - self.jitter[0]) * scale_draw
        width, height = (max(1, math.floor(scale * side + 0.5)) for side in image.size)
        kept_width, kept_height = min(width, self.size), min(height, self.size)
        left = int(left_draw * (width - kept_width + 1))
        top = int(top_draw * (height - kept_height + 1))
        window = left, top, left + kept_width, top + kept_height
        view = _View(image.size, (width, height), window, flipped=self.flip and bool(flip_draw < 0.5))
        canvas_CSS = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
        canvas_CSS[:, :kept_height, :kept_width] = view.pixels(image)
        return Sample(
            image_CSS=canvas_CSS,
            objects=self._move(objects, view),
            image_id=image_id,
            content_hw=(kept_height, kept_width),
            original_hw=(image.height, image.width),
        )

    def _move(self, objects: Objects, view: "_View") -> Objects:
        box_N4, cut_N = view.boxes(objects.box_N4)
        mask_NSS = None
        alive_N = torch.ones(len(box_N4), dtype=torch.bool)
        if objects.mask_NHW is not None:
            mask_Nhw = view.masks(objects.mask_NHW)
            alive_N = mask_Nhw.flatten(1).any(1)
            box_N4 = _tighten(box_N4, mask_Nhw, cut_N & alive_N)
            mask_NSS = F.pad(mask_Nhw, (0, self.size - mask_Nhw.shape[2], 0, self.size - mask_Nhw.shape[1]))
        alive_N &= _large_enough(box_N4)
        crowd_M4, _ = view.boxes(objects.crowd_M4)
        return Objects(
            box_N4=box_N4[alive_N],
            label_N=objects.label_N[alive_N],
            mask_NHW=None if mask_NSS is None else mask_NSS[alive_N],
            crowd_M4=crowd_M4[_large_enough(crowd_M4)],
        )


class _View:
    """A resized picture, a window of it, and perhaps its mirror image.

    Args:
        original: width and height of the picture.
        resized: likewise.
        window: left, top, right, bottom in pixels of the resized picture.
        flipped: whether left and right change places in the window.
    """

    def __init__(
        self,
        original: tuple[int, int],
        resized: tuple[int, int],
        window: tuple[int, int, int, int],
        *,
        flipped: bool,
    ) -> None:
        self.original, self.resized, self.window, self.flipped = original, resized, window, flipped
        self.scale_xy = resized[0] / original[0], resized[1] / original[1]

    def pixels(self, image: Image.Image) -> Tensor:
        """uint8 [3, h, w]. Only the window is resized, from all pixels that its filter reaches."""
        (scale_x, scale_y), (left, top, right, bottom) = self.scale_xy, self.window
        if self.resized == self.original:
            part = image.crop(self.window)
        else:
            source = (left / scale_x, top / scale_y, right / scale_x, bottom / scale_y)
            # rounding must not reach outside the picture
            source = tuple(min(value, self.original[k % 2]) for k, value in enumerate(source))
            part = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=source)
        part_Chw = to_tensor(part)
        return part_Chw.flip(-1) if self.flipped else part_Chw

    def masks(self, mask_NHW: Tensor) -> Tensor:
        """bool [N, h, w]: the pixel under the centre of each new one."""
        left, top, right, bottom = self.window
        column_w, row_h = (
            ((torch.arange(first, behind, dtype=torch.float64) + 0.5) * old / new).long().clamp_(max=old - 1)
            for first, behind, old, new in zip((left, top), (right, bottom), self.original, self.resized, strict=True)
        )
        if self.flipped:
            column_w = column_w.flip(0)
        return mask_NHW.index_select(1, row_h).index_select(2, column_w)

    def boxes(self, box_N4: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [N, 4] in pixels of the window, clipped to it, and bool [N]: which of them the window cuts."""
        left, top, right, bottom = self.window
        width, height = right - left, bottom - top
        whole_N4 = box_N4.double() * torch.tensor(self.scale_xy * 2) - torch.tensor([left, top, left, top])
        if self.flipped:
            whole_N4 = torch.stack(
                [width - whole_N4[:, 2], whole_N4[:, 1], width - whole_N4[:, 0], whole_N4[:, 3]], dim=1
            )
        inside_N4 = whole_N4.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        cut_N = ((inside_N4 - whole_N4).abs() > 1e-3).any(1)  # a thousandth of a pixel is rounding
        return inside_N4.float(), cut_N


def _large_enough(box_N4: Tensor) -> Tensor:
    return (box_N4[:, 2:] - box_N4[:, :2] >= MIN_SIDE).all(1)


def tight_boxes(mask_NHW: Tensor) -> Tensor:
    """float32 [N, 4] around the pixels of each mask; no mask may be empty."""
    spans = []
    for axis_NL in (mask_NHW.any(1), mask_NHW.any(2)):  # columns, rows
        first_N = axis_NL.int().argmax(1)
        behind_N = axis_NL.shape[1] - axis_NL.flip(1).int().argmax(1)
        spans.append((first_N, behind_N))
    (x0, x1), (y0, y1) = spans
    return torch.stack([x0, y0, x1, y1], dim=1).float()


def _tighten(box_N4: Tensor, mask_Nhw: Tensor, cut_N: Tensor) -> Tensor:
    """Boxes of the objects that were cut, shrunk to what is left of their masks."""
    if not cut_N.any():
        return box_N4
    tight_N4 = tight_boxes(mask_Nhw[cut_N])
    old_N4 = box_N4[cut_N]
    box_N4 = box_N4.clone()
    box_N4[cut_N] = torch.cat([old_N4[:, :2].maximum(tight_N4[:, :2]), old_N4[:, 2:].minimum(tight_N4[:, 2:])], dim=1)
    return box_N4


def boxes_to_file(box_K4: Tensor | np.ndarray, *, sample: Sample) -> np.ndarray:
    """Boxes on the canvas in pixels of the file's picture, clipped to it; for samples that were neither cropped nor flipped.

    Returns:
        float32 [K, 4].
    """
    scale_x, scale_y = sample.scale_xy
    height, width = sample.original_hw
    box_K4 = np.asarray(box_K4, dtype=np.float64) / (scale_x, scale_y, scale_x, scale_y)
    return np.clip(box_K4, 0, (width, height, width, height)).astype(np.float32)


def masks_to_file(mask_KSS: Tensor, *, sample: Sample) -> Tensor:
    """Masks on the canvas at the size of the file's picture; for samples that were neither cropped nor flipped.

    Args:
        mask_KSS: bool, or probabilities; resized bilinearly and cut at one half.
        sample: whose canvas they lie on.

    Returns:
        bool [K, H, W].
    """
    height, width = sample.content_hw
    content_1Khw = mask_KSS[None, :, :height, :width].float()
    if not len(mask_KSS):
        return torch.zeros(0, *sample.original_hw, dtype=torch.bool)
    resized_1KHW = F.interpolate(content_1Khw, size=sample.original_hw, mode="bilinear", align_corners=False)
    return resized_1KHW[0] >= 0.5
