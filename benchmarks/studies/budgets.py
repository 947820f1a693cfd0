"""Budgets at equal compute: how many samples another objective sees for the FLOPs of the base's run.

FLOPs are those that a run's summary has: `pretrain.flops`, forward and backward, on the first samples that it trains
on. A run of a few steps says how many a sample takes.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from benchmarks.processes import last_line, start
from benchmarks.studies.arms import Arm
from evals.results import hash_of, source_hash
from pretrain.files import write_atomically
from pretrain.types import UserError


def samples_at_equal_compute(base_samples: int, *, base_flops: float, own_flops: float, batch_size: int) -> int:
    """Whole batches, as near as they come to the base's FLOPs; at least one.

    Args:
        base_samples: budget of the base.
        base_flops: of training on one of its samples.
        own_flops: likewise.
        batch_size: of the arm.
    """
    return max(1, round(base_samples * base_flops / own_flops / batch_size)) * batch_size


def flops_per_sample(
    config: Mapping[str, Any],
    *,
    entry: Sequence[str],
    folder: Path,
    cpus: Sequence[int] | None = None,
    gpu: int | None = None,
) -> float:
    """FLOPs of training on one sample, from a short run of the real entry point; remembered in `folder`.

    Args:
        config: of `python -m pretrain fit`, without a budget.
        entry: module and subcommand that train.
        folder: for the run, which is removed, and the number, which stays.
        cpus: as `processes.start` takes them.
        gpu: likewise.

    Raises:
        UserError: the run failed; its last line says why.
    """
    # here, since Lightning takes seconds that a study of equal samples need not wait
    from pretrain.callbacks.compute import NUM_SAMPLES

    known = folder / f"flops-{hash_of([config, source_hash('pretrain')])[:8]}.json"
    if known.is_file():
        return float(json.loads(known.read_text())["flops_per_sample"])
    short = deepcopy(dict(config))
    # a rate's warm-up or a validation of the whole run has no place in a few steps
    short.setdefault("model", {})["optim"] = {"warmup_steps": 0}
    short["trainer"] = {**(short.get("trainer") or {}), "val_check_interval": 1_000_000}
    short.setdefault("data", {})["num_val"] = min(16, short["data"].get("num_val", 16))
    batch_size = short["data"]["batch_size"]
    name = f".{known.stem}"
    shutil.rmtree(folder / name, ignore_errors=True)  # a killed runner's
    file, log = folder / f"{known.stem}.yaml", folder / f"{known.stem}.log"
    write_atomically(file, yaml.safe_dump(short).encode())
    samples = max(1, NUM_SAMPLES // batch_size) * batch_size
    command = [
        *entry,
        "--config",
        str(file),
        "--runs",
        str(folder),
        "--name",
        name,
        "--max_samples",
        str(samples),
    ]
    if start(command, log=log, cpus=cpus, gpu=gpu).wait() != 0:
        raise UserError(f"{file}: no FLOPs, its run failed: {last_line(log)} (all of it in {log})")
    summary = json.loads((folder / name / "summary.json").read_text())
    value = summary["training_flops"] / summary["samples_seen"]
    shutil.rmtree(folder / name)
    write_atomically(known, json.dumps({"flops_per_sample": value}).encode())
    return value


def budget(arm: Arm, *, folder: Path, cpus: Sequence[int] | None = None, gpu: int | None = None) -> int:
    """Samples that an arm is trained on. UserError as `flops_per_sample`."""
    assert arm.config is not None
    if arm.base_config is None:
        return arm.max_samples
    base, own = (
        flops_per_sample(config, entry=arm.entry, folder=folder, cpus=cpus, gpu=gpu)
        for config in (arm.base_config, arm.config)
    )
    return samples_at_equal_compute(
        arm.max_samples, base_flops=base, own_flops=own, batch_size=arm.config["data"]["batch_size"]
    )
