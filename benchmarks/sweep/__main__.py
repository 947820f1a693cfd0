"""Search config fields for the best validation or probe: `make sweep`.

python -m benchmarks.sweep configs/benchmarks/sweeps/NAME.yaml            goes on where it was stopped or killed
python -m benchmarks.sweep NAME --workers 4 --trials 40                   more of the same study
python -m benchmarks.sweep NAME --storage postgresql://user@host/db --out /shared/sweep     on each of several machines
"""

import argparse
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import yaml
from optuna.trial import TrialState
from rich.console import Console
from rich.markup import escape

from benchmarks.processes import default_workers
from benchmarks.sweep.config import SweepConfig, load_sweep
from benchmarks.sweep.runner import Sweep
from benchmarks.sweep.space import default_setting
from benchmarks.sweep.study import SweepStudy, open_storage, sqlite_url
from benchmarks.sweep.summary import RESULTS, write_summary
from benchmarks.sweep.trial import Place, base_arguments
from pretrain.data.terminal import run_command
from pretrain.types import UserError

DEFAULT = "nano_rate"


def resolved_config(config: SweepConfig, folder: Path) -> dict[str, object]:
    """The base with the sweep's overrides and the code's defaults, from the entry point itself.

    Raises:
        UserError: it does not accept them.
    """
    command = [*config.entry, *base_arguments(config, folder), "--print_config"]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = lines[-1].removeprefix("error: ") if lines else f"exit status {done.returncode}"
        raise UserError(f"{config.path}: base with overrides: {reason}")
    return yaml.safe_load(done.stdout)


def check_leftovers(study: SweepStudy) -> None:
    """UserError where run folders lie without their study: trials must not resume from runs of other settings."""
    runs = Place(study.out, 0).runs
    if not study.study.get_trials(deepcopy=False) and runs.is_dir() and any(runs.iterdir()):
        raise UserError(
            f"{runs} holds runs, but the study has no trials: move {study.out} away, or give --out another folder"
        )


def conclude(study: SweepStudy, *, storage: str, results: Path, console: Console) -> int:
    """Write the summary, print where everything lies; 1 where every trial failed."""
    content = write_summary(study, results=results)
    states = [row["state"] for row in content["trials"]]
    counts = ", ".join(
        f"{states.count(state.name)} {state.name.lower()}" for state in TrialState if state.name in states
    )
    console.print(f"[bold]{escape(study.config.name)}[/bold]: {counts or 'no trials'} of {study.config.trials}")
    for row in content["trials"]:
        if row["state"] == "FAIL":
            console.print(f"  trial {row['number']} failed: {row['reason']}", markup=False, soft_wrap=True)
    if best := content["best"]:
        setting = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in best["params"].items()
        )
        first = content["trials"][0]
        beside = f" (defaults, trial 0: {first['value']:.4f})" if first["value"] is not None else ""
        line = (
            f"best, trial {best['number']}: {study.config.objective.title} {best['value']:.4f}{beside} with {setting}"
        )
        console.print(line, markup=False, soft_wrap=True)
    if content["importance"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in content["importance"].items())
        console.print(f"importance ({content['importance_note']}): {shares}", markup=False, soft_wrap=True)
    else:
        console.print(f"importance: {content['importance_note']}", markup=False)
    out = study.out
    place = out / "study.db" if storage.startswith("sqlite") else "the database"
    lines = [f"study: {place}; runs: {out / 'runs'}; logs: {out / 'logs'}; summary: {out / 'summary.json'}"]
    lines += [f"for the report: {results / study.config.name}.json"]
    look = study.config.name if storage.startswith("sqlite") else "--storage URL"
    for line in [*lines, f"look at it: python -m benchmarks.sweep.dashboard {look}"]:
        console.print(line, markup=False, soft_wrap=True)
    return 1 if states and set(states) == {"FAIL"} else 0


def run(options: argparse.Namespace, *, stop: threading.Event) -> int:
    console = Console(stderr=True, highlight=False)
    config = load_sweep(options.config, trials=options.trials)
    workers = default_workers() if options.workers is None else options.workers
    if workers < 1:
        raise UserError(f"--workers {workers}: give at least 1")
    out = options.out or Path("runs/sweeps") / config.name
    out.mkdir(parents=True, exist_ok=True)
    storage = options.storage or sqlite_url(out)
    study = SweepStudy(config, storage=open_storage(storage), out=out)
    check_leftovers(study)
    if study.plan is None:
        resolved = resolved_config(config, out)
        study.make_plan(default_setting(config.space, resolved, config.defaults, where=str(config.path)))
    status = Sweep(study, storage=storage, workers=workers, stop=stop, console=console).run()
    if stop.is_set():
        console.print(f"stopped; the same command goes on: {len(study.trials())} of {config.trials} trials are begun")
        write_summary(study)
        return 130
    return status or conclude(study, storage=storage, results=options.results, console=console)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", default=DEFAULT, help="name or file of a sweep")
    parser.add_argument(
        "--workers", type=int, help="processes, each on cores or a GPU of its own (default: GPUs; without any, 2)"
    )
    parser.add_argument("--trials", type=int, help="distinct settings in all; the file's where not given")
    parser.add_argument("--storage", help="URL of a database; SQLite in the sweep's folder where not given")
    parser.add_argument("--out", type=Path, help="folder of the sweep; runs/sweeps/NAME where not given")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"folder of the summary (default: {RESULTS})")
    return parser


def main(args: Sequence[str] | None = None) -> int:
    options, stop = build_parser().parse_args(args), threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        return run_command(lambda: run(options, stop=stop))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
