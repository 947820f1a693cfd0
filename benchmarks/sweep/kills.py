"""Kill the workers of a sweep again and again (kill -9), finish it, and count: no trial may be lost, none doubled.

python -m benchmarks.sweep.kills [--kills 10] [--real]      a stand-in for training (a minute or two), or the nano example
python -m benchmarks.sweep.kills --storage postgresql://user@host/db --out FILE     a study in a database that is empty before
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml
from optuna.trial import TrialState

from benchmarks.output import write_result
from benchmarks.processes import last_line, start
from benchmarks.sweep.config import FOLDER, SweepConfig, load_sweep
from benchmarks.sweep.study import SweepStudy, is_gone, open_storage, sqlite_url

BASE = {"rate": 0.5, "decay": 0.1, "max_steps": 60, "step_s": 0.05, "val_every": 5}
SWEEP = {
    "entry": ["benchmarks.sweep.rehearsal"],
    "space": {"rate": {"type": "float", "low": 0.01, "high": 1.0, "log": True}, "decay": [0.1, 0.5, 0.9]},
    "objective": {"metric": "val/loss", "direction": "minimize"},
    "pruner": {"kind": "median", "warmup": 10, "startup": 3},
}


def rehearsal_sweep(folder: Path, *, trials: int) -> Path:
    """A sweep of the stand-in, as files in `folder`."""
    base, path = folder / "base.yaml", folder / "rehearsal.yaml"
    base.write_text(yaml.safe_dump(BASE))
    path.write_text(yaml.safe_dump(SWEEP | {"base": str(base), "trials": trials}))
    return path


def open_study(config: SweepConfig, out: Path, storage: str | None = None) -> SweepStudy:
    return SweepStudy(config, storage=open_storage(storage or sqlite_url(out)), out=out)


def workers_of(pid: int) -> list[psutil.Process]:
    """Worker processes below a sweep's command."""
    try:
        below = psutil.Process(pid).children(recursive=False)
        return [one for one in below if "benchmarks.sweep.worker" in one.cmdline()]
    except psutil.Error:
        return []


def wait_for_work(process: subprocess.Popen[bytes], study: SweepStudy) -> list[psutil.Process]:
    """The workers that are at work on a trial, as soon as there are some; none where the sweep has ended."""
    while process.poll() is None:
        workers = [trial.user_attrs.get("worker") for trial in study.trials() if trial.state == TrialState.RUNNING]
        pids = {worker["pid"] for worker in workers if worker and not is_gone(worker)}
        if found := [one for one in workers_of(process.pid) if one.pid in pids]:
            return found
        time.sleep(0.05)
    return []


def kill_again_and_again(
    config: SweepConfig, out: Path, *, kills: int, workers: int, rng: random.Random, storage: str | None = None
) -> list[dict[str, Any]]:
    """Run the sweep and kill a worker, or every third time the whole command, at random moments; then let it finish.

    Args:
        config: the sweep.
        out: its folder.
        kills: how many.
        workers: of the sweep.
        rng: of the moments.
        storage: URL of a database; SQLite in `out` where not given.

    Returns:
        For each kill: what was killed, and how many trials were begun and ended by then.
    """
    command = [
        "benchmarks.sweep",
        str(config.path),
        "--out",
        str(out),
        "--workers",
        str(workers),
        "--trials",
        str(config.trials),
        *(["--storage", storage] if storage else []),
    ]
    study = open_study(config, out, storage)
    log, events = out.with_suffix(".log"), []
    process = start(command, log=log)
    try:
        while len(events) < kills:
            # two of three times somewhere in a trial, the third time as likely while workers start
            victims = wait_for_work(process, study) if len(events) % 3 else workers_of(process.pid)
            deadline = time.monotonic() + rng.uniform(0.0, 3.0)
            while time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.01)
            if process.poll() is not None:
                raise RuntimeError(
                    f"the sweep ended ({process.returncode}) after {len(events)} kills: {last_line(log)}"
                )
            victims = [one for one in victims if one.is_running()]
            if not victims:  # still starting, or ended meanwhile
                continue
            whole = len(events) % 3 == 2
            process.send_signal(signal.SIGKILL) if whole else rng.choice(victims).send_signal(signal.SIGKILL)
            if whole:
                process.wait()
                process = start(command, log=log)
            states = Counter(trial.state.name for trial in study.trials())
            events.append({"killed": "command" if whole else "worker", "trials": dict(states)})
            print(f"kill {len(events)}: {events[-1]}", flush=True)
        if process.wait() != 0:
            raise RuntimeError(f"the sweep did not finish: {last_line(log)}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return events


def count(config: SweepConfig, out: Path, storage: str | None = None) -> dict[str, Any]:
    """What the study holds at its end."""
    trials = open_study(config, out, storage).trials()
    settings = Counter(json.dumps(trial.params, sort_keys=True) for trial in trials)
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    return {
        "planned": config.trials,
        "trials": dict(Counter(trial.state.name for trial in trials)),
        "lost": config.trials - sum(trial.state in ended for trial in trials),
        "doubled": sum(settings.values()) - len(settings),
        "taken_up_again": sum(trial.user_attrs.get("retries", 0) for trial in trials),
    }


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep.kills", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--real", action="store_true", help="the nano example in place of the stand-in")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--storage", help="URL of a database, in place of SQLite")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sweep_kills.json"))
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = FOLDER / "nano_rate.yaml" if options.real else rehearsal_sweep(folder, trials=options.trials)
        config, out = load_sweep(str(path), trials=options.trials), folder / "sweep"
        events = kill_again_and_again(
            config,
            out,
            kills=options.kills,
            workers=options.workers,
            rng=random.Random(options.seed),
            storage=options.storage,
        )
        result = {"what": "nano example" if options.real else "stand-in", "workers": options.workers}
        result["storage"] = (options.storage or "sqlite").split(":")[0]
        result |= count(config, out, options.storage)
    result["kills"] = events
    print(json.dumps({key: value for key, value in result.items() if key != "kills"}))
    write_result(options.out, result)
    return 0 if result["lost"] == result["doubled"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
