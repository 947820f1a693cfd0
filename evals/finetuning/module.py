"""The LightningModule of full fine-tuning: the whole encoder and a head on it.

Shape letters: B batch, C channels or classes, H/W pixels, T tokens, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from evals.data.augment import seeded
from evals.encoder import BlockEncoder, TokenEncoder, feature_width
from evals.finetuning.config import FinetuneConfig
from evals.finetuning.layers import parameter_groups, set_drop_path
from evals.finetuning.schedule import adamw_with_schedule
from evals.probe.heads import build_head
from evals.probe.scored import ProbeBatch, ScoredModule
from pretrain.models.attention import choose_fused_attention
from pretrain.rng import draw_key
from pretrain.types import UserError


@contextmanager
def step_draws(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Inside, what is drawn (mixing, drop path) is a function of (seed, step); outside, all generators go on as before."""
    key = draw_key(seed, "finetune/step", step)
    on_gpu = device.type == "cuda"
    with seeded(key), torch.random.fork_rng(devices=[device] if on_gpu else []):
        if on_gpu:
            torch.cuda.default_generators[device.index or 0].manual_seed(key & (2**63 - 1))
        yield


class FinetuneModule(ScoredModule):
    """Trains an encoder and a head on it, looks at held-out pictures after each epoch, and scores the test set.

    Args:
        encoder: trained in place, all of its vision side; its text tower, which its features no longer fit, is let go.
        config: the protocol.
        num_classes: C.
        steps_per_epoch: optimiser steps of an epoch.
        seed: of the head, and of all draws of a step.

    Raises:
        UserError: settings that cannot be meant, or not with this encoder.
    """

    def __init__(
        self, encoder: TokenEncoder, config: FinetuneConfig, *, num_classes: int, steps_per_epoch: int, seed: int
    ) -> None:
        super().__init__(num_classes)
        config.check()
        config.check_encoder(encoder)
        self.config, self.steps_per_epoch, self.seed, self.num_classes = config, steps_per_epoch, seed, num_classes
        encoder.text = None
        width = feature_width(encoder, kind=config.head.kind)
        self.encoder = encoder.requires_grad_(True)
        if isinstance(encoder, BlockEncoder):
            set_drop_path(encoder, config.drop_path)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.head = build_head(width, num_classes, config.head)
        self.mix = (
            Mixup(
                config.mixup,
                config.cutmix,
                label_smoothing=config.label_smoothing,
                num_classes=num_classes,
                mode="batch",
            )
            if config.mixes
            else None
        )
        self.held_out_accuracy = MulticlassAccuracy(num_classes, average="micro")
        #: percent right of the held-out pictures after each epoch
        self.held_out: list[float] = []
        self._last_loss: Tensor | None = None
        self.train()  # encoders are loaded for evaluation, and Lightning leaves modules as they are

    def setup(self, stage: str) -> None:
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        choose_fused_attention(self.encoder, device_type=self.trainer.strategy.root_device.type, dtype=dtype)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Logits [B, C] of normalised pictures."""
        with torch.autocast(image_BCHW.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            features = self.encoder(image_BCHW)
            seen = features.summary() if self.config.head.kind == "linear" else features.all_tokens()
        return self.head(seen.float())

    def _normalised(self, batch: ProbeBatch) -> Tensor:
        return self.encoder.transform.spec.normalise(batch.image_BCHW)

    def _mixed(self, image_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures, mixed in place, and targets [B, C]. timm takes an even number; a last odd one stays as it is."""
        even = len(label_B) // 2 * 2
        targets = []
        if even:
            _, target_BC = self.mix(image_BCHW[:even], label_B[:even])
            targets.append(target_BC)
        if even < len(label_B):
            targets.append(mixup_target(label_B[even:], self.num_classes, smoothing=self.config.label_smoothing))
        return image_BCHW, torch.cat(targets)

    def loss(self, batch: ProbeBatch, *, step: int) -> Tensor:
        """Cross entropy of a batch at an optimiser step, with everything that training draws."""
        image_BCHW, target = self._normalised(batch), batch.label_B
        smoothing = self.config.label_smoothing
        with step_draws(self.seed, step, image_BCHW.device):
            if self.mix is not None:
                image_BCHW, target = self._mixed(image_BCHW, batch.label_B)
                smoothing = 0.0  # it is in the targets
            return F.cross_entropy(self(image_BCHW), target, label_smoothing=smoothing)

    def training_step(self, batch: ProbeBatch, batch_idx: int) -> Tensor | None:
        if not self.usable(batch):
            return None
        loss = self.loss(batch, step=self.current_epoch * self.steps_per_epoch + batch_idx)
        self._last_loss = loss.detach()
        self.log("train/loss", self._last_loss, prog_bar=True, batch_size=len(batch))
        return loss

    def on_train_epoch_end(self) -> None:
        """In front of the checkpoint: weights that are of no use are not kept."""
        if self._last_loss is not None and not torch.isfinite(self._last_loss):
            raise UserError(
                f"fine-tuning diverged in epoch {self.current_epoch + 1} of {self.config.epochs} (the loss is "
                f"{float(self._last_loss)}): finetune.lr={self.config.lr} must be smaller"
            )

    def configure_optimizers(self) -> dict[str, Any]:
        """One schedule for all groups: layers have their share of every rate of it."""
        config = self.config
        groups = parameter_groups(self.encoder, self.head, config)
        warmup_steps, total_steps = self._steps()
        return adamw_with_schedule(groups, config, warmup_steps=warmup_steps, total_steps=total_steps)

    def _steps(self) -> tuple[int, int]:
        """Of the warm-up and of all; a run of one step has no warm-up."""
        total_steps = self.config.epochs * self.steps_per_epoch
        return min(round(self.config.warmup_epochs * self.steps_per_epoch), total_steps - 1), total_steps

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.config.clip, foreach=True)

    def validation_step(self, batch: ProbeBatch, batch_idx: int) -> None:
        if self.usable(batch):
            self.held_out_accuracy.update(self(self._normalised(batch)), batch.label_B)

    def on_validation_epoch_end(self) -> None:
        self.check_faults()
        self.held_out.append(100 * float(self.held_out_accuracy.compute()))
        self.held_out_accuracy.reset()
        self.log("held_out/top1", self.held_out[-1], prog_bar=True)

    def test_step(self, batch: ProbeBatch, batch_idx: int) -> None:
        if self.usable(batch):
            self.record(batch, self(self._normalised(batch)))

    def on_test_epoch_end(self) -> None:
        self.scores = self.collect()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["held_out"], checkpoint["unreadable"] = list(self.held_out), sorted(self.unreadable)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.held_out, self._earlier_faults = list(checkpoint["held_out"]), set(checkpoint["unreadable"])
