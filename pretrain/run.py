"""Run folders: runs/NAME holds a run's config, logs, checkpoints, pictures and export; runs/latest names the last good one."""

import os
import shutil
from datetime import datetime
from pathlib import Path

from pretrain.types import UserError


def default_name(configs: list[Path]) -> str:
    """Name for a run that was given none: its config's name and the time, e.g. aimv2_nano_scenes-20260131-142500."""
    stem = configs[-1].stem if configs else "run"
    return f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"


def checkpoint_path(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def resolve_checkpoint(run: Path, ckpt_path: str | None) -> str | None:
    """Which checkpoint to go on from: `last` is this run's own.

    Raises:
        UserError: there is none, or a run of that name exists and was not asked to go on.
    """
    last = checkpoint_path(run)
    if ckpt_path == "last":
        if not last.is_file():
            raise UserError(
                f"--ckpt_path last: there is no checkpoint {last}; name an interrupted run with --name, or leave it out"
            )
        return str(last)
    if ckpt_path is not None and not Path(ckpt_path).is_file():
        raise UserError(f"--ckpt_path {ckpt_path}: no such file; give a checkpoint's path or 'last'")
    if ckpt_path is None and last.exists():
        raise UserError(
            f"--name {run.name}: {run} already holds a run; go on with --ckpt_path last, or choose another name"
        )
    return ckpt_path


def keep_metrics(run: Path) -> None:
    """Move an earlier attempt's metrics.csv to metrics_1.csv and so on: the logger would delete it."""
    current = run / "metrics.csv"
    if current.exists():
        number = 1
        while (run / f"metrics_{number}.csv").exists():
            number += 1
        current.rename(run / f"metrics_{number}.csv")


def remove_leftovers(run: Path) -> None:
    """Remove what a process that was killed while it wrote has left beside checkpoints and exports."""
    for path in run.rglob(".*.tmp"):
        path.unlink(missing_ok=True) if path.is_file() else shutil.rmtree(path, ignore_errors=True)


def check_latest(run: Path) -> Path:
    """The place of runs/latest beside `run`; UserError where something other than a link stands there."""
    link = run.parent / "latest"
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link} is not a link; move it away, the last successful run is linked there")
    return link


def point_latest(run: Path) -> Path:
    """Let runs/latest point to `run`, in one step; returns the link."""
    link = check_latest(run)
    beside = run.parent / f".latest.{os.getpid()}"
    beside.unlink(missing_ok=True)
    beside.symlink_to(run.name)
    os.replace(beside, link)
    return link
