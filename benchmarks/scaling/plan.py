"""What a scaling study runs: for each size and seed a trunk under a half cosine, and from it a cool-down for each budget.

Paper, section 3.1. A budget of S steps leaves the trunk at step (1 - cooldown) S; the trunk ends where the largest budget leaves
it, at half of its peak rate (a trunk of 5B samples for budgets up to 6.4B).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.commands import arguments
from benchmarks.scaling.config import ScalingConfig, SizeConfig
from evals.results import hash_of, source_hash
from pretrain.run import checkpoint_path
from pretrain.types import UserError

#: Checkpoints that a trunk may write on its way; those that no branch starts from are deleted again at once.
MAX_KEPT = 64
#: Seconds from a run's start to its first step and from its last step to its end, for the estimate: assumed, for a quiet machine.
START_S = 15.0


@dataclass(frozen=True)
class Job:
    """A run of `python -m pretrain fit`.

    Attributes:
        size: its size's name.
        seed: of the run.
        budget: samples as the study gives them; None for a trunk.
        start: optimiser step that it starts from; 0 for a trunk.
        steps: optimiser steps at its end, the trunk's included.
        batch: samples of a step.
        run: its folder.
        arguments: module and arguments, but for going on.
        config_hash: of all that decides its outcome, but for seed and code.
        code_hash: of the code.
        needs: the trunk's checkpoint that it starts from; None for a trunk.
    """

    size: str
    seed: int
    budget: int | None
    start: int
    steps: int
    batch: int
    run: Path
    arguments: tuple[str, ...]
    config_hash: str
    code_hash: str
    needs: Path | None = None

    @property
    def samples(self) -> int:
        """That it trains on itself."""
        return (self.steps - self.start) * self.batch

    @property
    def summary(self) -> Path:
        return self.run / "summary.json"

    def command(self) -> tuple[str, ...]:
        """What to start now: from the beginning, or on from the run's last checkpoint."""
        return (*self.arguments, "--ckpt_path", "last") if checkpoint_path(self.run).is_file() else self.arguments


@dataclass(frozen=True)
class Trunk:
    """A trunk with its branches, in the order of their budgets."""

    job: Job
    branches: tuple[Job, ...]


def current_code() -> str:
    """Hash of the code that a run depends on, as it lies on the disk now."""
    return source_hash.__wrapped__("pretrain")


def branch_points(config: ScalingConfig, batch: int) -> list[tuple[int, int]]:
    """(step that the branch leaves the trunk at, step that it ends at) of each budget.

    Raises:
        UserError: a budget that is no whole number of steps, or too short for a cool-down.
    """
    points = []
    for budget in config.budgets:
        if budget % batch:
            raise UserError(
                f"budgets: {budget} is no multiple of a step's {batch} samples; {budget // batch * batch} is"
            )
        steps = budget // batch
        start = round(steps * (1 - config.cooldown))
        if not 0 < start < steps:
            raise UserError(
                f"budgets: {budget} is {steps} steps, too few for a cool-down over {config.cooldown:g} of them"
            )
        points.append((start, steps))
    if twice := [start for (start, _), (after, _) in pairwise(points) if start == after]:
        raise UserError(f"budgets: two of them leave the trunk at step {twice[0]}; set them further apart")
    return points


def stride(starts: list[int]) -> int:
    """Steps between a trunk's kept checkpoints, such that all branch points are among them.

    Raises:
        UserError: there would be too many.
    """
    every = math.gcd(*starts)
    if starts[-1] // every > MAX_KEPT:
        raise UserError(
            f"budgets: branches leave at steps {', '.join(map(str, starts))}, which would take a checkpoint every {every} steps; "
            f"choose budgets with a larger common divisor (at most {MAX_KEPT} checkpoints)"
        )
    return every


def _check_warmup(config: ScalingConfig, size: SizeConfig, *, first: int, batch: int) -> None:
    samples = config.value(size, "model.optim.warmup_samples")
    steps = config.value(size, "model.optim.warmup_steps") if samples is None else samples / batch
    if steps is not None and steps >= first:
        raise UserError(
            f"budgets: the smallest leaves the trunk at step {first}, within its warm-up of {steps:g}; give more"
        )


