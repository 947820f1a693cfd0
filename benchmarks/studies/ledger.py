"""The results of studies: rows of one file, added whole jobs at a time, none lost and none twice whatever is killed when."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.rows import fault_of, read_rows, seal
from evals.results import EvalResult
from pretrain.files import add_lines, locked_file
from pretrain.types import UserError

#: What a row's details say of its job, beside what the evaluation says: which encoder, which evaluation, how many rows it made.
JOB = ("arm", "eval", "eval_key")


def job_of(row: EvalResult) -> tuple[Any, ...]:
    """Which job a row is of, its seed included; Nones for rows of other makers."""
    return (*(row.details.get(name) for name in JOB), row.seed)


def finished_jobs(rows: Iterable[EvalResult]) -> set[tuple[Any, ...]]:
    """Jobs whose rows are all there."""
    found: dict[tuple[Any, ...], list[EvalResult]] = {}
    for row in rows:
        if row.details.get("arm") is not None:
            found.setdefault(job_of(row), []).append(row)
    return {job for job, own in found.items() if len(own) >= own[0].details.get("rows_of_job", 1)}


def _identity(row: EvalResult) -> tuple[Any, ...]:
    return (*job_of(row), row.task, row.dataset, row.split, row.metric)


def add_job(rows: Iterable[EvalResult], path: Path, *, about: Mapping[str, Any]) -> int:
    """Append a job's rows, those that are not there yet; returns how many were.

    Writers wait for each other; all rows are written at once and are on the disk when this returns. A line that a crash
    has cut short is closed first, and stays: `read_rows` reports it.

    Args:
        rows: that one evaluation made.
        path: of the results.
        about: goes into the details; has the fields of `JOB`.

    Raises:
        UserError: a row that could not be read back, such as one whose value is not finite; nothing is written then.
    """
    rows = list(rows)
    told = [replace(row, details={**row.details, **about, "rows_of_job": len(rows)}) for row in rows]
    for row in told:
        if (fault := fault_of(asdict(row))) is not None:
            raise UserError(f"{row.task} {row.metric}: {fault}")
    with locked_file(path) as file:
        there = {_identity(one.row) for one in read_rows(path).rows}
        missing = [row for row in told if _identity(row) not in there]
        add_lines(file, b"".join(json.dumps(seal(asdict(row)), sort_keys=True).encode() + b"\n" for row in missing))
    return len(missing)
