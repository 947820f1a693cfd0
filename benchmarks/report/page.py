"""The report as one HTML page that holds all it needs: no script, no server, nothing from the network."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from benchmarks.report.html_tables import SIGNS, badge, frame, problems_html, table_html, verdicts_html
from benchmarks.tables import Figure, Problem, Section

TITLE = "AIMv2 suite: report of results"
ABOUT = (
    "Every table, claim and picture that the committed results hold, made from files alone by `make report`: nothing is run. "
    "A number opens the rows it was made from: file, line, command, value, seed (tables/*.csv lists them too). "
    "Numbers are mean ± deviation over n seeds, in percent unless a column names another unit; in brackets stands the 95% "
    "interval of the mean, for one seed that over what was scored; Δ is the difference to the table's base, paired by seed, "
    "with its 95% interval. Published numbers stand apart, with their source: they are of other models, data and budgets. "
    "Scenes are generated pictures: numbers on them are synthetic."
)
#: No source of anything but this file itself; a browser refuses what an embedded picture might ask for.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def _figure(figure: Figure) -> str:
    """A picture inside the page. As an image, so that ids and styles of several SVGs do not meet, and no script in one runs."""
    data = base64.b64encode(figure.content).decode()
    caption = escape(figure.caption)
    return (
        f'<figure id="figure-{figure.name}"><img alt="{caption}" src="data:{figure.media_type};base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _contents(sections: Sequence[Section], problems: Sequence[Problem]) -> str:
    items = [f'<li><a href="#problems">Problems: {len(problems)}</a></li>'] if problems else []
    if any(section.verdicts for section in sections):
        items.append('<li><a href="#claims">Claims at a glance</a></li>')
    for section in sections:
        inner = "".join(f'<li><a href="#table-{table.name}">{escape(table.title)}</a></li>' for table in section.tables)
        items.append(
            f'<li><a href="#{section.name}">{escape(section.title)}</a>{f"<ul>{inner}</ul>" if inner else ""}</li>'
        )
    items.append('<li><a href="#environment">Environment</a></li>')
    return f'<nav aria-label="contents"><b>Contents</b><ul>{"".join(items)}</ul></nav>'


def _claims(sections: Sequence[Section]) -> str:
    """How many claims came to what, by section; the claims themselves are in the sections."""
    rows = []
    for section in sections:
        if section.verdicts:
            counts = Counter(verdict.outcome for verdict in section.verdicts)
            cells = "".join(f'<td class="number">{counts[outcome] or "–"}</td>' for outcome in SIGNS)
            rows.append(f'<tr><th scope="row"><a href="#{section.name}">{escape(section.title)}</a></th>{cells}</tr>')
    if not rows:
        return ""
    return (
        '<section><h2 id="claims">Claims at a glance</h2>'
        "<p>Each was stated, with its direction or margin, before its runs; n is small, and intervals decide.</p>"
        + frame(["", *map(badge, SIGNS)], f"<tbody>{''.join(rows)}</tbody>", numbers=range(1, len(SIGNS) + 1))
        + "</section>"
    )


def _section(section: Section) -> str:
    text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in section.text)
    verdicts = f"<h3>Claims</h3>{verdicts_html(section.verdicts)}" if section.verdicts else ""
    tables = "".join(map(table_html, section.tables))
    figures = "".join(map(_figure, section.figures))
    parts = f"{figures}{tables}{verdicts}" if section.figures_first else f"{tables}{verdicts}{figures}"
    return f'<section><h2 id="{section.name}">{escape(section.title)}</h2>{text}{parts}</section>'


def _environment(facts: Mapping[str, str]) -> str:
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    about = "Where this page was made; a row may have been made elsewhere."
    return f'<section><h2 id="environment">Environment</h2><p>{about}</p><dl class="facts">{lines}</dl></section>'


def page(sections: Sequence[Section], problems: Sequence[Problem], *, facts: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        sections: in their order, their names and those of their tables and figures differing.
        problems: shown first.
        facts: the environment, as `environment.facts` gives it.
    """
    style = Path(__file__).with_name("style.css").read_text()
    about = escape(ABOUT).replace("`make report`", "<code>make report</code>")
    first = ""
    if problems:
        first = (
            f'<section class="problems"><h2 id="problems">Problems: {len(problems)}</h2>'
            "<p>What follows was made without these.</p>" + problems_html(problems) + "</section>"
        )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<style>\n{style}</style></head>\n<body><main><h1>{TITLE}</h1><p>{about}</p>{first}"
        + _contents(sections, problems)
        + _claims(sections)
        + "\n".join(map(_section, sections))
        + _environment(facts)
        + "</main></body></html>\n"
    )
