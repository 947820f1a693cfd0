"""AdamW with a linear warm-up and a cosine, as the modules that train on an encoder have it."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from pretrain.optim import OptimConfig, rate_factor


class Schedule(Protocol):
    """Settings of the optimiser and of its rates."""

    @property
    def lr(self) -> float: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def warmup_start_lr(self) -> float: ...
    @property
    def min_lr(self) -> float: ...


def adamw_with_schedule(
    groups: Sequence[dict[str, Any]], config: Schedule, *, warmup_steps: int, total_steps: int
) -> dict[str, Any]:
    """What `configure_optimizers` returns: one schedule for all groups, each with its share of every rate of it.

    Args:
        groups: AdamW's, each with its own peak rate or the config's.
        config: the rates.
        warmup_steps: optimiser steps; a run of one step has none.
        total_steps: likewise.
    """
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
    warmup_steps = min(warmup_steps, total_steps - 1)
    schedule = OptimConfig(
        lr=config.lr, warmup_steps=warmup_steps, warmup_start_lr=config.warmup_start_lr, min_lr=config.min_lr
    )
    factor = rate_factor(schedule, warmup_steps=warmup_steps, total_steps=total_steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
