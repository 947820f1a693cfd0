"""What commands show, and how they end."""

import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from pretrain.types import UserError


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def output_console() -> Console:
    """Of standard output. A log has no edge that a long path would have to be broken at."""
    return Console(width=None if sys.stdout.isatty() else 1000)


def summary_grid() -> Table:
    """Two columns without lines, names and what they name: no path loses its end."""
    return Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))


def show_table(title: str, rows: dict[str, str]) -> None:
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    output_console().print(table)


def _kept() -> str:
    return "interrupted; what is finished is kept, the same command goes on"


def run_command(function: Callable[[], int | None], *, interrupted: Callable[[], str] = _kept) -> int:
    """Exit status of a command that can be interrupted; a user's error is one line.

    Args:
        function: the command.
        interrupted: what is said when it was.
    """
    try:
        return function() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted(), file=sys.stderr)
        return 130
