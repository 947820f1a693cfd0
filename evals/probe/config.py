"""Settings of a probe: the published grid, all of it trained at once."""

from dataclasses import dataclass, field
from itertools import product
from typing import Literal, NamedTuple

from evals.probe.heads import HeadConfig
from pretrain.types import UserError


class Setting(NamedTuple):
    """One setting of the grid."""

    lr: float
    weight_decay: float


#: Of the published protocol (Table A2), which the data sets' warm-up belongs to.
PUBLISHED_EPOCHS = 100


@dataclass(frozen=True)
class ProbeConfig:
    """Protocol of a probe; defaults are the published ones (Tables A2, B1) but for `epochs`, which is 100 there.

    Not published, and chosen here: the head's details, warm-up from 1e-6, biases and queries are not decayed, the setting is
    chosen on a held-out part of the training set, and the chosen head is not trained again on all of it.

    Attributes:
        mode: "cached" encodes each picture once, without augmentation, and keeps the features on disk; "augmented" (as
            published) draws and encodes pictures anew in every epoch.
        lrs: peak rates of the grid.
        weight_decays: AdamW's decays of the grid.
        beta1: AdamW's first moment.
        beta2: AdamW's second moment.
        min_lr: rate at the end of the cosine.
        warmup_start_lr: rate of the first step of a warm-up.
        warmup_epochs: epochs of linear warm-up; where None the data set's (5 for ImageNet-1k, else 0), less in proportion
            where `epochs` is below 100.
        epochs: passes over the training set.
        batch_size: pictures a step; the data set's (1024 for ImageNet-1k, else 512) where None.
        clip: bound of each setting's own gradient norm.
        held_out: share of the training set that the setting is chosen on.
        head: the head itself.
    """

    mode: Literal["cached", "augmented"] = "cached"
    lrs: tuple[float, ...] = (5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3)
    weight_decays: tuple[float, ...] = (0.05, 0.1)
    beta1: float = 0.9
    beta2: float = 0.999
    min_lr: float = 1e-5
    warmup_start_lr: float = 1e-6
    warmup_epochs: int | None = None
    epochs: int = 20
    batch_size: int | None = None
    clip: float = 3.0
    held_out: float = 0.1
    head: HeadConfig = field(default_factory=HeadConfig)

    def settings(self) -> list[Setting]:
        """The grid, rates outside."""
        return [Setting(*pair) for pair in product(self.lrs, self.weight_decays)]

    def warmup(self, published_epochs: int) -> int:
        """Epochs of warm-up where the published protocol has `published_epochs`."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        return published_epochs * min(self.epochs, PUBLISHED_EPOCHS) // PUBLISHED_EPOCHS

    def check(self) -> None:
        """Raise UserError for values that cannot be meant."""
        if not self.lrs or not self.weight_decays:
            raise UserError("probe.lrs and probe.weight_decays need at least one value each")
        for name in ("lrs", "weight_decays"):
            if any(value < 0 or (name == "lrs" and value == 0) for value in getattr(self, name)):
                raise UserError(f"probe.{name}={list(getattr(self, name))} must be positive")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"probe.{name}={value} must be at least 1")
        if not 0 < self.held_out < 1:
            raise UserError(f"probe.held_out={self.held_out} must be a share between 0 and 1")
        if not self.clip > 0:
            raise UserError(f"probe.clip={self.clip} must be above 0")
        if self.min_lr > min(self.lrs):
            raise UserError(f"probe.min_lr={self.min_lr} is above the smallest rate {min(self.lrs)}")
