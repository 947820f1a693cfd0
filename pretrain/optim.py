"""Fully decoupled AdamW, and schedules: cosine, and trunks with cool-down branches (reference, sections 4 and 8)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from pretrain.types import UserError

#: Parameters that are not decayed whatever their shape: positions, BOS, mask, class and register tokens, the query of a pooling.
_NO_DECAY_NAMES = ("pos_embed", "bos", "mask_token", "cls_token", "reg_token", "latent")


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule; defaults are the published ones for ViT-L (Table A1).

    Attributes:
        lr: peak rate.
        weight_decay: fully decoupled: a decayed weight is multiplied by 1 - weight_decay * rate / peak rate.
        beta1: AdamW's first moment.
        beta2: AdamW's second moment.
        eps: AdamW's epsilon.
        warmup_steps: optimiser steps of linear warm-up; give this or `warmup_samples`.
        warmup_samples: the same in samples.
        warmup_start_lr: rate of the first step.
        min_lr: rate that the cosine or the cool-down ends at (paper: cool-downs at 1e-6).
        schedule: "cosine" ends at `min_lr`; "half_cosine", a trunk, ends at half the peak; "constant" is a trunk without an
            end; "cooldown", a branch, goes down in a line from the trunk's rate (section 3.1: over 20% of its steps).
    """

    lr: float = 1e-3
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    warmup_steps: int | None = None
    warmup_samples: int | None = None
    warmup_start_lr: float = 1e-6
    min_lr: float = 1e-5
    schedule: Literal["cosine", "half_cosine", "constant", "cooldown"] = "cosine"

    def check(self) -> None:
        """Raise UserError for values that cannot be meant."""
        if (self.warmup_steps is None) == (self.warmup_samples is None):
            raise UserError(
                f"optim: give exactly one of warmup_steps (is {self.warmup_steps}) and warmup_samples (is {self.warmup_samples})"
            )
        for name in ("lr", "eps"):
            if getattr(self, name) <= 0:
                raise UserError(f"optim.{name}={getattr(self, name)} must be above 0")
        for name in ("weight_decay", "warmup_start_lr", "min_lr"):
            if getattr(self, name) < 0:
                raise UserError(f"optim.{name}={getattr(self, name)} must not be negative")
        if self.min_lr > self.lr:
            raise UserError(f"optim.min_lr={self.min_lr} is above optim.lr={self.lr}")


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Matrices are decayed; norms, biases (vectors), positions and BOS are not."""
    return parameter.ndim >= 2 and name.split(".")[-1] not in _NO_DECAY_NAMES


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fully decoupled AdamW as torch's fused AdamW.

    torch multiplies a weight by 1 - lr * decay; with decay = weight_decay / peak rate that is 1 - weight_decay * lr / peak,
    the published update.
    """
    config.check()
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[is_decayed(name, parameter)].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay / config.lr},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


class Branch(NamedTuple):
    """Where a run left its trunk.

    Attributes:
        step: optimiser steps of the trunk until then.
        lr: the trunk's rate there.
    """

    step: int
    lr: float


def rate_factor(
    config: OptimConfig, *, warmup_steps: int, total_steps: int, branch: Branch | None = None
) -> Callable[[int], float]:
    """Factor of the peak rate at optimiser step 0, 1, ...

    The first step runs at `warmup_start_lr`, step `warmup_steps` at the peak, the last step (`total_steps` - 1) at the
    schedule's end. A cool-down has no warm-up: its first step, number `branch.step`, runs at `branch.lr`.

    Raises:
        UserError: the warm-up is not shorter than the run, a cool-down without a trunk, or one that ends before it begins.
    """
    if branch is not None and total_steps <= branch.step:
        raise UserError(
            f"budget: the trunk has {branch.step} steps already; trainer.max_steps={total_steps} counts them too, give more"
        )
    if config.schedule == "cooldown":
        if branch is None:
            raise UserError("optim.schedule=cooldown starts from a trunk: name its run with --branch_from")
        first, last = branch.lr / config.lr, config.min_lr / config.lr
        length = max(1, total_steps - 1 - branch.step)
        return lambda step: first + (last - first) * min(1.0, max(0, step - branch.step) / length)
    if not 0 <= warmup_steps < total_steps:
        raise UserError(f"optim: a warm-up of {warmup_steps} steps does not fit into a run of {total_steps} steps")
    start = config.warmup_start_lr / config.lr
    floor = {"cosine": config.min_lr / config.lr, "half_cosine": 0.5, "constant": 1.0}[config.schedule]

    def factor(step: int) -> float:
        if step < warmup_steps:
            return start + (1 - start) * step / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def apply_config(checkpoint: dict[str, Any], config: OptimConfig, factor: Callable[[int], float]) -> None:
    """Let `config` win over the rates, decay and moments' factors that a Lightning checkpoint remembers; changes it in place.

    Without this, `--model.optim.lr` on a resumed run would be read, printed, and have no effect.
    """
    lr = config.lr * factor(checkpoint["global_step"])
    for state in checkpoint["optimizer_states"]:
        for group in state["param_groups"]:
            decayed = group is state["param_groups"][0]  # as build_optimizer has them
            group |= {
                "lr": lr,
                "initial_lr": config.lr,
                "weight_decay": config.weight_decay / config.lr if decayed else 0.0,
                "betas": (config.beta1, config.beta2),
                "eps": config.eps,
            }
    for scheduler in checkpoint["lr_schedulers"]:
        scheduler["base_lrs"] = [config.lr] * len(scheduler["base_lrs"])
        scheduler["_last_lr"] = [lr] * len(scheduler["_last_lr"])
