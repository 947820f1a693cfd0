"""Rows of scaling studies: one line of JSON for each (size, budget, seed), appended once, read with what is wrong."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.scaling.plan import Job
from benchmarks.tables import Problem
from evals.results import hash_of
from pretrain.files import add_lines, locked_file
from pretrain.types import UserError


@dataclass(frozen=True)
class ScalingRow:
    """What one budget of one size came to.

    Attributes:
        study: the scaling study's name.
        size: its size's name.
        budget: samples as the study gives them.
        seed: of the run.
        encoder_params: parameters of the encoder.
        objective_params: of all that the objective adds (decoder, towers).
        samples_seen: trunk and cool-down together.
        start: optimiser step at which it left the trunk.
        steps: at its end.
        training_flops: of trunk and cool-down together: what training it alone would have cost.
        seconds: of training on `samples_seen` samples at the speed of the cool-down, without start-up and validation.
        val: validation losses by name without "val/".
        baseline: of losses, by name.
        precision: of the run.
        config_hash: of what decides its outcome, but for seed and code.
        code_hash: of the code.
        command: that made the cool-down.
        trunk_command: that made the trunk.
    """

    study: str
    size: str
    budget: int
    seed: int
    encoder_params: int
    objective_params: int
    samples_seen: int
    start: int
    steps: int
    training_flops: float | None
    seconds: float | None
    val: Mapping[str, float]
    baseline: Mapping[str, float]
    precision: str
    config_hash: str
    code_hash: str
    command: str
    trunk_command: str

    def key(self) -> tuple[Any, ...]:
        """What recognises finished work."""
        return self.size, self.budget, self.seed, self.config_hash, self.code_hash


@dataclass(frozen=True)
class NumberedRow:
    """A row, and where it stands: its file's name and line, counted from 1."""

    row: ScalingRow
    file: str
    line: int


def key_of(job: Job) -> tuple[Any, ...]:
    """The key of the row that a branch makes."""
    return job.size, job.budget, job.seed, job.config_hash, job.code_hash


def num_params(weights: Path) -> int:
    """Numbers in a safetensors file, by its header alone. UserError where it is none."""
    try:
        with weights.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return sum(math.prod(about["shape"]) for name, about in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise UserError(f"{weights} is no safetensors file ({type(error).__name__})") from error


def portable(words: tuple[str, ...]) -> str:
    """A command as it can be typed again, without folders of this machine: paths from the working folder, or names alone."""
    here = str(Path.cwd()) + os.sep

    def clean(word: str) -> str:
        name, equals, value = word.rpartition("=")
        value = value.removeprefix(here)
        return f"{name}{equals}{Path(value).name if value.startswith(os.sep) else value}"

    return " ".join(["python -m", *map(clean, words)])


def row_of(job: Job, *, study: str, trunk: Job) -> ScalingRow:
    """The row of a branch that has finished.

    Raises:
        UserError: its summary cannot be read, or is not of the run that was planned.
    """
    try:
        summary = json.loads(job.summary.read_text())
        val, baseline = dict(summary["val"]), dict(summary["baseline"])
        samples, speed, precision = summary["samples_seen"], summary["imgs_per_s"], summary["precision"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{job.summary} is no summary of a run ({type(error).__name__}: {error})") from error
    if samples != job.steps * job.batch:
        raise UserError(
            f"{job.summary}: samples_seen is {samples}, planned were {job.steps} steps of {job.batch}; set trainer.devices in "
            "the base if the machine has several"
        )
    return ScalingRow(
        study=study,
        size=job.size,
        budget=job.budget,
        seed=job.seed,
        encoder_params=num_params(job.run / "export" / "encoder.safetensors"),
        objective_params=num_params(job.run / "export" / "objective.safetensors"),
        samples_seen=samples,
        start=job.start,
        steps=job.steps,
        training_flops=summary.get("training_flops"),
        seconds=round(samples / speed, 2) if speed else None,
        val=val,
        baseline=baseline,
        precision=precision,
        config_hash=job.config_hash,
        code_hash=job.code_hash,
        command=portable(job.arguments),
        trunk_command=portable(trunk.arguments),
    )


def append_once(row: ScalingRow, path: Path) -> bool:
    """Append a row unless it is there already; whole and on the disk when this returns.

    Looking and appending happen under one lock. A line that a crash has cut short in front of it is closed first.

    Returns:
        Whether it was appended.
    """
    with locked_file(path) as file:
        file.seek(0)
        rows, _ = _parse(file.read(), file=path.name)
        if any(one.row.key() == row.key() for one in rows):
            return False
        plain = asdict(row)
        add_lines(file, json.dumps(plain | {"digest": hash_of(plain)}, sort_keys=True).encode() + b"\n")
    return True


def _fault(content: Any) -> str | None:
    """What is wrong with a line's content, in a line; None for a row."""
    if not isinstance(content, dict):
        return "this is no row of a scaling study: not a mapping"
    known = {one.name for one in fields(ScalingRow)} | {"digest"}
    if odd := sorted(known ^ set(content)):
        kind = "missing" if odd[0] in known else "unknown"
        return f"field {odd[0]!r} is {kind}; this is no row of a scaling study of this version"
    plain = {name: value for name, value in content.items() if name != "digest"}
    if hash_of(plain) != content["digest"]:
        return "its digest does not fit: the row was changed after it was written, and is left out"
    return None


def _parse(content: bytes, *, file: str) -> tuple[list[NumberedRow], list[Problem]]:
    rows: list[NumberedRow] = []
    problems, seen = [], {}
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):  # no JSON, or bytes that are no UTF-8
            problems.append(Problem(file, number, "cut short or no JSON; the row is left out"))
            continue
        if (fault := _fault(found)) is not None:
            problems.append(Problem(file, number, fault))
            continue
        row = ScalingRow(**{name: value for name, value in found.items() if name != "digest"})
        if (first := seen.setdefault(row.key(), number)) != number:
            problems.append(Problem(file, number, f"the row of line {first} again; it is left out"))
            continue
        rows.append(NumberedRow(row, file, number))
    return rows, problems


def read_rows(path: Path, *, file: str | None = None) -> tuple[list[NumberedRow], list[Problem]]:
    """All whole rows of a file, and what is wrong with its other lines; nothing of both where there is no file.

    Args:
        file: its name in rows and problems; `path`'s own where not given.
    """
    name = file or path.name
    try:
        return _parse(path.read_bytes(), file=name)
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [Problem(name, None, f"cannot be read ({error.strerror})")]