def _arguments(
    config: ScalingConfig, size: SizeConfig, *, run: Path, seed: int, steps: int, own: Mapping[str, Any]
) -> tuple[str, ...]:
    where = ["--config", str(config.base), "--runs", str(run.parent), "--name", run.name]
    values = {
        "seed_everything": seed,
        "max_samples": None,
        "trainer.max_steps": steps,
        "trainer.enable_progress_bar": False,
    }
    return ("pretrain", "fit", *where, *arguments(values | config.changes(size) | own))


def make_plan(config: ScalingConfig, *, seeds: int, folder: Path) -> list[Trunk]:
    """All runs of a study: sizes x seeds, each with its budgets.

    A run's folder carries a hash of config and code in its name: what was made by others is left alone and not gone on with.

    Args:
        seeds: how many, from 0 on.
        folder: that holds the runs.

    Raises:
        UserError: as `branch_points`, `stride`; a branch within the warm-up; no seed.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: give at least 1")
    code, plan = current_code(), []
    for size in config.sizes:
        batch = config.global_batch(size)
        points = branch_points(config, batch)
        starts = [start for start, _ in points]
        _check_warmup(config, size, first=starts[0], batch=batch)
        settings = {"base": config.content, "change": config.changes(size), "steps": starts[-1]}
        plan += [_trunk(config, size, seed, settings, points=points, code=code, folder=folder) for seed in range(seeds)]
    return plan


def _trunk(
    config: ScalingConfig,
    size: SizeConfig,
    seed: int,
    settings: Mapping[str, Any],
    *,
    points: list[tuple[int, int]],
    code: str,
    folder: Path,
) -> Trunk:
    batch, starts, label = config.global_batch(size), [start for start, _ in points], f"{size.name}-seed{seed}"

    def job(
        budget: int | None, start: int, steps: int, digest: str, own: Mapping[str, Any], needs: Path | None = None
    ) -> Job:
        kind = "trunk" if budget is None else str(budget)
        run = folder / f"{label}-{kind}-{hash_of([digest, code])[:8]}"
        arguments = _arguments(config, size, run=run, seed=seed, steps=steps, own=own)
        return Job(size.name, seed, budget, start, steps, batch, run, arguments, digest, code, needs)

    own = {"model.optim.schedule": "half_cosine", "keep.every_n_steps": stride(starts)}
    trunk = job(None, 0, starts[-1], hash_of(settings), own)
    branches = []
    for budget, (start, steps) in zip(config.budgets, points, strict=True):
        needs = checkpoint_path(trunk.run).with_name(f"step_{start:07d}.ckpt")
        digest = hash_of({"trunk": trunk.config_hash, "start": start, "steps": steps, "min_lr": config.min_lr})
        own = {"model.optim.schedule": "cooldown", "model.optim.min_lr": config.min_lr, "branch_from": str(needs)}
        branches.append(job(budget, start, steps, digest, own, needs))
    return Trunk(trunk, tuple(branches))


def estimate_s(plan: list[Trunk], *, speeds: Mapping[str, float | None], workers: int) -> float | None:
    """Seconds that `plan` takes: its work dealt out evenly, but no less than its longest chain of trunk and branch.

    Args:
        plan: what is left to do.
        speeds: images per second of one worker, by size.
        workers: that run side by side.

    Returns:
        None where the speed of a size is not known.
    """

    def seconds(job: Job) -> float:
        return START_S + job.samples / speeds[job.size]

    jobs = [job for trunk in plan for job in (trunk.job, *trunk.branches)]
    if any(not speeds.get(job.size) for job in jobs):
        return None
    chains = [seconds(trunk.job) + max((seconds(one) for one in trunk.branches), default=0.0) for trunk in plan]
    return max([sum(map(seconds, jobs)) / workers, *chains], default=0.0)
