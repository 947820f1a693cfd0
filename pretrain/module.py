"""The LightningModule: an encoder, an objective, a loss that does not depend on how samples fall on devices."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pretrain.data.datamodule import global_batch_size
from pretrain.models.attention import choose_fused_attention
from pretrain.models.compiling import compile_blocks
from pretrain.models.recompute import recompute_blocks
from pretrain.models.sharding import is_sharded, shard
from pretrain.models.vision import EncoderConfig, build_encoder, refuse_leaks
from pretrain.models.weights import load_weights
from pretrain.objectives.build import build_objective
from pretrain.objectives.config import ObjectiveConfig
from pretrain.optim import Branch, OptimConfig, apply_config, build_optimizer, rate_factor
from pretrain.types import ImageTextBatch, LossTerm, UserError


def blank_batch(img_size: int) -> ImageTextBatch:
    """One grey picture with a caption of one token: contrastive objectives refuse a picture without."""
    return ImageTextBatch(
        image_BCHW=torch.zeros(1, 3, img_size, img_size),
        text_BL=torch.zeros(1, 8, dtype=torch.long),
        text_valid_BL=torch.arange(8)[None] < 1,
        position_B=torch.zeros(1, dtype=torch.long),
        seed=0,
        keys=[""],
        captions=[""],
    )


class PretrainModule(lightning.LightningModule):
    """Pre-trains an encoder with an objective.

    Args:
        encoder: the encoder, by timm's name and overrides.
        objective: the objective's options.
        optim: optimiser and schedule.
        activation_checkpointing: transformer blocks keep their input alone and run again in the backward pass: less
            memory, one forward pass more.
        compile: torch.compile the transformer blocks: the first steps take a minute, the others less time.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        objective: ObjectiveConfig,
        optim: OptimConfig,
        activation_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        optim.check()
        self.encoder_config, self.objective_config, self.optim_config = encoder, objective, optim
        self.activation_checkpointing, self.compile_blocks = activation_checkpointing, compile
        self.encoder: VisionTransformer | None = None
        self.objective: nn.Module | None = None
        #: where this run left its trunk; read from the checkpoint before training starts
        self.branch: Branch | None = None
        self._val_sums: dict[str, Tensor] = {}
        self._val_passes = 0
        self._last: tuple[ImageTextBatch, dict[str, Tensor]] | None = None

    def configure_model(self) -> None:
        """Build encoder and objective, once the tokenizer's size is known, and shard them where the strategy does."""
        if self.encoder is not None:
            return
        self.build(self.trainer.datamodule.tokenizer.vocab_size)
        if self.objective.contrasts and self.trainer.accumulate_grad_batches > 1:
            raise UserError(
                f"trainer.accumulate_grad_batches={self.trainer.accumulate_grad_batches}: "
                f"objective.kind={self.objective_config.kind} takes a step's samples as each other's negatives, which "
                "accumulation would cut apart; raise data.batch_size or the number of devices"
            )
        low_precision = "bf16" in str(self.trainer.precision)
        device_type = self.trainer.strategy.root_device.type
        choose_fused_attention(self, device_type=device_type, dtype=torch.bfloat16 if low_precision else torch.float32)
        if self.activation_checkpointing:
            recompute_blocks(self)
        if self.compile_blocks:
            compile_blocks(self, device_type=device_type)
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            mesh = self.device_mesh["data_parallel"]
            shard([self.encoder, self.objective], mesh=mesh, low_precision=low_precision)

    def build(self, vocab_size: int) -> None:
        """Build the modules for a vocabulary of `vocab_size`."""
        self.encoder = build_encoder(self.encoder_config)
        if not self.encoder_config.name.startswith("aimv2_"):
            refuse_leaks(self.encoder, self.encoder_config)
        self.objective = build_objective(self.objective_config, encoder=self.encoder, vocab_size=vocab_size)

    def rate_factor(self) -> Callable[[int], float]:
        """Factor of the peak rate, by optimiser step."""
        config, trainer = self.optim_config, self.trainer
        warmup_steps = config.warmup_steps
        if warmup_steps is None:
            warmup_steps = round(config.warmup_samples / global_batch_size(trainer, trainer.datamodule.batch_size))
        return rate_factor(config, warmup_steps=warmup_steps, total_steps=trainer.max_steps, branch=self.branch)

    def on_train_start(self) -> None:
        """Take over the weights to start from. Not in `configure_model`: whether the run goes on from a checkpoint, which has
        its own, is known here (Lightning 2.6.6 sets `ckpt_path` when it restores)."""
        weights = self.encoder_config.weights
        if weights is not None and self.trainer.ckpt_path is None:
            load_weights(self.encoder, weights, image=self.encoder_config.image_spec())

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = build_optimizer(self, self.optim_config)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate_factor())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.objective.contrasts:
            self.objective.after_step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["branch"] = None if self.branch is None else list(self.branch)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rates and decay are the config's, whatever the checkpoint remembers."""
        apply_config(checkpoint, self.optim_config, self.rate_factor())

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over all parameters, and log it.

        Lightning refuses to clip under mixed precision with a fused optimiser, for the sake of fp16's loss scaler; bf16
        has none.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            raise UserError(f"trainer.gradient_clip_algorithm={gradient_clip_algorithm!r}: only 'norm' is supported")
        max_norm = float("inf") if gradient_clip_val is None else gradient_clip_val
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters], foreach=True)
        if isinstance(norm, DTensor):  # of this rank's shards alone until it is asked for
            norm = norm.full_tensor()
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm, foreach=True)
        if not torch.isfinite(norm):
            self._stop_on_non_finite("gradient")
        self.log("train/grad_norm", norm)

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return value
        value = value.detach().clone()
        torch.distributed.all_reduce(value)
        return value

    def loss_of(self, terms: dict[str, LossTerm]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the terms' means, and the means.

        Sums and counts are added over ranks before they are divided. A rank's own loss carries the factor `world_size`
        that the averaging of gradients takes out again. A term without targets anywhere is exactly 0.
        """
        means: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self.device)
        world_size = self.trainer.world_size
        for name, term in terms.items():
            count = self._sum_over_ranks(term.count.float()).clamp(min=1)
            loss = loss + term.weight * world_size * term.total / count
            means[name] = self._sum_over_ranks(term.total.detach()) / count
        return loss, means

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> Tensor:
        terms = self.objective(self.encoder, batch)
        loss, means = self.loss_of(terms)
        weighted = sum(terms[name].weight * mean for name, mean in means.items())
        self._last = (batch, means)
        if not torch.isfinite(weighted):  # summed over ranks: all of them stop
            self._stop_on_non_finite("loss")
        self.log_dict({f"train/{name}": mean for name, mean in means.items()}, batch_size=len(batch))
        self.log("train/loss", weighted, prog_bar=True, batch_size=len(batch))
        return loss

    def _stop_on_non_finite(self, what: str) -> None:
        batch, means = self._last
        path = Path(self.trainer.default_root_dir) / f"nonfinite_rank{self.trainer.global_rank}.json"
        record = {
            "step": self.trainer.global_step,
            "terms": {name: float(mean) for name, mean in means.items()},
            "keys": batch.keys,
            "positions": batch.position_B.tolist(),
            "captions": batch.captions,
        }
        path.write_text(json.dumps(record, indent=1))
        terms = ", ".join(f"{name} {value:g}" for name, value in record["terms"].items())
        raise UserError(f"the {what} is not finite at step {record['step']} ({terms}); the batch's keys are in {path}")

    def on_validation_epoch_start(self) -> None:
        self._val_sums, self._val_passes = {}, 0

    def validation_step(self, batch: ImageTextBatch, batch_idx: int) -> None:
        if not len(batch):  # all its samples were unusable
            return
        self._val_passes += 1
        for name, term in self.objective.validation_terms(self.encoder, batch).items():
            both = torch.stack([term.total.double(), term.count.double()])
            self._val_sums[name] = self._val_sums.get(name, 0) + both

    def _keep_up(self) -> None:
        """Pass as many batches through a sharded model as the rank with the most: gathering weights takes all of them.

        A rank has fewer where samples ran out or were unusable. What passes instead is blank and counts nowhere.
        """
        if not is_sharded(self.encoder):
            return
        blank = blank_batch(self.encoder_config.image_spec().img_size).to(self.device)
        with self.trainer.precision_plugin.val_step_context():
            for _ in range(self.trainer.num_val_batches[0] - self._val_passes):
                self.objective.validation_terms(self.encoder, blank)

    def on_validation_epoch_end(self) -> None:
        self._keep_up()
        for name in self.objective.validation_names():
            zero = torch.zeros(2, dtype=torch.double, device=self.device)
            total, count = self._sum_over_ranks(self._val_sums.get(name, zero))
            if count > 0:
                self.log(f"val/{name}", (total / count).float(), prog_bar=name == "text_ce", rank_zero_only=False)
        metrics = self.trainer.callback_metrics
        weights = {
            name: weight for name, weight in self.objective.validation_weights().items() if f"val/{name}" in metrics
        }
        if weights:  # a term without targets counts 0
            self.log("val/loss", sum(weight * metrics[f"val/{name}"] for name, weight in weights.items()))
