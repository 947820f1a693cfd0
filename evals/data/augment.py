"""The probe's training augmentations as published (paper, Table A2; reference, section 6), drawn from (seed, epoch, index).

Shape letters: C channels, H/W pixels.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import posterize, rand_augment_transform
from torch import Tensor
from torchvision.transforms import ColorJitter

from evals.transforms import ImageTransform
from pretrain.data.transforms import TrainTransform, to_tensor
from pretrain.rng import draw_key, draw_rng
from pretrain.types import ImageSpec

Augment = Literal["published", "none"]
#: All from Table A2.
SCALE, RATIO, FLIP, COLOR_JITTER = (0.08, 1.0), (0.75, 1.33), 0.5, 0.3
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators begin from `key` inside, and go on outside as if nothing had been.

    timm's RandAugment draws from the first two, torchvision's ColorJitter from torch's CPU generator.
    """
    state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key & (2**63 - 1))  # torch.manual_seed would set every GPU's generator too
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def _posterize(image: Image.Image, bits_to_keep: int, **options: object) -> Image.Image:
    """timm's, but for the rare draw of 0 bits (magnitude 10 of N(9, 0.5)), which Pillow refuses: one bit is kept."""
    return posterize(image, max(1, bits_to_keep), **options)


class AugmentTransform:
    """RandomResizedCrop (bicubic), flip, RandAugment and colour jitter, in timm's order.

    timm leaves colour jitter out where RandAugment is on unless it is forced; the paper lists both, so both are applied:
    `transforms_imagenet_train(color_jitter=0.3, auto_augment="rand-m9-mstd0.5-inc1", force_color_jitter=True)`.

    Args:
        spec: side of the result; the mean is what RandAugment fills corners with, as in timm.
        seed: of all draws.
    """

    def __init__(self, spec: ImageSpec, seed: int) -> None:
        self.spec, self.seed = spec, seed
        self._crop = TrainTransform(spec.img_size, scale=SCALE, ratio=RATIO, flip=FLIP)
        fill = tuple(min(255, round(255 * value)) for value in spec.mean)
        # timm's further parameter, translate_const, is read by none of this policy's operations
        self._rand_augment = rand_augment_transform(
            RAND_AUGMENT, {"img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
        )
        for op in self._rand_augment.ops:
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize
        self._jitter = ColorJitter(COLOR_JITTER, COLOR_JITTER, COLOR_JITTER)

    def __call__(self, image: Image.Image, *, epoch: int, index: int) -> Tensor:
        """RGB picture to uint8 [3, img_size, img_size]: a function of the picture and (seed, epoch, index) alone."""
        crop_CHW = self._crop(image, draw_rng(self.seed, "probe/crop", index, attempt=epoch))
        crop = Image.fromarray(crop_CHW.permute(1, 2, 0).numpy())
        with seeded(draw_key(self.seed, "probe/augment", index, attempt=epoch)):
            return to_tensor(self._jitter(self._rand_augment(crop)))


def train_transform(augment: Augment, *, transform: ImageTransform, seed: int) -> ImageTransform | AugmentTransform:
    """What training pictures of a data set go through: its config's `augment`, or the encoder's own transform for "none"."""
    return AugmentTransform(transform.spec, seed) if augment == "published" else transform
