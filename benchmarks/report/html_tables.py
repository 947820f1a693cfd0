"""Tables, verdicts and problems as HTML. Behind each number a popover holds the rows it was made from, without JavaScript."""

from collections.abc import Sequence
from html import escape

from benchmarks.table_text import number_text, sources
from benchmarks.tables import Cell, Problem, Row, Table, Trace, Verdict

#: A sign next to the word, so that a verdict is not told by its colour alone.
SIGNS = {"supported": "✓", "contradicted": "✗", "not resolved": "?", "not run": "–"}
_PUBLISHED = "Published numbers: other models, data and budgets, not run here"
_ORIGINS = {"published": "published", "secondary": "secondary summary"}


def number(value: float, *, digits: int, signed: bool = False) -> str:
    """As in the other formats, with a minus sign that is as wide as a plus."""
    return number_text(value, digits, sign=signed).replace("-", "−")


def _interval(low_high: tuple[float, float], *, digits: int, signed: bool = False) -> str:
    low, high = (number(end, digits=digits, signed=signed) for end in low_high)
    return f"[{low}, {high}]"


def badge(outcome: str) -> str:
    kind = outcome.replace(" ", "-")
    return f'<span class="badge {kind}">{SIGNS.get(outcome, "!")} {escape(outcome)}</span>'


def _place(trace: Trace) -> str:
    place = escape(trace.file)
    return f"<code>{place}</code>" if trace.line is None else f"<code>{place}</code>, line {trace.line}"


def _behind(cell: Cell, *, origin: str) -> str:
    """The list of rows behind a number."""
    lines = []
    for trace in cell.traces:
        seed = "" if trace.seed is None else f"seed {trace.seed}: "
        made = "source: " if origin != "ours" else ""
        command = escape(trace.command)
        command = f"{made}{command}" if made else f"<code>{command}</code>"
        lines.append(f"<li>{seed}<b>{trace.value:.10g}</b> · {_place(trace)}<br>{command}</li>")
    return f"<ol>{''.join(lines)}</ol>"


def _small(cell: Cell, *, digits: int) -> list[str]:
    """What stands below a value: n, its interval, the paired difference and its interval."""
    lines = []
    parts = [f"n = {cell.n}"] if cell.n else []
    if cell.interval is not None:
        parts.append(_interval(cell.interval, digits=digits))
    if parts:
        lines.append(" ".join(parts))
    if cell.difference is not None:
        difference = f"Δ {number(cell.difference, digits=digits, signed=True)}"
        if cell.difference_interval is not None:
            difference += f" {_interval(cell.difference_interval, digits=digits, signed=True)}"
        lines.append(difference)
    return lines


def _cell(cell: Cell, *, key: str, heading: str, digits: int, origin: str) -> str:
    """One number with its deviation, what is below it, and the rows behind it in a popover named `key`."""
    if cell.value is None:
        return f'<td class="number"><span class="none note">{escape(cell.note or "–")}</span></td>'
    shown = number(cell.value, digits=digits)
    if cell.std is not None:
        shown += f" ± {number(cell.std, digits=digits)}"
    small = [*_small(cell, digits=digits), *([f'<span class="note">{escape(cell.note)}</span>'] if cell.note else [])]
    below = "".join(f'<span class="small">{line}</span>' for line in small)
    if not cell.traces:  # nothing to trace it by is said, not hidden
        below += '<span class="small">no row given</span>'
        return f'<td class="number">{shown}{below}</td>'
    button = f'<button class="trace" popovertarget="{key}" title="the rows behind this number">{shown}</button>'
    close = f'<button class="close" popovertarget="{key}" popovertargetaction="hide">close</button>'
    popover = f'<div popover id="{key}">{close}<b>{escape(heading)}</b>: {shown}{_behind(cell, origin=origin)}</div>'
    return f'<td class="number">{button}{below}{popover}</td>'


def _label(row: Row) -> str:
    parts = [escape(row.label)]
    if row.is_base:
        parts.append('<span class="soft">base of the differences</span>')
    if row.detail:
        parts.append(f'<span class="soft">{escape(row.detail)}</span>')
    if row.origin != "ours":
        named = "; ".join(sources(row))
        parts.append(
            f'<span class="soft"><span class="badge origin">{_ORIGINS[row.origin]}</span> {escape(named)}</span>'
        )
    return f'<th scope="row">{" ".join(parts)}</th>'


def _row(row: Row, table: Table, *, place: int) -> str:
    cells = "".join(
        _cell(
            cell,
            key=f"{table.name}-{place}-{column}",
            heading=f"{row.label}, {table.columns[column]}",
            digits=table.digits,
            origin=row.origin,
        )
        for column, cell in enumerate(row.cells)
    )
    return f"<tr{' class=base' if row.is_base else ''}>{_label(row)}{cells}</tr>"


def frame(head: Sequence[str], body: str, *, numbers: Sequence[int] = (), kind: str = "", label: str = "") -> str:
    """A table that scrolls sideways on its own, so that the page does not.

    Args:
        head: titles of columns, as HTML.
        body: its tbody elements.
        numbers: columns that hold numbers, which stand right.
        kind: class of the table.
        label: id of its heading.
    """
    titles = "".join(
        f'<th scope="col"{" class=number" if n in numbers else ""}>{title}</th>' for n, title in enumerate(head)
    )
    region = f' role="region" aria-labelledby="{label}"' if label else ""
    table = f"<table{f' class={kind}' if kind else ''}><thead><tr>{titles}</tr></thead>{body}</table>"
    return f'<div class="scroll" tabindex="0"{region}>{table}</div>'


def table_html(table: Table) -> str:
    """A table; rows of others are in a part of their own behind ours, under a heading that says so."""
    ours = [_row(row, table, place=n) for n, row in enumerate(table.rows) if row.origin == "ours"]
    others = [_row(row, table, place=n) for n, row in enumerate(table.rows) if row.origin != "ours"]
    width = len(table.columns) + 1
    body = f"<tbody>{''.join(ours)}</tbody>" if ours else ""
    if others:
        heading = f'<tr class="heading"><th colspan="{width}"><span>{_PUBLISHED}</span></th></tr>'
        body += f'<tbody class="published">{heading}{"".join(others)}</tbody>'
    head, label = ["", *map(escape, table.columns)], f"table-{table.name}"
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<h3 id="{label}">{escape(table.title)}</h3>'
        + frame(head, body, numbers=range(1, width), kind="values", label=label)
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def verdicts_html(verdicts: Sequence[Verdict]) -> str:
    """The claims and what they came to."""
    rows = []
    for one in verdicts:
        detectable = "–" if one.detectable is None else number(one.detectable, digits=1)
        rows.append(
            f'<tr><td>{escape(one.claim)}<span class="small">{escape(one.source)}</span></td><td>{badge(one.outcome)}</td>'
            f'<td>{escape(one.evidence)}</td><td class="number">{detectable}</td></tr>'
        )
    head = ("claim", "came to", "evidence", "detectable, points")
    return frame(head, f"<tbody>{''.join(rows)}</tbody>", numbers=(3,), kind="verdicts")


def problems_html(problems: Sequence[Problem]) -> str:
    """What could not be read: file, line, message."""
    rows = "".join(
        f'<tr><td><code>{escape(one.file)}</code></td><td class="number">{"–" if one.line is None else one.line}</td>'
        f"<td>{escape(one.message)}</td></tr>"
        for one in problems
    )
    return frame(("file", "line", "what is wrong"), f"<tbody>{rows}</tbody>", numbers=(1,))
