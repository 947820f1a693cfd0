"""Images per second while training: waiting for data and saving count, validation and pictures do not."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from pretrain.types import ImageTextBatch


class RateMeter:
    """Rate over the last `window` batches, and over all.

    Args:
        window: batches that the current rate looks back on.
        clock: seconds, increasing.
    """

    def __init__(self, *, window: int = 50, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._recent: deque[tuple[int, float]] = deque(maxlen=window)
        self._started: float | None = None
        self.total_imgs = 0
        self.total_s = 0.0

    def start(self) -> None:
        """Time runs from here; called again after a pause that does not count."""
        self._started = self._clock()

    def step(self, num_imgs: int) -> None:
        """One batch is done."""
        now = self._clock()
        assert self._started is not None, "start() first"
        self._recent.append((num_imgs, now - self._started))
        self.total_imgs += num_imgs
        self.total_s += now - self._started
        self._started = now

    @property
    def imgs_per_s(self) -> float:
        seconds = sum(seconds for _, seconds in self._recent)
        return sum(imgs for imgs, _ in self._recent) / seconds if seconds else 0.0

    @property
    def mean_imgs_per_s(self) -> float:
        return self.total_imgs / self.total_s if self.total_s else 0.0


def restart_clock(trainer: lightning.Trainer) -> None:
    """What was done since the last step does not count."""
    for callback in trainer.callbacks:
        if isinstance(callback, Throughput):
            callback.meter.start()


class Throughput(Callback):
    """Logs `imgs_per_s` of all devices together."""

    def __init__(self) -> None:
        self.meter = RateMeter()

    def on_train_start(self, *args: Any) -> None:
        self.meter.start()

    def on_validation_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        self.meter.start()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: ImageTextBatch,
        *args: Any,
    ) -> None:
        self.meter.step(len(batch) * trainer.world_size)
        pl_module.log("imgs_per_s", self.meter.imgs_per_s, prog_bar=True, batch_size=len(batch))
