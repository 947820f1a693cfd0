"""Tables of results as data, and as Markdown, LaTeX and CSV."""

from dataclasses import dataclass, field
from typing import Literal

#: Whose numbers a row holds: they are printed beside each other and never mixed.
Origin = Literal["ours", "published", "secondary"]


@dataclass(frozen=True)
class Trace:
    """Where a number comes from.

    Attributes:
        file: of rows, or of published numbers.
        line: in it, counted from 1; None where lines mean nothing.
        command: that made it; for a published number its source.
        value: the single number.
        seed: of it.
    """

    file: str
    line: int | None
    command: str
    value: float
    seed: int | None = None


@dataclass(frozen=True)
class Cell:
    """One number of a table, or why there is none.

    Attributes:
        value: mean over seeds; None where there is none, `note` says why then ("not run", "weights not given").
        std: deviation over seeds (n - 1); None for one seed.
        n: seeds.
        interval: 95% interval of `value`; over pictures for one seed.
        difference: paired difference to the base row, mean over seeds.
        difference_interval: its 95% interval.
        note: a word beside it.
        traces: every row behind it.
    """

    value: float | None = None
    std: float | None = None
    n: int = 0
    interval: tuple[float, float] | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    note: str = ""
    traces: tuple[Trace, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        label: first column.
        cells: one for each column of numbers.
        origin: whose numbers.
        is_base: whether the others are compared with it.
        detail: what the row changes, in a line ("model.objective.text_weight: 0").
    """

    label: str
    cells: tuple[Cell, ...]
    origin: Origin = "ours"
    is_base: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: for files: lower case, words joined by "_".
        title: for people.
        columns: titles of the columns of numbers; their unit is percent unless they name another.
        rows: ours first, then published ones.
        notes: lines below it: what n is, which data are synthetic, what was not run.
        digits: behind the point.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())
    digits: int = 1


@dataclass(frozen=True)
class Verdict:
    """What a claim came to.

    Attributes:
        claim: the claim as a sentence, with its direction or margin, as it was stated before the runs.
        outcome: "supported", "contradicted", "not resolved" or "not run".
        evidence: difference, interval, n in a line.
        detectable: the smallest difference that this n could have shown (80% power), in points; None where n < 2.
        source: where the claim comes from.
    """

    claim: str
    outcome: Literal["supported", "contradicted", "not resolved", "not run"]
    evidence: str
    detectable: float | None
    source: str


@dataclass(frozen=True)
class Figure:
    """A picture of the report.

    Attributes:
        name: for files, as a table's.
        caption: what is seen, on which axes, and what it was made of.
        content: of the file.
        media_type: "image/svg+xml" or "image/png".
    """

    name: str
    caption: str
    content: bytes
    media_type: Literal["image/svg+xml", "image/png"] = "image/svg+xml"


@dataclass(frozen=True)
class Problem:
    """What could not be read, or was changed by hand, and where.

    Attributes:
        file: which.
        line: in it, counted from 1; None where the whole file is meant.
        message: what is wrong with it, in a line.
    """

    file: str
    line: int | None
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}" if self.line is None else f"{self.file}, line {self.line}: {self.message}"


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        name: for links and files.
        title: for people.
        text: paragraphs: the question, how it was run.
        tables: in their order.
        verdicts: on the section's claims.
        figures: in their order.
        figures_first: whether they stand before the tables.
    """

    name: str
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    figures: tuple[Figure, ...] = ()
    figures_first: bool = False
