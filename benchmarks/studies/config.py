"""Studies as YAML: a base, rows that change one field of it, columns, and claims that are stated before anything is run.

configs/benchmarks/NAME.yaml is a study, configs/benchmarks/evals/NAME.yaml the evaluations that give its columns.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.statistics import ClaimRule


@dataclass(frozen=True)
class ColumnConfig:
    """One number of an evaluation.

    Attributes:
        title: of the column.
        task: of the row of results, likewise the fields below.
        dataset: likewise.
        metric: likewise.
        split: likewise.
    """

    title: str
    task: str
    dataset: str
    metric: str
    split: str = "test"


@dataclass(frozen=True)
class EvalConfig:
    """One evaluation command and the numbers that are taken from it.

    Attributes:
        command: module and arguments behind `python -m`; {run}, {seed}, {out} are filled in, and --results is added.
        minutes: about how long it takes, for the first estimate.
        columns: by name.
    """

    command: tuple[str, ...]
    minutes: float
    columns: Mapping[str, ColumnConfig]


def needs_weights(frozen: str | None) -> bool:
    """Whether a spec is of a released encoder, whose file has to be given; random weights have none."""
    return frozen is not None and not frozen.startswith("random:")


@dataclass(frozen=True)
class RowConfig:
    """One row of a study.

    Attributes:
        name: its label.
        change: the one field that differs from the base (from `start` where it is given); none for the base itself.
        start: name of another row that this one starts from.
        tuned: rates that were chosen for it by a sweep, beside the change.
        budget: "samples" as many samples as the base, "flops" as many FLOPs of training.
        frozen: a released encoder instead ("timm:NAME", "open_clip:NAME"), evaluated as it is where --weights gives its file.
    """

    name: str
    change: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    tuned: Mapping[str, Any] = field(default_factory=dict)
    budget: Literal["samples", "flops"] = "samples"
    frozen: str | None = None

    @property
    def needs_weights(self) -> bool:
        return needs_weights(self.frozen)


@dataclass(frozen=True)
class ClaimConfig:
    """A claim about two rows, stated before they are run.

    Attributes:
        row: which row.
        column: which number.
        rule: direction or equivalence with its margin in the column's unit.
        source: who says so.
        than: the row that it is compared with; the base where None.
    """

    row: str
    column: str
    rule: ClaimRule
    source: str
    than: str | None = None

    def sentence(self, base: str) -> str:
        """The claim in words."""
        than, margin = self.than or base, self.rule.margin
        if self.rule.expect == "equal":
            return f"{self.column}: {self.row} equals {than} within {margin:g} points"
        more = f" by more than {margin:g} points" if margin else ""
        return f"{self.column}: {self.row} is {self.rule.expect} than {than}{more}"


@dataclass(frozen=True)
class StudyConfig:
    """A study.

    Attributes:
        name: of its file.
        title: for people.
        question: what it is to answer, in a sentence.
        base: a config of `python -m pretrain fit`.
        minutes: about how long the base trains on one core, or on the GPU that it is meant for.
        evals: evaluations by name.
        rows: the first one is the base.
        columns: names of columns in their order, of all evaluations.
        claims: stated before the runs.
        reference: tables of benchmarks/reference.yaml printed beside ours, with their columns by ours.
        entry: module and subcommand that train.
        text: of its file, as it was read.
    """

    name: str
    title: str
    question: str
    base: Path
    minutes: float
    evals: Mapping[str, EvalConfig]
    rows: tuple[RowConfig, ...]
    columns: tuple[str, ...]
    claims: tuple[ClaimConfig, ...] = ()
    reference: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    entry: tuple[str, ...] = ("pretrain", "fit")
    text: str = ""

    def column(self, name: str) -> ColumnConfig:
        return next(one.columns[name] for one in self.evals.values() if name in one.columns)

    def row(self, name: str) -> RowConfig:
        return next(row for row in self.rows if row.name == name)

    def overrides(self, row: RowConfig) -> dict[str, Any]:
        """All fields of the base's config that a row changes, what it starts from included."""
        before = {} if row.start is None else self.overrides(self.row(row.start))
        return before | dict(row.change) | dict(row.tuned)


def slug(text: str) -> str:
    """Lower case, words joined by "-"."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
