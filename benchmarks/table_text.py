"""Cells, groups and escapes of tables as text, shared by all kinds of files that tables are written to."""

import re

from benchmarks.tables import Cell, Row, Table
from pretrain.types import UserError

_LATEX = {char: "\\" + char for char in "{}$&#%_"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "α": r"$\alpha$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\to$",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "·": r"$\cdot$",
    # a line that begins with one of them would be taken for an option of the \\ before it
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}


def number_text(value: float, digits: int, *, sign: bool = False) -> str:
    """A number with its digits behind the point; what rounds to 0 has no minus."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "+" if sign else "") if float(text) == 0 else text


def _span(interval: tuple[float, float], digits: int) -> str:
    return f"[{number_text(interval[0], digits)}, {number_text(interval[1], digits)}]"


def cell_text(cell: Cell, digits: int, *, latex: bool = False) -> str:
    """A cell without its difference, e.g. "30.1 ± 1.2 (n=3)", "85.6", "not run"; for LaTeX escaped, with numbers in math mode.

    A number without seeds is a published one and gets no digits that it was not published with.
    """
    note = escape_latex(cell.note) if latex else cell.note
    if cell.value is None:
        return note or "no number"
    if not cell.n:
        digits = min(digits, len(repr(cell.value).partition(".")[2]))
    math, plus_minus = ("$", r" \pm ") if latex else ("", " ± ")
    std = "" if cell.std is None else plus_minus + number_text(cell.std, digits)
    text = f"{math}{number_text(cell.value, digits)}{std}{math}"
    if cell.std is None and cell.interval is not None:
        text += f" {math}{_span(cell.interval, digits)}{math}"
    if cell.n:
        text += f" ({math}n={cell.n}{math})"
    return f"{text}, {note}" if note else text


def difference_text(cell: Cell, digits: int, *, latex: bool = False) -> str:
    """The paired difference to the base, e.g. "+1.9 [0.3, 3.5]"; empty where there is none."""
    if cell.difference is None:
        return ""
    math = "$" if latex else ""
    interval = "" if cell.difference_interval is None else f" {math}{_span(cell.difference_interval, digits)}{math}"
    return f"{math}{number_text(cell.difference, digits, sign=True)}{math}{interval}"


def sources(row: Row) -> tuple[str, ...]:
    """Where a row's numbers were published: what their traces name, each once."""
    return tuple(dict.fromkeys(trace.command for cell in row.cells for trace in cell.traces))


def origin_title(row: Row) -> str:
    """ "ours", "published (paper, Table 9a)", "secondary summary"."""
    if row.origin == "ours":
        return "ours"
    title = "published" if row.origin == "published" else "secondary summary"
    named = "; ".join(name for name in sources(row) if name != title)
    return f"{title} ({named})" if named else title


def groups(table: Table) -> list[tuple[str, list[Row]]]:
    """Rows by whose they are, ours first, those of one source together, with the title of each group.

    Raises:
        UserError: a row has more or fewer cells than the table has columns.
    """
    for row in table.rows:
        if len(row.cells) != len(table.columns):
            raise UserError(
                f"table {table.name!r}, row {row.label!r}: {len(row.cells)} cells to {len(table.columns)} columns; give one each"
            )
    titles = sorted(dict.fromkeys(map(origin_title, table.rows)), key=lambda title: title != "ours")
    return [(title, [row for row in table.rows if origin_title(row) == title]) for title in titles]


def legend(table: Table) -> list[str]:
    """What the parts of the table's cells mean, for those that it has."""
    cells = [cell for row in table.rows if row.origin == "ours" for cell in row.cells if cell.value is not None]
    lines = []
    if any(cell.std is not None for cell in cells):
        lines.append("a ± b (n=k): mean and standard deviation (k - 1) over k seeds.")
    if any(cell.std is None and cell.interval is not None for cell in cells):
        lines.append("a [b, c] (n=1): one seed with its 95% interval over the pictures that were scored.")
    if any(cell.difference is not None for cell in cells):
        lines.append("Differences are paired by seed: mean over seeds, own - base, with its 95% interval.")
    return lines


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one line of a table."""
    text = re.sub(r"&(?=#?\w+;)", "&amp;", " ".join(text.split())).replace("<", "&lt;")
    text = re.sub(r"([\\`*|$~]|\[(?=[^\]]*\][(\[]))", r"\\\1", text)
    # within words it is no emphasis, and names of fields stay readable in the source
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\_", text)


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is, in one line: UTF-8, of Latin letters and the signs that tables have."""
    # two dashes in a row would be joined to a longer one
    return re.sub(r"(-(?=-))|.", lambda one: "-{}" if one[1] else _LATEX.get(one[0], one[0]), " ".join(text.split()))
