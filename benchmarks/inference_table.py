"""The table of an inference benchmark, for a terminal and for a README."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = ("encoder", "pixels", "tokens", "params", "GFLOP", "latency ms", "x", "images/s", "x", "peak MiB", "rounds")


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text; bests with medians in brackets."""
    peak = row["peak_mib"]
    return [
        row["name"],
        f"{row['img_size']}",
        f"{row['tokens']:,}",
        f"{row['params'] / 1e6:.1f} M",
        f"{row['flops'] / 1e9:.1f}",
        f"{row['latency_ms']:.4g} ({row['latency_ms_median']:.4g})",
        f"{row['latency_ms_ratio']:.2f}",
        f"{row['imgs_per_s']:.3g} ({row['imgs_per_s_median']:.3g})",
        f"{row['imgs_per_s_ratio']:.2f}",
        "not measured" if peak is None else f"{peak:.3g}",
        f"{row['rounds']}",
    ]


def caption(content: dict[str, Any]) -> str:
    """What the table's numbers were measured on, in one line."""
    compiled = ", compiled blocks" if content["compiled"] else ""
    return (
        f"{content['device']}, {content['threads']} threads, torch {content['torch']}, {content['precision']}{compiled}; "
        f"latency of 1 picture, images/s in batches of {content['batch_size']}, best (median) of the rounds; "
        f"x: against {content['rows'][0]['against']} at the same pixels; peak: memory of one picture's pass above the weights"
    )


def markdown(content: dict[str, Any]) -> str:
    """The table for a README."""
    lines = [
        caption(content) + ".",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * (len(COLUMNS) - 1)}",
        *(f"| {' | '.join(cells(row))} |" for row in content["rows"]),
    ]
    return "\n".join(lines) + "\n"


def show(content: dict[str, Any]) -> None:
    table = Table(title="Cost of inference", caption=caption(content))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "encoder" else "right")
    for row in content["rows"]:
        table.add_row(*cells(row))
    Console(width=140 if not sys.stdout.isatty() else None).print(table)
