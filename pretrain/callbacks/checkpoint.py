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


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes, moves into place; reads tensors and plain Python only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        with atomic_file(path) as file:
            torch.save(checkpoint, file)

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
