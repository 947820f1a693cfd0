"""Tables of results as Markdown, LaTeX and CSV. Published numbers stand under a rule of their own that names their source.

A cell reads "30.1 ± 1.2 (n=3)": mean, deviation over seeds, seeds; of one seed "30.1 [28.2, 32.0] (n=1)" with the interval over
pictures. Below a row with differences to the base a line gives them, "+1.9 [0.3, 3.5]". Nothing is set in bold: a bold mean of a
few seeds would claim a winner that no interval names.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from benchmarks.table_text import cell_text, difference_text, escape_latex, escape_markdown, groups, legend
from benchmarks.tables import Cell, Row, Table, Trace, Verdict

#: Of a CSV file, a line each cell: rows and columns are counted from 1, numbers in full, absent ones empty; `traces` is JSON, a
#: list of [file, line, command, value, seed]. A table's name, title, notes and digits are not in it.
_CSV_PLACE = ("row_number", "column_number", "row", "origin", "is_base", "detail", "column")
_CSV_NUMBERS = ("value", "std", "n", "low", "high", "difference", "difference_low", "difference_high")
CSV_FIELDS = (*_CSV_PLACE, *_CSV_NUMBERS, "note", "traces")
VERDICT_FIELDS = ("claim", "outcome", "evidence", "detectable", "source")
_VERDICT_TITLES = ("claim", "outcome", "evidence", "detectable (points)", "source of the claim")


def _texts(table: Table, rows: Sequence[Row], *, has_details: bool, latex: bool = False) -> Iterator[list[str]]:
    """Each line's texts, escaped: label, detail where asked for, cells; and a line of differences below a row that has any."""
    escape = escape_latex if latex else escape_markdown
    base = next((row.label for row in table.rows if row.is_base), "the base")
    for row in rows:
        label = f"{row.label} (base)" if row.is_base else row.label
        cells = [cell_text(cell, table.digits, latex=latex) for cell in row.cells]
        # the note is the only part of a cell that may need an escape; LaTeX's is escaped with its cell
        yield [*map(escape, [label, row.detail][: 1 + has_details]), *(cells if latex else map(escape_markdown, cells))]
        differences = [difference_text(cell, table.digits, latex=latex) for cell in row.cells]
        if any(differences):
            indent = r"\quad " if latex else ""
            yield [indent + escape(f"difference to {base}"), *[""] * has_details, *differences]


def _has_details(rows: Iterable[Row]) -> bool:
    return any(row.detail for row in rows)


def _markdown_table(head: Iterable[str], lines: Iterable[Sequence[str]], num_texts: int) -> str:
    head = list(head)
    rule = f"|{'---|' * num_texts}{'---:|' * (len(head) - num_texts)}"
    first, *others = (f"| {' | '.join(texts)} |" for texts in (head, *lines))
    return "\n".join([first, rule, *others])


def to_markdown(table: Table) -> str:
    """Title, our rows, then under a rule each published source in a table of its own with the same columns, then notes."""
    blocks = [f"**{escape_markdown(table.title)}**"]
    for title, rows in groups(table):
        if title != "ours":
            blocks += ["---", f"*{escape_markdown(title)}*"]
        has_details = _has_details(rows)
        head = ["", *["change" if title == "ours" else "remark"] * has_details, *table.columns]
        blocks.append(
            _markdown_table(map(escape_markdown, head), _texts(table, rows, has_details=has_details), 1 + has_details)
        )
    if notes := [*legend(table), *table.notes]:
        blocks.append("\n".join(f"- {escape_markdown(note)}" for note in notes))
    return "\n\n".join(blocks) + "\n"


def _latex_table(kind: str, body: Sequence[str], *, caption: str, label: str, notes: Sequence[str] = ()) -> str:
    below = [r"\par\smallskip\footnotesize", *(rf"{escape_latex(note)}\par" for note in notes)] if notes else []
    lines = [
        r"% needs \usepackage{booktabs}; text is UTF-8",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(caption)}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{kind}}}",
        r"\toprule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *below,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_line(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def to_latex(table: Table) -> str:
    r"""A float of booktabs; published rows stand below a \midrule under their source's name."""
    has_details = _has_details(table.rows)
    word = "change" if _has_details(row for row in table.rows if row.origin == "ours") else "remark"
    head = ["", *[word] * has_details, *table.columns]
    body = [_latex_line(map(escape_latex, head))]
    for title, rows in groups(table):
        body.append(r"\midrule")
        if title != "ours":
            body += [rf"\multicolumn{{{len(head)}}}{{l}}{{\emph{{{escape_latex(title)}}}}} \\", r"\midrule"]
        body += [_latex_line(texts) for texts in _texts(table, rows, has_details=has_details, latex=True)]
    kind = "l" * (1 + has_details) + "r" * len(table.columns)
    return _latex_table(kind, body, caption=table.title, label=table.name, notes=[*legend(table), *table.notes])


