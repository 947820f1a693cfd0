"""What detectors are fed with and what they answer, whatever the data set and whatever the detector.

Boxes are x0, y0, x1, y1 in pixels, y downwards; x1 and y1 lie behind the last pixel, so that a box's width is x1 - x0.

Shape letters: N objects, M regions of crowds, K detections, C channels, H/W pixels, S side of the canvas.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: COCO's run-length encoding of a mask: {"size": [H, W], "counts": bytes}.
Rle = dict[str, Any]


@dataclass(frozen=True)
class Objects:
    """What is annotated on one picture.

    Attributes:
        box_N4: float32, inside the picture.
        label_N: int64, number of the class from 0.
        mask_NHW: bool at the picture's size; None where masks are not asked for.
        crowd_M4: float32, regions of many objects: nothing found there is wrong, and nothing there is looked for.
    """

    box_N4: Tensor
    label_N: Tensor
    mask_NHW: Tensor | None
    crowd_M4: Tensor

    def __len__(self) -> int:
        return len(self.label_N)


@dataclass(frozen=True)
class Sample:
    """One picture on the detector's square canvas, with what is annotated on it, in the canvas's pixels.

    Attributes:
        image_CSS: uint8 RGB; the picture fills it from the top left corner, the rest is 0.
        objects: in pixels of the canvas.
        image_id: COCO's.
        content_hw: height and width of the picture on the canvas.
        original_hw: height and width of the file's picture.
    """

    image_CSS: Tensor
    objects: Objects
    image_id: int
    content_hw: tuple[int, int]
    original_hw: tuple[int, int]

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Pixels of the canvas per pixel of the file's picture; meant for pictures that were not cropped."""
        return self.content_hw[1] / self.original_hw[1], self.content_hw[0] / self.original_hw[0]


@dataclass(frozen=True)
class Detections:
    """What a detector found on one picture, in pixels of the file's picture, by falling score.

    Attributes:
        image_id: COCO's.
        box_K4: float32.
        score_K: float32, 0..1.
        label_K: int64, number of the class from 0.
        masks: a run-length encoding each; None from a detector without masks.
    """

    image_id: int
    box_K4: np.ndarray
    score_K: np.ndarray
    label_K: np.ndarray
    masks: list[Rle] | None = None

    def __len__(self) -> int:
        return len(self.label_K)


def no_objects(height: int, width: int, *, with_masks: bool) -> Objects:
    """A picture without annotations."""
    mask_NHW = torch.zeros(0, height, width, dtype=torch.bool) if with_masks else None
    return Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), mask_NHW, torch.zeros(0, 4))
