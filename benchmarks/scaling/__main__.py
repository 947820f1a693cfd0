"""Scaling: sizes x budgets, a trunk under a half cosine for each size and a cool-down for each budget (paper, section 3.1).

python -m benchmarks.scaling configs/benchmarks/scaling/NAME.yaml [--seeds N] [--workers N] [--results FILE] [--runs DIR] [--plan]
"""

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NoReturn

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from benchmarks.processes import alone, default_workers
from benchmarks.scaling.config import ScalingConfig, load_scaling
from benchmarks.scaling.plan import Trunk, estimate_s, make_plan
from benchmarks.scaling.rows import portable, read_rows
from benchmarks.scaling.runner import Runner, left_to_do
from pretrain.data.terminal import run_command, summary_grid
from pretrain.types import UserError

RUNS = Path("runs/scaling")
RESULTS = Path("runs/results/scaling")


def speeds_of(config: ScalingConfig, results: Path) -> dict[str, float | None]:
    """Images per second by size: the median of the study's rows, else what the config says."""
    speeds: dict[str, float | None] = {}
    rows = [one.row for one in read_rows(results)[0]]
    for size in config.sizes:
        measured = [row.samples_seen / row.seconds for row in rows if row.size == size.name and row.seconds]
        speeds[size.name] = median(measured) if measured else size.imgs_per_s
    return speeds


def show_minutes(seconds: float | None) -> str:
    if seconds is None:
        return "no estimate: a size has neither rows nor imgs_per_s"
    return f"about {seconds / 60:.0f} min" if seconds < 2 * 3600 else f"about {seconds / 3600:.1f} h"


def print_plan(
    console: Console, plan: list[Trunk], *, speeds: Mapping[str, float | None], done: int, workers: int
) -> None:
    """What is left to do, and how long it will take."""
    table = Table("size", "seed", "trunk", "budgets left", title_justify="left")
    for trunk in plan:
        budgets = ", ".join(f"{one.budget:,}" for one in trunk.branches)
        table.add_row(trunk.job.size, str(trunk.job.seed), f"{trunk.job.steps:,} steps of {trunk.job.batch}", budgets)
    if plan:
        console.print(table)
    count = sum(len(trunk.branches) for trunk in plan)
    estimate = (
        f"; {show_minutes(estimate_s(plan, speeds=speeds, workers=workers))} with {workers} workers" if plan else ""
    )
    console.print(f"{count} rows to make, {done} are there{estimate}", highlight=False)


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("study", help="name in configs/benchmarks/scaling, or a .yaml file")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    parser.add_argument(
        "--workers", type=int, default=default_workers(), help="runs side by side (default: GPUs; without any, 2)"
    )
    parser.add_argument(
        "--results", type=Path, default=None, help=f"file of rows; {RESULTS}/NAME.jsonl where not given"
    )
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder; the runs lie in DIR/NAME")
    parser.add_argument("--plan", action="store_true", help="print the estimate and all commands, and run nothing")
    options = parser.parse_args(args)
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: give at least 1")
    return options


def _finish(console: Console, runner: Runner, *, results: Path, folder: Path, missing: int) -> int:
    table = summary_grid()
    table.add_row("rows", f"{results} ({runner.num_added} added, {missing} missing)")
    table.add_row("runs", f"{folder}: exports, metrics; output in {folder / 'logs'}")
    table.add_row("report", "make report")
    for run, why in runner.failures.items():
        table.add_row("failed", f"{run.name}: {why}")
    console.print(
        Panel(table, title="scaling is done" if not missing else "scaling is not complete", title_align="left")
    )
    return 1 if missing else 0


def _terminate(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def run(options: argparse.Namespace, console: Console) -> int:
    """The command; returns its exit status."""
    config = load_scaling(options.study)
    folder = options.runs / config.name
    results = options.results or RESULTS / f"{config.name}.jsonl"
    plan = make_plan(config, seeds=options.seeds, folder=folder)
    rows, problems = read_rows(results)
    for problem in problems:
        console.print(f"warning: {problem}", highlight=False)
    done = {one.row.key() for one in rows}
    left, total = left_to_do(plan, done), sum(len(trunk.branches) for trunk in plan)
    here = total - sum(len(trunk.branches) for trunk in left)
    console.print(f"[bold]{config.title}[/bold]")
    print_plan(console, left, speeds=speeds_of(config, results), done=here, workers=options.workers)
    if options.plan:
        for trunk in plan:
            for job in (trunk.job, *trunk.branches):
                print(portable(job.arguments))
        return 0
    with alone(folder):
        runner = Runner(
            plan, study=config.name, results=results, logs=folder / "logs", workers=options.workers, console=console
        )
        runner.run()
    done = {one.row.key() for one in read_rows(results)[0]}
    missing = sum(len(trunk.branches) for trunk in left_to_do(plan, done))
    return _finish(console, runner, results=results, folder=folder, missing=missing)


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; user errors are one line on standard error and exit status 2."""
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return run_command(
            lambda: run(_parse(args), Console()),
            interrupted=lambda: "stopped; the runs have saved: give the same command again to go on",
        )
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
