"""How pictures enter a frozen encoder: each model's own size, crop, interpolation and statistics.

Shape letters: C channels, H/W pixels.
"""

import json
from dataclasses import asdict, dataclass
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
        mode: "crop" resizes the short side and cuts out the middle; "squash" resizes both sides (SigLIP).
    """

    spec: ImageSpec
    crop_pct: float = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mode: Literal["crop", "squash"] = "crop"

    def __call__(self, image: Image.Image) -> Tensor:
        size = self.spec.img_size
        resample = _RESAMPLING[self.interpolation]
        target = int(size / self.crop_pct)  # as timm and torchvision round
        short = min(image.size)
        if self.mode == "squash":
            width = height = target
        else:
            width, height = (target if side == short else int(target * side / short) for side in image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), resample)
        left, top = round((width - size) / 2), round((height - size) / 2)
        return to_tensor(image.crop((left, top, left + size, top + size)))

    def identity(self) -> str:
        """What decides the pixels, as one line: part of the key of cached features."""
        return json.dumps(asdict(self), sort_keys=True)


def crop_share(img_size: int, *, resized: int) -> float:
    """The `crop_pct` that makes the resized side exactly `resized`: img_size / resized can fall just short."""
    share = img_size / resized
    return share if int(img_size / share) == resized else img_size / (resized + 0.5)
