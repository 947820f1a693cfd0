"""How an answering model is trained on a frozen encoder. Defaults are ours, for minutes on a CPU with scenes.

Published (reference, section 7, Table C1, LLaVA's data): AdamW 0.9/0.999, rate 1e-5 for the language model and 8 times as much
for the connector, weight decay 0.01, batch 128, 5,000 steps with 250 of warm-up, cosine to 0, clip 1.0, one stage, the encoder
frozen: `configs/evals/vqa_llava.yaml`.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from evals.features import Precision
from evals.multimodal.language import LanguageConfig
from pretrain.types import UserError


@dataclass(frozen=True)
class TrainConfig:
    """Rates, steps and batches.

    Attributes:
        lr: peak rate of the language model, or of the kept decoder.
        weight_decay: of matrices.
        beta1: AdamW's first moment.
        beta2: AdamW's second moment.
        steps: optimiser steps.
        warmup_steps: of linear warm-up.
        warmup_start_lr: rate of the first step.
        min_lr: rate of the last step.
        batch_size: conversations a step; of the kept decoder, questions.
        accumulate: micro-batches that a step's conversations are divided into.
        clip: bound of the gradient's norm; None does not clip.
        precision: "bf16" is autocast.
        save_every: steps between two checkpoints, or the nearest divisor of `steps`: what an interruption loses.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    steps: int = 1000
    warmup_steps: int = 50
    warmup_start_lr: float = 0.0
    min_lr: float = 0.0
    batch_size: int = 16
    accumulate: int = 1
    clip: float | None = 1.0
    precision: Precision = "bf16"
    save_every: int = 500

    def check(self) -> None:
        """Raise UserError for values that cannot be meant."""
        for name in ("lr", "steps", "batch_size", "accumulate", "clip", "save_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"train.{name}={value} must be above 0")
        for name in ("weight_decay", "warmup_steps", "warmup_start_lr", "min_lr"):
            if not getattr(self, name) >= 0:
                raise UserError(f"train.{name}={getattr(self, name)} must not be negative")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)} must be at least 0 and below 1")
        if self.min_lr > self.lr:
            raise UserError(f"train.min_lr={self.min_lr} is above train.lr={self.lr}")
        if self.warmup_steps >= self.steps:
            raise UserError(f"train.warmup_steps={self.warmup_steps} must be below train.steps={self.steps}")
        if self.batch_size % self.accumulate:
            raise UserError(f"train.accumulate={self.accumulate} must divide train.batch_size={self.batch_size}")

    @property
    def micro_batch_size(self) -> int:
        return self.batch_size // self.accumulate

    @property
    def chunk_steps(self) -> int:
        """Optimiser steps of what Lightning takes for an epoch: the divisor of `steps` that is nearest to `save_every`."""
        divisors = [number for number in range(1, self.steps + 1) if self.steps % number == 0]
        return min(divisors, key=lambda number: abs(math.log(number / self.save_every)))


@dataclass(frozen=True)
class ConnectorTrainConfig(TrainConfig):
    """As `TrainConfig`, of a connector with its language model.

    Attributes:
        connector_lr_factor: the connector's rate over `lr`; published 8, for a language model that knows its language. One
            that starts from nothing learns as fast as the connector.
        packed: whether turns that know nothing of each other share a sequence and its picture; False gives each a sequence of its
            own, for language models that take no positions or masks from outside.
    """

    connector_lr_factor: float = 1.0
    packed: bool = True

    def check(self) -> None:
        super().check()
        if not self.connector_lr_factor > 0:
            raise UserError(f"train.connector_lr_factor={self.connector_lr_factor} must be above 0")


#: The kept decoder is small and reads one question at a time.
DECODER = TrainConfig(steps=1500, batch_size=128)


@dataclass(frozen=True)
class RecipeConfig:
    """The models that answer and how they are trained.

    Attributes:
        lm: the language model behind the connector.
        train: how both are trained.
        decoder: how the kept decoder is fine-tuned.
        img_size: side in pixels of the pictures that the encoder sees; its own where None. Pictures are padded to a square.
    """

    lm: LanguageConfig = field(default_factory=LanguageConfig)
    train: ConnectorTrainConfig = field(default_factory=ConnectorTrainConfig)
    decoder: TrainConfig = DECODER
    img_size: int | None = None

    def check(self) -> None:
        """Raise UserError for what cannot be meant."""
        self.lm.check()
        self.train.check()
        self.decoder.check()
        if self.img_size is not None and self.img_size < 1:
            raise UserError(f"img_size={self.img_size} must be at least 1")


def train_settings(config: TrainConfig) -> dict[str, Any]:
    """What decides the trained model, as plain data; how often it is saved does not."""
    return {name: value for name, value in asdict(config).items() if name != "save_every"}
