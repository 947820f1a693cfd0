"""Rows of results: one line of JSON each, appended under a lock, and found again by what was evaluated."""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from pretrain.files import add_lines, locked_file
from pretrain.types import UserError

#: Where rows go if no other file is named.
RESULTS = Path("runs/results.jsonl")
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class EvalResult:
    """One number and everything that it can be traced by.

    Attributes:
        task: e.g. "attentive_probe", "linear_probe", "knn", "few_shot", "zero_shot", "retrieval", "finetune".
        dataset: name of the data set, as its config gives it.
        synthetic: whether its pictures are generated.
        split: what was scored, e.g. "test".
        metric: e.g. "top1"; percent unless its name has a unit.
        value: of the metric.
        n: pictures (or texts) that were scored.
        seed: of the evaluation's own draws.
        encoder: the spec that names it, e.g. "runs/latest", "timm:NAME@FILE".
        objective: what it was trained with; "random" for untrained weights.
        samples_seen: in pre-training.
        training_flops: of its pre-training.
        config_hash: of the evaluation's settings.
        checkpoint_hash: of the encoder's weights (`TokenEncoder.fingerprint`).
        code_hash: of the packages involved.
        run: folder with predictions, pictures and the rest.
        command: the command line.
        wall_s: seconds of the evaluation.
        interval: 95% interval of `value` over the pictures that were scored.
        details: what else is worth keeping: the chosen setting, scores by class.
    """

    task: str
    dataset: str
    synthetic: bool
    split: str
    metric: str
    value: float
    n: int
    seed: int
    encoder: str
    objective: str
    samples_seen: int | None
    training_flops: float | None
    config_hash: str
    checkpoint_hash: str
    code_hash: str
    run: str
    command: str
    wall_s: float
    interval: tuple[float, float] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def key(self) -> tuple[Any, ...]:
        """What recognises finished work."""
        return tuple(getattr(self, name) for name in KEY)


KEY = ("task", "dataset", "split", "metric", "seed", "config_hash", "checkpoint_hash", "code_hash")


def hash_of(content: Any) -> str:
    """A short name for settings: plain data, in any order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


@cache
def source_hash(*places: str) -> str:
    """Of source files and of all that lie in folders, named from the repository's root."""
    digest = hashlib.sha256()
    for place in places:
        whole = _ROOT / place
        for path in sorted(whole.rglob("*.py")) if whole.is_dir() else [whole]:
            digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def code_hash() -> str:
    """Of the packages that an evaluation's number depends on: a change of code makes it again."""
    return source_hash("pretrain", "evals")


def command_line() -> str:
    """This process's command, as it can be typed again."""
    module = Path(sys.argv[0])
    name = f"python -m {module.parent.name}" if module.name == "__main__.py" else f"python {module}"
    return " ".join([name, *sys.argv[1:]])


def append(rows: Iterable[EvalResult], path: str | Path = RESULTS) -> None:
    """Append rows, each whole: writers wait for each other, and every row is on the disk when this returns.

    A line that a crash has cut short in front of them is closed first, so that it cannot spoil the next one.
    """
    with locked_file(path) as file:
        add_lines(file, b"")
        for row in rows:
            add_lines(file, json.dumps(asdict(row), sort_keys=True).encode() + b"\n")


def read(path: str | Path = RESULTS) -> list[EvalResult]:
    """All rows; an absent file has none. Lines that a crash has cut short are left out.

    Raises:
        UserError: a whole line that is no row of this version.
    """
    path = Path(path)
    if not path.is_file():
        return []
    names = {f.name for f in fields(EvalResult)}
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if not isinstance(content, dict) or set(content) - names:
            raise UserError(f"{path}, line {number}: this is no row of results of this version")
        if isinstance(content.get("interval"), list):
            content["interval"] = tuple(content["interval"])
        try:
            rows.append(EvalResult(**content))
        except TypeError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    return rows


def find(rows: Iterable[EvalResult], wanted: Mapping[str, Any]) -> EvalResult | None:
    """The last row whose fields are the wanted ones; `wanted` names those of KEY."""
    found = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    return found[-1] if found else None


def finished(wanted: Mapping[str, Any], path: str | Path = RESULTS) -> list[EvalResult]:
    """The rows of a task that was finished earlier, the latest of each metric; none where its last row is missing.

    A task's rows are appended together, and its last one says so (`last_of_task`): what a crash has cut short is made again.
    """
    last = {row.key(): row for row in read(path) if find([row], wanted)}
    return list(last.values()) if any(row.details.get("last_of_task") for row in last.values()) else []
