"""The LightningModule of answering models: the encoder is frozen, what turns its tokens into text is trained.

Shape letters: B sequences, I pictures, C channels, H/W pixels.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import lightning
import torch
from torch import Tensor, nn

from evals.data.loading import MAX_FAULT_SHARE, MIN_COUNTED
from evals.encoder import TokenEncoder
from evals.features import encode
from evals.finetuning.layers import undecayed_names
from evals.finetuning.module import step_draws
from evals.finetuning.schedule import adamw_with_schedule
from evals.multimodal.config import TrainConfig
from evals.multimodal.sequences import SequenceBatch
from pretrain.types import UserError


class Trained(Protocol):
    """A model that learns from batches."""

    def loss(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Sum of the cross entropy over the tokens that are learned, and their number."""


def seen(batch: SequenceBatch, encoder: TokenEncoder | None, *, precision: str) -> SequenceBatch:
    """The batch with its pictures' patch tokens in the place of their pixels."""
    if batch.image_ICHW is None:
        return batch
    assert encoder is not None, "pixels need an encoder"
    tokens_IND = encode(encoder, batch.image_ICHW, precision=precision).tokens_BND.float()
    return replace(batch, tokens_IND=tokens_IND, image_ICHW=None)


class AnswerModule(lightning.LightningModule):
    """Trains what answers; every draw of a step is a function of (seed, step).

    Args:
        model: with a `loss`.
        config: how.
        encoder: for batches of pixels; None where tokens are cached or no picture is seen. It is no part of the module.
        fast: names of `model`'s children that learn at another rate.
        fast_factor: their rate over the others'.
        seed: of dropout, where a language model has it.

    Attributes:
        unreadable: numbers of pictures that could not be read.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        *,
        encoder: TokenEncoder | None = None,
        fast: Sequence[str] = (),
        fast_factor: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        config.check()
        self.model, self.config, self.seed = (
            model.train(),
            config,
            seed,
        )  # a loaded language model is in evaluation mode
        self.fast, self.fast_factor = tuple(fast), fast_factor
        self._encoder = (encoder,)  # in a tuple it is no submodule: neither saved nor trained
        self.unreadable: set[int] = set()
        self._num_asked = 0
        self._last_loss: Tensor | None = None
        self.strict_loading = False  # a checkpoint holds what learns only

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor | None:
        self._count(batch)
        if not len(batch):
            return None
        batch = seen(batch, self._encoder[0], precision=self.config.precision)
        micro_step = self.global_step * self.config.accumulate + batch_idx % self.config.accumulate
        device = batch.ids_BS.device
        mixed = torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
        with step_draws(self.seed, micro_step, device), mixed:
            total, count = self.model.loss(batch)
        loss = total / count.clamp(min=1)
        self._last_loss = loss.detach()
        self.log("train/loss", self._last_loss, prog_bar=True, batch_size=len(batch))
        return loss

    def _count(self, batch: SequenceBatch) -> None:
        self.unreadable.update(batch.unreadable)
        self._num_asked += len(batch) + len(batch.unreadable)
        if len(self.unreadable) > MAX_FAULT_SHARE * max(self._num_asked, MIN_COUNTED):
            raise UserError(
                f"{len(self.unreadable)} of the first {self._num_asked:,} training pictures cannot be read (number "
                f"{min(self.unreadable)} is one), more than {MAX_FAULT_SHARE:.0%}: mend the pictures' folder"
            )

    def on_train_epoch_end(self) -> None:
        """In front of the checkpoint: weights that are of no use are not kept."""
        if self._last_loss is not None and not torch.isfinite(self._last_loss):
            raise UserError(
                f"training diverged by step {self.global_step} of {self.config.steps} (the loss is {float(self._last_loss)}): "
                f"train.lr={self.config.lr} must be smaller"
            )

    def configure_optimizers(self) -> dict[str, Any]:
        config, undecayed = self.config, undecayed_names(self.model)
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                kind = (name.split(".")[0] in self.fast, name in undecayed)
                groups.setdefault(kind, []).append(parameter)
        made = [
            {
                "params": parameters,
                "lr": config.lr * (self.fast_factor if fast else 1.0),
                "weight_decay": 0.0 if plain else config.weight_decay,
            }
            for (fast, plain), parameters in groups.items()
        ]
        return adamw_with_schedule(made, config, warmup_steps=config.warmup_steps, total_steps=config.steps)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.config.clip, foreach=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learning = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: v for name, v in checkpoint["state_dict"].items() if name in learning}
        checkpoint["unreadable"], checkpoint["num_asked"] = sorted(self.unreadable), self._num_asked

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.unreadable, self._num_asked = set(checkpoint["unreadable"]), checkpoint["num_asked"]
