"""Score kept answers again, without a model: `python -m evals.multimodal.rescore answers_TASK.jsonl --metric vqa`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from evals.multimodal.answers import read_kept
from evals.multimodal.metrics.registry import METRICS
from pretrain.data.terminal import run_command


def show(path: Path, metric: str) -> None:
    """Print a metric's numbers over the answers of a file, and by kind of question."""
    kept = read_kept(path, metric=metric)
    print(f"{path}: {len(kept.examples):,} answers scored by {metric}")
    table = Table()
    for column in ("metric", "value", "95% over pictures"):
        table.add_column(column)
    interval = kept.interval()
    for number, (name, value) in enumerate(kept.scores.values.items()):
        table.add_row(name, f"{value:.2f}", _shown(interval) if number == 0 and interval else "")
    table.add_section()
    for kind, found in kept.by_kind().items():
        table.add_row(f"{kind} (n {found['n']:,})", f"{found['value']:.2f}", _shown(found["interval"]))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _shown(interval: Sequence[float]) -> str:
    return f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evals.multimodal.rescore", description=__doc__.split(":")[0])
    parser.add_argument("file", type=Path, help="answers_TASK.jsonl of an evaluation")
    parser.add_argument("--metric", required=True, choices=sorted(METRICS), help="to score them by")
    options = parser.parse_args(args)
    return run_command(lambda: show(options.file, options.metric))


if __name__ == "__main__":
    sys.exit(main())
