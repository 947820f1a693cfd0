"""Ablations: `make ablations`.

python -m benchmarks.ablations                                       the objective and the decoder's size, 3 seeds
python -m benchmarks.ablations loss_choice --seeds 5                 a study of configs/benchmarks, or a .yaml
python -m benchmarks.ablations --list                                which studies there are
python -m benchmarks.ablations main --weights "CLIP (released)=/my/clip.safetensors"

Each row of a study changes one field of its base. What is in the results already is not run again, what was interrupted goes on.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.processes import alone, default_workers, slots_of_workers
from benchmarks.rows import read_rows
from benchmarks.studies.arms import Arm, Job, plan
from benchmarks.studies.assemble import register, study_section
from benchmarks.studies.config import StudyConfig
from benchmarks.studies.estimate import Estimate
from benchmarks.studies.load import FOLDER, load_study
from benchmarks.studies.runner import Places, Runner
from benchmarks.studies.runner import Progress as Told
from benchmarks.write_tables import to_markdown, verdicts_to_markdown
from evals.configs import config_names
from pretrain.data.terminal import run_command
from pretrain.types import UserError

#: What runs where nothing is named.
DEFAULT = ("objective", "decoder_ratio")
RESULTS = Path("runs/results/ablations.jsonl")
RUNS = Path("runs/ablations")


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", help=f"names of {FOLDER}, or .yaml files (default: {' '.join(DEFAULT)})")
    parser.add_argument("--seeds", type=int, default=3, help="how many: 0, 1, ... (default: 3)")
    parser.add_argument(
        "--workers", type=int, help="trainings at a time (default: GPUs; without any, 2 or as many as cores)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"file of the rows (default: {RESULTS})")
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"folder of the trainings (default: {RUNS})")
    parser.add_argument("--evals", help="columns of other evaluations, e.g. main: detection and grounding too")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="ROW=FILE", help="of a released encoder; FILE or hub"
    )
    parser.add_argument("--estimate", action="store_true", help="say how long it takes, run nothing")
    parser.add_argument("--list", action="store_true", help="name the studies")
    return parser.parse_args(args)


def read_weights(arguments: Sequence[str], studies: Sequence[StudyConfig]) -> dict[str, str]:
    """Files of released encoders by row. UserError for a file or a row that is not there."""
    found = {}
    known = [row.name for study in studies for row in study.rows if row.needs_weights]
    for argument in arguments:
        row, _, file = argument.partition("=")
        if not file or (file != "hub" and not Path(file).exists()):
            raise UserError(f"--weights {argument!r}: give ROW=FILE, a file that is there, or ROW=hub")
        if row not in known:
            raise UserError(
                f"--weights {argument!r}: no study here has such a row; there are {', '.join(known) or 'none'}"
            )
        found[row] = file
    return found


def runnable(jobs: Sequence[Job], weights: dict[str, str]) -> tuple[list[Job], list[str]]:
    """Jobs that can be run, and rows of released encoders that were given no weights."""
    without = [job.arm.label for job in jobs if job.arm.needs_weights and job.arm.label not in weights]
    return [job for job in jobs if not job.arm.needs_weights or job.arm.label in weights], list(dict.fromkeys(without))


class _Shown:
    """Progress bars of the whole and of what each worker does; on no terminal, a line for each step."""

    def __init__(self, console: Console, estimate: Estimate, num_workers: int) -> None:
        self._console, self._estimate = console, estimate
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._whole = self._bars.add_task("rows", total=estimate.num_steps, left="")
        self._workers = [self._bars.add_task("", total=None, left="", visible=False) for _ in range(num_workers)]

    def __enter__(self) -> "_Shown":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def started(self, worker: int, arm: Arm, stage: str) -> None:
        self._bars.reset(self._workers[worker], description=f"{arm.label}, seed {arm.seed}: {stage}", visible=True)

    def finished(self, arm: Arm, stage: str, seconds: float) -> None:
        self._estimate.finished(arm, stage, seconds)
        left = f"about {self._estimate.minutes_left():.0f} min left"
        self._bars.update(self._whole, advance=1, left=left)
        if not self._console.is_terminal:
            done = f"{self._estimate.num_finished} of {self._estimate.num_steps}"
            self._console.print(
                f"{done}: {arm.label}, seed {arm.seed}: {stage}, {seconds:.0f} s; {left}", highlight=False
            )


def run(options: argparse.Namespace, console: Console) -> int:
    """The whole command; returns the exit status."""
    if options.list:
        for name in config_names(FOLDER):
            console.print(f"{name}: {load_study(name).question}", highlight=False)
        return 0
    for name in ("seeds", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} must be at least 1")
    studies = [load_study(name, evals=options.evals) for name in options.studies or DEFAULT]
    weights = read_weights(options.weights, studies)
    jobs, without = runnable(plan(studies, range(options.seeds)), weights)
    num_workers = options.workers or default_workers()
    runner = Runner(Places(options.runs, options.results), weights)
    todo = runner.open_jobs(jobs)
    estimate = Estimate(todo, runner, studies, num_workers=num_workers)
    console.print(
        f"{' and '.join(study.name for study in studies)}: {len(jobs)} trainings ({options.seeds} seeds), "
        f"{len(jobs) - len(todo)} of them in {options.results} with all their rows; about {estimate.minutes_left():.0f} "
        f"minutes for the others with {num_workers} at a time",
        highlight=False,
    )
    for label in without:
        console.print(f"{label}: not run, no weights given (--weights '{label}=FILE')", highlight=False)
    if options.estimate:
        return 0
    register(studies, options.results)
    with alone(options.runs):
        _work(runner, todo, estimate, console=console, num_workers=num_workers)
    return _close(runner, studies, options, console)


def _work(runner: Runner, jobs: list[Job], estimate: Estimate, *, console: Console, num_workers: int) -> None:
    with _Shown(console, estimate, num_workers) as shown:
        runner.progress = Told(shown.started, shown.finished)
        runner.run(jobs, slots=slots_of_workers(num_workers))


def _close(runner: Runner, studies: list[StudyConfig], options: argparse.Namespace, console: Console) -> int:
    found = read_rows(options.results)
    for study in studies:
        section = study_section(study, found.rows)
        for table in section.tables:
            print(f"\n{to_markdown(table)}")
        if section.verdicts:
            print(f"\n{verdicts_to_markdown(section.verdicts)}")
    for problem in found.problems:
        console.print(f"warning: {problem}", highlight=False)
    console.print(
        f"\nrows: {options.results}\nruns and logs: {options.runs}\nreport: make report (python -m benchmarks.report)",
        highlight=False,
    )
    for line in runner.failures:
        print(f"error: {line}", file=sys.stderr)
    return 1 if runner.failures else 0


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; user errors are one line on standard error and exit status 2."""
    began = time.monotonic()
    return run_command(
        lambda: run(parse(args), Console()),
        interrupted=lambda: (
            f"interrupted after {(time.monotonic() - began) / 60:.0f} minutes; the same command goes on"
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
