"""Pictures to uint8 tensors; every draw comes from the generator that is handed in.

Shape letters: C channels, H/W height and width in pixels.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pretrain.types import UserError

#: RGB picture and the sample's generator to uint8 [3, img_size, img_size].
Transform = Callable[[Image.Image, np.random.Generator], Tensor]

_NUM_TRIES = 10  # as torchvision's RandomResizedCrop


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def _check_size(img_size: int) -> int:
    if img_size < 1:
        raise UserError(f"img_size: {img_size} is not a size in pixels; give at least 1")
    return img_size


def random_crop_box(
    width: int, height: int, rng: np.random.Generator, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random crop, by the algorithm of torchvision's RandomResizedCrop.

    The share of the area is uniform, the aspect ratio (width to height) log-uniform. After 10 draws that do not fit,
    it is the largest crop in the middle whose ratio is in bounds.
    """
    for _ in range(_NUM_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(0, height - crop_height, endpoint=True))
            left = int(rng.integers(0, width - crop_width, endpoint=True))
            return left, top, left + crop_width, top + crop_height
    crop_width = min(width, max(1, round(height * ratio[1])))
    crop_height = min(height, max(1, round(width / ratio[0])))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


class TrainTransform:
    """A random crop, resized with bicubic interpolation, and a horizontal flip; nothing else (paper, App. A).

    Args:
        img_size: side of the result in pixels.
        scale: smallest and largest share of the picture's area.
        ratio: smallest and largest width to height; the upper one is printed as 1.33.
        flip: probability of a flip.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        img_size: int,
        *,
        scale: tuple[float, float] = (0.4, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        self.img_size = _check_size(img_size)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(
                f"augment.scale: {scale} is no range of area shares; give two, 0 < smallest <= largest <= 1"
            )
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1] < math.inf:
            raise UserError(f"augment.ratio: {ratio} is no range of width to height; give two, 0 < smallest <= largest")
        if not 0 <= flip <= 1:
            raise UserError(f"augment.flip: {flip} is not a probability; give a number from 0 to 1")
        self.scale, self.ratio, self.flip = tuple(scale), tuple(ratio), flip

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """RGB picture to uint8 [3, img_size, img_size]."""
        box = random_crop_box(image.width, image.height, rng, scale=self.scale, ratio=self.ratio)
        left, top, right, bottom = box
        # The crop first: a filter over the whole picture would also see pixels around the crop. torch's kernel takes a third
        # of Pillow's time here, and differs from it by one grey level at most.
        crop_1CHW = torch.from_numpy(np.array(image)[top:bottom, left:right]).permute(2, 0, 1)[None]
        size = (self.img_size, self.img_size)
        image_CHW = F.interpolate(crop_1CHW, size=size, mode="bicubic", antialias=True, align_corners=False)[0]
        return (image_CHW.flip(-1) if rng.random() < self.flip else image_CHW).contiguous()

    def spare(self, width: int, height: int) -> float:
        """How many times smaller a picture may be decoded without any crop of it coming out below `img_size`."""
        smallest = math.sqrt(width * height * self.scale[0] * min(self.ratio[0], 1 / self.ratio[1]))
        return min(smallest, width, height) / self.img_size  # a narrow picture is cropped to its whole width or height


class EvalTransform:
    """The middle square: short side to `img_size` with bicubic interpolation, then a centre crop (crop_pct 1.0).

    As the released checkpoints' Hugging Face and timm configs have it (reference, section 9). Draws nothing.

    Raises:
        UserError: `img_size` is below 1.
    """

    def __init__(self, img_size: int) -> None:
        self.img_size = _check_size(img_size)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """RGB picture to uint8 [3, img_size, img_size]."""
        size, short = self.img_size, min(image.size)
        # int and round where torchvision's Resize and CenterCrop have them
        width, height = (size if side == short else int(size * side / short) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        return to_tensor(image.crop((left, top, left + size, top + size)))


class PlainTransform:
    """The picture as it is, for generated ones, which must have the right size already.

    Raises:
        UserError: `img_size` is below 1, or a picture has another size.
    """

    def __init__(self, img_size: int) -> None:
        self.img_size = _check_size(img_size)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """RGB picture to uint8 [3, img_size, img_size]."""
        if image.size != (self.img_size, self.img_size):
            size = f"{image.width} x {image.height}"
            raise UserError(f"img_size: a picture has {size} pixels, {self.img_size} x {self.img_size} are needed")
        return to_tensor(image)
