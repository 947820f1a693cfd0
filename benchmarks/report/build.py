"""Puts sections together and writes them: index.html, tables/, figures/."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks import write_tables
from benchmarks.report import gallery
from benchmarks.report.environment import facts
from benchmarks.report.page import page
from benchmarks.report.providers import PROVIDERS, Provider, ask, checked
from benchmarks.tables import Problem, Section
from pretrain.files import write_atomically

#: Of the files that a report has written beside its page.
MANIFEST = "files.json"
_SUFFIX = {"image/svg+xml": "svg", "image/png": "png"}


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Attributes:
        sections: in their order.
        problems: shown in front of them.
    """

    sections: list[Section]
    problems: list[Problem]


def _files_shown(sections: Sequence[Section]) -> frozenset[str]:
    """Names of the files whose rows are in tables."""
    return frozenset(
        Path(trace.file).name
        for section in sections
        for table in section.tables
        for row in table.rows
        for cell in row.cells
        for trace in cell.traces
    )


def collect_all(folders: Sequence[Path], *, runs: Path) -> Report:
    """Reports of several folders of results, one behind the other: never one table of both.

    Args:
        folders: of results; names and titles of all but the last are marked with the folder.
        runs: folder of runs, for curves and pictures; shown once.
    """
    sections: list[Section] = []
    problems: list[Problem] = []
    for number, folder in enumerate(folders, 1):
        is_last = number == len(folders)
        one = collect(folder, runs=runs if is_last else Path("no-such-folder"))
        sections += one.sections if is_last else [_marked(section, folder) for section in one.sections]
        problems += one.problems
    return Report(sections, list(dict.fromkeys(problems)))


def _marked(section: Section, folder: Path) -> Section:
    mark = re.sub(r"[^a-z0-9]+", "_", folder.as_posix().lower()).strip("_")
    return replace(
        section,
        name=f"{mark}_{section.name}",
        title=f"{section.title} ({folder.as_posix()})",
        tables=tuple(replace(table, name=f"{mark}_{table.name}") for table in section.tables),
        figures=tuple(replace(figure, name=f"{mark}_{figure.name}") for figure in section.figures),
    )


def collect(results: Path, *, runs: Path, providers: Mapping[str, Provider | None] | None = None) -> Report:
    """Asks every provider, then the gallery for what they have not shown.

    Args:
        results: folder of results.
        runs: folder of runs, for curves and pictures of those that are there.
        providers: functions by name, None for "import the module of this name"; PROVIDERS where not given.
    """
    sections: list[Section] = []
    problems: list[Problem] = []
    if not results.is_dir():
        problems.append(
            Problem(str(results), None, "there is no such folder; give the folder of results with --results")
        )
    for name, provider in (providers if providers is not None else dict.fromkeys(PROVIDERS)).items():
        found, wrong = ask(name, provider, results=results)
        sections += found
        problems += wrong
    show = partial(gallery.sections, runs=runs, shown=_files_shown(sections))
    found, wrong = ask("benchmarks.report.gallery", show, results=results)
    sections, misnamed = checked([*sections, *found])
    # two providers may read one file: what is wrong with it is said once
    return Report(sections, list(dict.fromkeys([*problems, *wrong, *misnamed])))


def _write_tables(report: Report, folder: Path) -> int:
    tables = [table for section in report.sections for table in section.tables]
    for table in tables:
        write_atomically(folder / f"{table.name}.md", write_tables.to_markdown(table).encode())
        write_atomically(folder / f"{table.name}.tex", write_tables.to_latex(table).encode())
        write_atomically(folder / f"{table.name}.csv", write_tables.to_csv(table).encode())
    for section in report.sections:
        if section.verdicts:
            name = f"{section.name}_claims"
            write_atomically(folder / f"{name}.md", write_tables.verdicts_to_markdown(section.verdicts).encode())
            write_atomically(folder / f"{name}.tex", write_tables.verdicts_to_latex(section.verdicts).encode())
            write_atomically(folder / f"{name}.csv", write_tables.verdicts_to_csv(section.verdicts).encode())
    return len(tables)


def _names(report: Report) -> set[str]:
    """Stems of all files of a report."""
    tables = {table.name for section in report.sections for table in section.tables}
    claims = {f"{section.name}_claims" for section in report.sections if section.verdicts}
    return tables | claims | {figure.name for section in report.sections for figure in section.figures}


def write(report: Report, out: Path, *, results: Sequence[Path]) -> str:
    """Writes all files; what an earlier report wrote to tables/ and figures/ and this one does not is removed, and nothing else.

    Returns:
        a line that says what was written.
    """
    tables, figures = out / "tables", out / "figures"
    before = out / MANIFEST
    for name in json.loads(before.read_text()) if before.is_file() else []:
        (out / name).unlink(missing_ok=True)
    count = _write_tables(report, tables)
    shown = [figure for section in report.sections for figure in section.figures]
    for figure in shown:
        write_atomically(figures / f"{figure.name}.{_SUFFIX[figure.media_type]}", figure.content)
    written = sorted(path.relative_to(out).as_posix() for folder in (tables, figures) for path in folder.glob("*"))
    ours = [name for name in written if Path(name).stem in _names(report)]
    write_atomically(before, json.dumps(ours, indent=1).encode())
    write_atomically(out / "index.html", page(report.sections, report.problems, facts=facts(results)).encode())
    claims = sum(len(section.verdicts) for section in report.sections)
    return f"{count} tables, {claims} claims, {len(shown)} figures"
