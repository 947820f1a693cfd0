"""What the report is made of: providers by name, each asked once, none able to take the page down."""

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from benchmarks.tables import Figure, Problem, Section, Table
from pretrain.types import UserError

Provider = Callable[[Path], tuple[list[Section], list[Problem]]]
#: Modules with a function `sections(results)`, in the order of the page.
PROVIDERS = ("benchmarks.studies.assemble", "benchmarks.sweep.report", "benchmarks.scaling.report")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
Named = TypeVar("Named", Section, Table, Figure)


def ask(name: str, provider: Provider | None, *, results: Path) -> tuple[list[Section], list[Problem]]:
    """A provider's sections; what it raises is a problem that names it, the exception's type and its message.

    Args:
        name: of the module that is imported where `provider` is None.
        provider: the function itself.
        results: folder of results.
    """
    try:
        provider = provider or importlib.import_module(name).sections
        sections, problems = provider(results)
        return list(sections), list(problems)
    except UserError as error:
        return [], [Problem(name, None, str(error))]
    except Exception as error:  # noqa: BLE001  one provider's fault must not hide what the others have; it is shown first on the page
        return [], [Problem(name, None, f"gave no sections: {type(error).__name__}: {error}")]


def _named(things: Iterable[Named], taken: set[str], problems: list[Problem], *, what: str) -> list[Named]:
    """The same with names that can be file names and are there once: another one's gets a number, which is said."""
    kept: list[Named] = []
    for thing in things:
        name = thing.name if _NAME.fullmatch(thing.name) else re.sub(r"[^a-z0-9]+", "_", thing.name.lower()).strip("_")
        name = name or what
        if name in taken:
            name = next(f"{name}_{n}" for n in range(2, len(taken) + 3) if f"{name}_{n}" not in taken)
        if name != thing.name:
            problems.append(
                Problem(thing.name, None, f"this name of a {what} is taken or no file name; shown as {name!r}")
            )
        taken.add(name)
        kept.append(replace(thing, name=name))
    return kept


def _whole(table: Table, problems: list[Problem]) -> bool:
    wrong = next((row for row in table.rows if len(row.cells) != len(table.columns)), None)
    if wrong is not None:
        message = (
            f"row {wrong.label!r} has {len(wrong.cells)} cells for {len(table.columns)} columns; the table is left out"
        )
        problems.append(Problem(table.name, None, message))
    return wrong is None


def checked(sections: Sequence[Section]) -> tuple[list[Section], list[Problem]]:
    """Sections whose names, and those of their tables and figures, differ over the whole page; without ragged tables."""
    problems: list[Problem] = []
    # the page's own anchors are taken
    names, tables, figures = {"problems", "claims", "environment"}, set[str](), set[str]()
    return [
        replace(
            section,
            tables=tuple(_named([t for t in section.tables if _whole(t, problems)], tables, problems, what="table")),
            figures=tuple(_named(section.figures, figures, problems, what="figure")),
        )
        for section in _named(sections, names, problems, what="section")
    ], problems
