"""Checkpoints that are whole or absent, and a clean stop on Ctrl-C or SIGTERM."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from pretrain.files import atomic_file
from pretrain.run import checkpoint_path
from pretrain.types import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes, moves into place; reads tensors and plain Python only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        try:
            with atomic_file(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # torch's writer reports a failed write as a RuntimeError, with the operating system's reason as its context
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            whole = (
                "the last one there is whole: go on with --ckpt_path last" if Path(path).exists() else "none was there"
            )
            raise UserError(f"the checkpoint {path} cannot be written ({cause.strerror or cause}); {whole}") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = lambda storage, _: storage, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return torch.load(path, map_location=map_location, weights_only=True)


class RunInterrupted(Exception):
    """The run was asked to stop and has saved its checkpoint."""


class StopOnSignal(Callback):
    """Ctrl-C or SIGTERM: finish the step, save, stop. A second Ctrl-C stops at once, without saving."""

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # not in on_fit_start: Lightning would wrap the handlers then, and call collectives from inside a signal
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        for callback in trainer.checkpoint_callbacks:
            # not kept in its state: after a resume it would save again in the middle of an accumulation
            callback._last_global_step_saved = trainer.global_step

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        between_steps = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0
        # one rank may see the signal a step before the others: they stop together
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        else:
            stop = self._signal is not None
        if stop and between_steps:
            path = checkpoint_path(Path(trainer.default_root_dir))
            trainer.save_checkpoint(path)
            raise RunInterrupted(f"stopped at step {trainer.global_step}; the checkpoint is {path}")

    def on_train_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        # whatever the interval, a finished run can be gone on with under a longer budget
        trainer.save_checkpoint(checkpoint_path(Path(trainer.default_root_dir)))

    def on_exception(self, *args: Any) -> None:
        self._restore()

    def on_fit_end(self, *args: Any) -> None:
        self._restore()


class KeepCheckpoints(Callback):
    """Keeps the checkpoints of some steps for good, as checkpoints/step_0001000.ckpt, for branches to start from.

    Args:
        every_n_steps: optimiser steps between them; 0 keeps none but the last.
    """

    def __init__(self, every_n_steps: int = 0) -> None:
        if every_n_steps < 0:
            raise UserError(f"keep.every_n_steps={every_n_steps} must not be negative")
        self.every_n_steps, self._kept_at = every_n_steps, -1

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        step = trainer.global_step
        if not self.every_n_steps or step % self.every_n_steps or step in (0, self._kept_at):
            return
        self._kept_at = step  # the other micro-batches of the next step come with the same number
        trainer.save_checkpoint(checkpoint_path(Path(trainer.default_root_dir)).with_name(f"step_{step:07d}.ckpt"))
