"""The LightningModule of the light grounding head: both encoders are frozen, and their tokens come with the batch.

Shape letters: B sentences, X expressions of a split.
"""

from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from evals.finetuning.layers import undecayed_names
from evals.finetuning.module import step_draws
from evals.finetuning.schedule import adamw_with_schedule
from evals.grounding.feeding import LightBatch
from evals.grounding.light_config import LightConfig
from evals.grounding.light_head import LightGroundingHead, box_loss
from evals.grounding.metrics import MIN_IOU, paired_iou
from pretrain.models.attention import choose_fused_attention
from pretrain.types import UserError

#: Learned tokens, which are not decayed.
_TOKENS = {"query", "token_type", "text_type"}


class LightModule(lightning.LightningModule):
    """Trains a head and looks at the watched split after each epoch.

    Args:
        config: how.
        token_dim: width of the encoder's tokens.
        text_dim: of the text's.
        grid: rows and columns of patches.
        steps_per_epoch: optimiser steps of an epoch.
        seed: of the head's weights and of dropout.

    Attributes:
        held_out: precision@1 in percent on the watched split after each epoch.
    """

    def __init__(
        self,
        config: LightConfig,
        *,
        token_dim: int,
        text_dim: int,
        grid: tuple[int, int],
        steps_per_epoch: int,
        seed: int,
    ) -> None:
        super().__init__()
        config.check()
        self.config, self.steps_per_epoch, self.seed = config, steps_per_epoch, seed
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.head = LightGroundingHead(token_dim, text_dim, grid, config.head)
        self.held_out: list[float] = []
        self._right: list[Tensor] = []
        self._last_loss: Tensor | None = None

    def setup(self, stage: str) -> None:
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        choose_fused_attention(self.head, device_type=self.trainer.strategy.root_device.type, dtype=dtype)

    def forward(self, batch: LightBatch) -> Tensor:
        """Boxes [B, 4]: centre x, centre y, width, height in shares."""
        with torch.autocast(batch.text_BLE.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.head(batch.tokens_BNV, batch.text_BLE, batch.valid_BL)

    def training_step(self, batch: LightBatch, batch_idx: int) -> Tensor:
        step = self.current_epoch * self.steps_per_epoch + batch_idx
        with step_draws(self.seed, step, batch.text_BLE.device):
            box_B4 = self(batch)
        config = self.config
        loss, l1, giou = box_loss(box_B4, batch.box_B4, l1_weight=config.l1_weight, giou_weight=config.giou_weight)
        self._last_loss = loss.detach()
        self.log("train/loss", self._last_loss, prog_bar=True, batch_size=len(batch))
        self.log("train/l1", l1.detach(), batch_size=len(batch))
        self.log("train/giou", giou.detach(), batch_size=len(batch))
        return loss

    def on_train_epoch_end(self) -> None:
        """In front of the checkpoint: weights that are of no use are not kept."""
        if self._last_loss is not None and not torch.isfinite(self._last_loss):
            raise UserError(
                f"the grounding head diverged in epoch {self.current_epoch + 1} of {self.config.epochs} (the loss is "
                f"{float(self._last_loss)}): light.lr={self.config.lr} must be smaller"
            )

    def configure_optimizers(self) -> dict[str, Any]:
        config = self.config
        undecayed = undecayed_names(self.head) | _TOKENS
        groups = [
            {
                "params": [p for name, p in self.head.named_parameters() if (name in undecayed) == plain],
                "weight_decay": w,
            }
            for plain, w in ((False, config.weight_decay), (True, 0.0))
        ]
        total_steps = config.epochs * self.steps_per_epoch
        warmup_steps = round(config.warmup_epochs * self.steps_per_epoch)
        return adamw_with_schedule(groups, config, warmup_steps=warmup_steps, total_steps=total_steps)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.config.clip, foreach=True)

    def validation_step(self, batch: LightBatch, batch_idx: int) -> None:
        self._right.append(torch.from_numpy(relative_iou(self(batch), batch.box_B4) >= MIN_IOU))

    def on_validation_epoch_end(self) -> None:
        self.held_out.append(100 * float(torch.cat(self._right).double().mean()))
        self._right = []
        self.log("held_out/precision_at_1", self.held_out[-1], prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["held_out"] = list(self.held_out)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.held_out = list(checkpoint["held_out"])


def relative_corners(box_B4: Tensor) -> np.ndarray:
    """Centre and sides to corners, cut at the picture's edge: float64 [B, 4]."""
    return box_convert(box_B4.detach().cpu().double(), "cxcywh", "xyxy").clamp(0, 1).numpy()


def relative_iou(box_B4: Tensor, target_B4: Tensor) -> np.ndarray:
    """IoU of boxes in shares of the picture's sides, which is that of their pixels: float64 [B]."""
    return paired_iou(relative_corners(box_B4), relative_corners(target_B4))
