"""What passes between data, objectives and the LightningModule.

Shape letters: B batch, C channels, H/W height and width in pixels, L text length.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor

#: Captions are cut at 77 tokens, EOS included (paper, App. A).
CONTEXT_LENGTH = 77
#: CLIP's statistics, as in the released checkpoints' Hugging Face and timm configs (reference, section 9).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class UserError(Exception):
    """Bad input. The message is one line that names the field or file, the value, and what would be right."""


@dataclass(frozen=True)
class ImageSpec:
    """How pictures enter an encoder; travels with its weights.

    Attributes:
        img_size: side of the square picture in pixels.
        mean: per channel, on pixels in 0..1.
        std: per channel, on pixels in 0..1.
    """

    img_size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(
            torch.tensor(values, device=like.device).view(1, 3, 1, 1) * 255 for values in (self.mean, self.std)
        )

    def normalise(self, image_BCHW: Tensor) -> Tensor:
        """Bytes 0..255 to the encoder's floats, on the pictures' device."""
        mean, std = self._statistics(image_BCHW)
        return (image_BCHW.float() - mean) / std

    def denormalise(self, image_BCHW: Tensor) -> Tensor:
        """The encoder's floats back to bytes, rounded and clipped."""
        mean, std = self._statistics(image_BCHW)
        return (image_BCHW * std + mean).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Fault:
    """A sample that could not be used.

    Attributes:
        kind: one of "missing", "corrupt", "truncated_tar", "no_image", "bad_caption".
        key: the sample's or file's name.
        detail: one line.
    """

    kind: str
    key: str
    detail: str = ""


@dataclass
class ImageTextBatch:
    """A batch of pictures with captions. Data knows nothing about masks or objectives.

    Attributes:
        image_BCHW: uint8 0..255 as it leaves the loader; float, normalised, once the DataModule has transferred it.
        text_BL: int64 token ids, each caption closed by EOS, padded behind it; no BOS.
        text_valid_BL: bool, True on tokens up to and with the EOS; all False for a picture without a caption.
        position_B: int64, the sample's number in the run.
        seed: the run's seed: every draw is a function of (seed, position).
        keys: the samples' names.
        captions: the caption chosen for each sample, cleaned ("" where there is none).
        label_B: optional int64 class.
        faults: what was skipped while this batch was put together.
        attempts: how many samples were tried for this batch, the skipped ones included.
    """

    image_BCHW: Tensor
    text_BL: Tensor
    text_valid_BL: Tensor
    position_B: Tensor
    seed: int
    keys: list[str]
    captions: list[str]
    label_B: Tensor | None = None
    faults: list[Fault] = field(default_factory=list)
    attempts: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    def _map_tensors(self, function: Callable[[Tensor], Tensor]) -> Self:
        changed = {f.name: function(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **changed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map_tensors(Tensor.pin_memory)


@dataclass(frozen=True)
class LossTerm:
    """One term of a loss as a sum over valid targets, so that ranks can be added before dividing.

    Attributes:
        total: scalar, sum of the loss over the targets, with gradient.
        count: scalar, number of targets (0 where there are none; `total` is then exactly 0).
        weight: factor of the mean in the loss.
    """

    total: Tensor
    count: Tensor
    weight: float