def _csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([head, *lines])
    return file.getvalue()


def _csv_number(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def to_csv(table: Table) -> str:
    """One line for each cell with the fields of `CSV_FIELDS`, numbers in full; `rows_from_csv` reads them back."""
    groups(table)  # raises where a row does not fit
    lines = []
    for row_number, row in enumerate(table.rows, 1):
        for number, (column, cell) in enumerate(zip(table.columns, row.cells), 1):
            spans = [*(cell.interval or (None, None)), cell.difference, *(cell.difference_interval or (None, None))]
            traces = json.dumps([[one.file, one.line, one.command, one.value, one.seed] for one in cell.traces])
            numbers = [_csv_number(cell.value), _csv_number(cell.std), cell.n, *map(_csv_number, spans)]
            about = [row_number, number, row.label, row.origin, int(row.is_base), row.detail, column]
            lines.append([*about, *numbers, cell.note, traces])
    return _csv(CSV_FIELDS, lines)


def rows_from_csv(text: str) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """Columns and rows of what `to_csv` wrote; both are empty where the table had no row."""
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    columns = tuple(line["column"] for line in lines if line["row_number"] == "1")
    rows = []
    for _, group in groupby(lines, key=lambda line: line["row_number"]):
        first, *_ = own = list(group)
        cells = tuple(map(_cell_from_csv, own))
        rows.append(Row(first["row"], cells, first["origin"], first["is_base"] == "1", first["detail"]))
    return columns, tuple(rows)


def _cell_from_csv(line: dict[str, str]) -> Cell:
    def number(name: str) -> float | None:
        return float(line[name]) if line[name] else None

    def span(low: str, high: str) -> tuple[float, float] | None:
        return (float(line[low]), float(line[high])) if line[low] else None

    return Cell(
        value=number("value"),
        std=number("std"),
        n=int(line["n"]),
        interval=span("low", "high"),
        difference=number("difference"),
        difference_interval=span("difference_low", "difference_high"),
        note=line["note"],
        traces=tuple(Trace(*fields) for fields in json.loads(line["traces"])),
    )


def _verdict_lines(verdicts: Sequence[Verdict], escape: Callable[[str], str]) -> list[list[str]]:
    lines = []
    for one in verdicts:
        detectable = "-" if one.detectable is None else f"{one.detectable:.2g}"
        lines.append([*map(escape, (one.claim, one.outcome, one.evidence, detectable, one.source))])
    return lines


def verdicts_to_markdown(verdicts: Sequence[Verdict]) -> str:
    """A table, a line each claim; "-" where one seed tells no detectable difference."""
    return _markdown_table(_VERDICT_TITLES, _verdict_lines(verdicts, escape_markdown), len(_VERDICT_TITLES)) + "\n"


def verdicts_to_latex(
    verdicts: Sequence[Verdict], *, caption: str = "Claims and what they came to", label: str = "verdicts"
) -> str:
    """As `verdicts_to_markdown`, a float of booktabs with columns that break lines."""
    body = [_latex_line(_VERDICT_TITLES), r"\midrule", *map(_latex_line, _verdict_lines(verdicts, escape_latex))]
    kind = r"p{0.28\linewidth}lp{0.28\linewidth}rp{0.14\linewidth}"
    return _latex_table(kind, body, caption=caption, label=label)


def verdicts_to_csv(verdicts: Sequence[Verdict]) -> str:
    """A line each claim with the fields of `VERDICT_FIELDS`; `detectable` in full, empty where there is none."""
    return _csv(
        VERDICT_FIELDS,
        [[one.claim, one.outcome, one.evidence, _csv_number(one.detectable), one.source] for one in verdicts],
    )
