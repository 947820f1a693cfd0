"""How pictures enter a frozen encoder: each model's own size, crop, interpolation and statistics.

Shape letters: C channels, H/W pixels.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Literal

from PIL import Image
from torch import Tensor

from pretrain.data.transforms import to_tensor
from pretrain.types import ImageSpec

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class ImageTransform:
    """RGB picture to uint8 [3, img_size, img_size]; `spec.normalise` turns bytes into the model's floats on any device.

    Attributes:
        spec: side of the square picture and the statistics.
        crop_pct: share of the resized picture's side that the centre crop keeps; 1.0 resizes to `img_size`.
        interpolation: of the resizing.
        mode: "crop" resizes the short side and cuts out the middle; "squash" resizes both sides (SigLIP); "pad" puts the picture
            in the middle of a square of the statistics' mean colour and resizes that (LLaVA-1.5).
    """

    spec: ImageSpec
    crop_pct: float = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mode: Literal["crop", "squash", "pad"] = "crop"

    def __call__(self, image: Image.Image) -> Tensor:
        size = self.spec.img_size
        resample = _RESAMPLING[self.interpolation]
        target = int(size / self.crop_pct)  # as timm and torchvision round
        if self.mode == "pad":
            image = self._padded(image)
        short = min(image.size)
        if self.mode == "squash":
            width = height = target
        else:
            width, height = (target if side == short else int(target * side / short) for side in image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), resample)
        left, top = round((width - size) / 2), round((height - size) / 2)
        return to_tensor(image.crop((left, top, left + size, top + size)))

    def _padded(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        if min(image.size) == side:
            return image
        square = Image.new("RGB", (side, side), tuple(round(255 * value) for value in self.spec.mean))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

    def identity(self) -> str:
        """What decides the pixels, as one line: part of the key of cached features."""
        return json.dumps(asdict(self), sort_keys=True)


def whole_picture(
    transform: ImageTransform, *, mode: Literal["squash", "pad"] = "squash", img_size: int | None = None
) -> ImageTransform:
    """An encoder's transform without its crop: the picture is squeezed into the square, or padded to it.

    Squeezed, boxes in shares of the sides are the same before and after.
    """
    spec = transform.spec if img_size is None else replace(transform.spec, img_size=img_size)
    return replace(transform, spec=spec, crop_pct=1.0, mode=mode)


def crop_share(img_size: int, *, resized: int) -> float:
    """The `crop_pct` that makes the resized side exactly `resized`: img_size / resized can fall just short."""
    share = img_size / resized
    return share if int(img_size / share) == resized else img_size / (resized + 0.5)
