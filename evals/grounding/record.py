"""Rows of results of grounding, whichever model answered."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.encoder import Provenance
from evals.grounding.metrics import Placed
from evals.grounding.ref_set import RefSet
from evals.results import EvalResult, code_hash, command_line

Key = dict[str, Any]


def metric_names(top_k: Sequence[int]) -> list[str]:
    """As rows have them, in percent."""
    return [*(f"precision_at_{k}" for k in top_k), "mean_iou"]


def row_key(task: str, *, dataset: str, seed: int, config_hash: str, fingerprint: str) -> Key:
    """What recognises an evaluation of all splits, apart from split and metric."""
    return {
        "task": task,
        "dataset": dataset,
        "seed": seed,
        "config_hash": config_hash,
        "checkpoint_hash": fingerprint,
        "code_hash": code_hash(),
    }


def result_rows(
    key: Key,
    dataset: RefSet,
    placed: Placed,
    where: Provenance,
    *,
    top_k: Sequence[int],
    folder: Path,
    started: float,
    details: dict[str, Any],
) -> list[EvalResult]:
    """Precision@k and mean IoU of one split, with intervals over its pictures.

    Args:
        key: of :func:`row_key`.
        dataset: the split.
        placed: of its expressions.
        where: the encoder.
        top_k: how many boxes may be tried.
        folder: of the evaluation.
        started: `time.perf_counter()` when it began.
        details: kept with the first row.
    """
    estimates = [*(placed.estimate(k, seed=key["seed"]) for k in top_k), placed.estimate_iou(seed=key["seed"])]
    return [
        EvalResult(
            **key,
            synthetic=dataset.synthetic,
            split=dataset.split,
            metric=metric,
            value=estimate.value,
            n=len(placed),
            encoder=where.spec,
            objective=where.objective,
            samples_seen=where.samples_seen,
            training_flops=where.training_flops,
            run=str(folder),
            command=command_line(),
            wall_s=round(time.perf_counter() - started, 1),
            interval=estimate.interval,
            details=details if number == 0 else {},
        )
        for number, (metric, estimate) in enumerate(zip(metric_names(top_k), estimates, strict=True))
    ]
