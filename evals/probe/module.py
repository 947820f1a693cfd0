"""The LightningModule of a probe: a grid of heads on one frozen forward pass.

Shape letters: B batch, C channels, H/W pixels, T tokens, D width, G settings.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from evals.encoder import TokenEncoder
from evals.features import Precision, encode
from evals.probe.config import ProbeConfig, Setting
from evals.probe.heads import HeadGrid
from evals.probe.scored import ProbeBatch, ScoredModule
from pretrain.optim import OptimConfig, rate_factor
from pretrain.types import UserError


class ProbeModule(ScoredModule):
    """Trains all settings of a grid at once, tells which is best on held-out pictures, and scores that one on the test set.

    Args:
        config: the protocol.
        embed_dim: D of what the heads read.
        num_classes: C.
        steps_per_epoch: optimiser steps of an epoch.
        warmup_epochs: of linear warm-up.
        encoder: encodes pictures where batches hold them; not trained, not saved.
        precision: of the encoder.
    """

    def __init__(
        self,
        config: ProbeConfig,
        *,
        embed_dim: int,
        num_classes: int,
        steps_per_epoch: int,
        warmup_epochs: int = 0,
        encoder: TokenEncoder | None = None,
        precision: Precision = "bf16",
    ) -> None:
        super().__init__(num_classes)
        config.check()
        self.config, self.precision = config, precision
        self.settings = config.settings()
        self.grid = HeadGrid(embed_dim, num_classes, config.head, num_settings=len(self.settings))
        self.steps_per_epoch, self.warmup_epochs = steps_per_epoch, warmup_epochs
        self._encoder = [encoder]  # in a list: no part of the module's state
        self.accuracies = nn.ModuleList(MulticlassAccuracy(num_classes, average="micro") for _ in self.settings)
        self.chosen: int | None = None
        #: accuracy of each setting on the held-out pictures, 0..1, of the last epoch
        self.held_out_G: Tensor | None = None
        #: whether the test set is also scored with every setting, for the best of them
        self.test_all = False

    def setup(self, stage: str) -> None:
        if self._encoder[0] is not None:
            self._encoder[0].to(self.trainer.strategy.root_device)

    def features(self, batch: ProbeBatch) -> Tensor:
        """What the heads read of a batch: float32 tokens [B, T, D], or summaries [B, D]."""
        if batch.features is not None:
            return batch.features
        found = encode(self._encoder[0], batch.image_BCHW, precision=self.precision)
        return (found.summary() if self.config.head.kind == "linear" else found.all_tokens()).float()

    def losses(self, batch: ProbeBatch) -> Tensor:
        """Mean cross entropy of each setting: [G]."""
        logits_GBC = self.grid(self.features(batch))
        target_GB = batch.label_B.expand(len(logits_GBC), -1)
        loss_GB = F.cross_entropy(logits_GBC.flatten(0, 1), target_GB.flatten(), reduction="none").view_as(target_GB)
        return loss_GB.mean(1)

    def training_step(self, batch: ProbeBatch, batch_idx: int) -> Tensor | None:
        if not self.usable(batch):
            return None
        loss_G = self.losses(batch)
        self.log("train/loss", loss_G.detach().min(), prog_bar=True, batch_size=len(batch.label_B))
        return loss_G.sum()  # settings share no weight: the sum's gradient is each one's own

    def configure_optimizers(self) -> dict[str, Any]:
        groups, factors = [], []
        for setting, head in zip(self.settings, self.grid.heads, strict=True):
            factor = self._rate_factor(setting)
            for decayed in (True, False):
                found = [p for name, p in head.named_parameters() if name.endswith("weight") == decayed]
                if found:
                    decay = setting.weight_decay if decayed else 0.0
                    groups.append({"params": found, "lr": setting.lr, "weight_decay": decay})
                    factors.append(factor)
        optimizer = torch.optim.AdamW(groups, betas=(self.config.beta1, self.config.beta2), fused=True)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate_factor(self, setting: Setting) -> Any:
        config = OptimConfig(
            lr=setting.lr,
            weight_decay=setting.weight_decay,
            warmup_steps=self.warmup_epochs * self.steps_per_epoch,
            warmup_start_lr=self.config.warmup_start_lr,
            min_lr=self.config.min_lr,
        )
        total_steps = self.config.epochs * self.steps_per_epoch
        return rate_factor(config, warmup_steps=config.warmup_steps, total_steps=total_steps)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Each setting by its own norm, so that it gets what it would get alone."""
        for head in self.grid.heads:
            torch.nn.utils.clip_grad_norm_(head.parameters(), self.config.clip, foreach=True)

    def validation_step(self, batch: ProbeBatch, batch_idx: int) -> None:
        if not self.usable(batch):
            return
        for accuracy, logits_BC in zip(self.accuracies, self.grid(self.features(batch)), strict=True):
            accuracy.update(logits_BC, batch.label_B)

    def on_validation_epoch_end(self) -> None:
        self.check_faults()
        self.held_out_G = torch.stack([accuracy.compute() for accuracy in self.accuracies])
        for accuracy in self.accuracies:
            accuracy.reset()
        self.log("held_out/top1", 100 * self.held_out_G.max(), prog_bar=True)

    def choose(self) -> int:
        """The setting that is best on the held-out pictures, the first of equals.

        Raises:
            UserError: its weights are not finite.
        """
        if self.held_out_G is None:
            raise UserError("the probe has not been validated: no setting can be chosen")
        self.chosen = int(self.held_out_G.argmax())
        if not all(torch.isfinite(p).all() for p in self.grid.heads[self.chosen].parameters()):
            raise UserError(f"the probe diverged with every rate of {list(self.config.lrs)}: give smaller ones")
        return self.chosen

    def test_step(self, batch: ProbeBatch, batch_idx: int) -> None:
        if not self.usable(batch):
            return
        logits_GBC = self.grid(self.features(batch))
        self.record(batch, logits_GBC[self.chosen])
        if self.test_all:
            for accuracy, logits in zip(self.accuracies, logits_GBC, strict=True):
                accuracy.update(logits, batch.label_B)

    def on_test_epoch_end(self) -> None:
        best = None
        if self.test_all:
            best = 100 * float(torch.stack([accuracy.compute() for accuracy in self.accuracies]).max())
            for accuracy in self.accuracies:
                accuracy.reset()
        self.scores = self.collect(best_on_test=best)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["held_out"] = None if self.held_out_G is None else self.held_out_G.tolist()
        checkpoint["unreadable"] = sorted(self.unreadable)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        held_out = checkpoint.get("held_out")
        self.held_out_G = None if held_out is None else torch.tensor(held_out)
        self._earlier_faults = set(checkpoint["unreadable"])
