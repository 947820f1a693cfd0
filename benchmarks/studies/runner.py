"""Running jobs: train an arm with the real entry point, evaluate it with the real commands, keep its rows.

Each step can be killed. What is finished is known from files alone: an arm's summary.json, a job's rows in the results.
What is half done goes on from its checkpoint or is made again.
"""

import json
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import yaml

from benchmarks.commands import fill_in
from benchmarks.processes import Slot, last_line, start
from benchmarks.rows import read_rows
from benchmarks.studies.arms import Arm, Job, eval_key
from benchmarks.studies.budgets import budget
from benchmarks.studies.config import EvalConfig
from benchmarks.studies.ledger import add_job, finished_jobs
from evals.results import EvalResult, read, source_hash
from pretrain.files import write_atomically
from pretrain.run import checkpoint_path
from pretrain.types import UserError

#: The first stage of an arm; the others are its evaluations.
PRETRAINING = "pre-training"
#: Seconds that a child has for its checkpoint when the runner is interrupted.
_GRACE_S = 60


@dataclass(frozen=True)
class Places:
    """Where things lie.

    Attributes:
        runs: folder of the arms.
        results: file of the rows.
    """

    runs: Path
    results: Path


@dataclass
class Progress:
    """What the runner tells whoever shows it.

    Attributes:
        started: called with a worker's number, the arm and the stage: "pre-training" or an evaluation's name.
        finished: called with the arm, the stage and its seconds.
    """

    started: Callable[[int, Arm, str], None] = lambda worker, arm, stage: None
    finished: Callable[[Arm, str, float], None] = lambda arm, stage, seconds: None


class Stopped(Exception):
    """The runner was interrupted; nothing is wrong with the child."""


@dataclass
class Runner:
    """Works through jobs with several workers.

    Attributes:
        places: where things lie.
        weights: spec's file of released encoders, by spec.
        progress: told what happens.
        failures: a line for each arm that could not be finished.
    """

    places: Places
    weights: Mapping[str, str] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._guard, self._budget_guard = threading.Lock(), threading.Lock()

    def open_jobs(self, jobs: Sequence[Job]) -> list[Job]:
        """Jobs with those of their evaluations that have no rows yet; jobs without any are left out."""
        done = finished_jobs(one.row for one in read_rows(self.places.results).rows)

        def is_open(arm: Arm, name: str, one: EvalConfig) -> bool:
            return (arm.key, name, eval_key(one), arm.seed) not in done

        left = [
            replace(job, evals={name: one for name, one in job.evals.items() if is_open(job.arm, name, one)})
            for job in jobs
        ]
        return [job for job in left if job.evals]

    def run(self, jobs: Sequence[Job], *, slots: Sequence[Slot]) -> None:
        """Finish all jobs, one worker for each slot. A job that fails is noted, the others go on.

        Raises:
            KeyboardInterrupt: after the children have written their checkpoints.
        """
        queue: Queue[Job] = Queue()
        for job in jobs:
            queue.put(job)
        workers = [
            threading.Thread(target=self._work, args=(number, queue, slot), daemon=True)
            for number, slot in enumerate(slots)
        ]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive():
                    worker.join(0.2)
        except KeyboardInterrupt:
            self.stop()
            for worker in workers:
                worker.join(_GRACE_S)
            raise

    def stop(self) -> None:
        """Let children write their checkpoints and end."""
        self._stop.set()
        with self._guard:
            for child in self._children:
                child.terminate()

    def _work(self, worker: int, queue: "Queue[Job]", slot: Slot) -> None:
        while not self._stop.is_set():
            try:
                job = queue.get_nowait()
            except Empty:
                return
            try:
                self._finish(worker, job, slot)
            except Stopped:
                return
            except (UserError, OSError) as error:
                self.failures.append(f"{job.arm.label}, seed {job.arm.seed}: {error}")
            except Exception as error:  # noqa: BLE001  it must not take the worker's other jobs with it; it is shown, status 1
                self.failures.append(f"{job.arm.label}, seed {job.arm.seed}: {type(error).__name__}: {error}")

    def _finish(self, worker: int, job: Job, slot: Slot) -> None:
        arm, folder = job.arm, self.places.runs / job.arm.name
        if arm.config is not None:
            self._pretrain(worker, arm, folder, slot)
            encoder = folder.as_posix()
        else:
            encoder = self._released(arm)
        for name, one in job.evals.items():
            self._evaluate(worker, arm, name, one, encoder=encoder, slot=slot)
        # what only a run that goes on would need
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    def _released(self, arm: Arm) -> str:
        if not arm.needs_weights:
            return str(arm.frozen)
        file = self.weights.get(arm.label)
        if file is None:
            raise UserError(f"no weights: give --weights '{arm.label}=FILE'")
        return str(arm.frozen) if file == "hub" else f"{arm.frozen}@{file}"

    def _pretrain(self, worker: int, arm: Arm, folder: Path, slot: Slot) -> None:
        if (folder / "summary.json").is_file():
            return
        self.progress.started(worker, arm, PRETRAINING)
        began = time.monotonic()
        with self._budget_guard:  # two arms of one budget measure it once
            samples = budget(arm, folder=self.places.runs, cpus=slot.cpus, gpu=slot.gpu)
        self.places.runs.mkdir(parents=True, exist_ok=True)
        file = self.places.runs / f"{arm.name}.yaml"
        header = f"# {arm.label}: {arm.base} with {json.dumps(dict(arm.change))}\n"
        write_atomically(file, (header + yaml.safe_dump(dict(arm.config or {}), sort_keys=False)).encode())
        command = [
            *arm.entry,
            "--config",
            file.as_posix(),
            "--runs",
            self.places.runs.as_posix(),
            "--name",
            arm.name,
        ]
        command += ["--seed_everything", str(arm.seed), "--max_samples", str(samples)]
        if not (folder / "code.txt").is_file():
            write_atomically(folder / "code.txt", source_hash("pretrain").encode())
        write_atomically(folder / "command.txt", f"python -m {shlex.join(command)}\n".encode())
        if checkpoint_path(folder).is_file():
            command += ["--ckpt_path", "last"]
        self._call(command, folder / "pretrain.log", slot)
        _add_seconds(folder / "seconds.json", PRETRAINING, time.monotonic() - began)
        self.progress.finished(arm, PRETRAINING, time.monotonic() - began)

    def _evaluate(self, worker: int, arm: Arm, name: str, one: EvalConfig, *, encoder: str, slot: Slot) -> None:
        self.progress.started(worker, arm, name)
        began = time.monotonic()
        folder = self.places.runs / arm.name
        out, rows = folder / "evals" / name, folder / f"rows-{name}.jsonl"
        command = [*fill_in(one.command, run=encoder, seed=arm.seed, out=out), "--results", rows.as_posix()]
        self._call(command, folder / f"{name}.log", slot)
        seconds = time.monotonic() - began
        made = _last_of_each(read(rows))
        if not made:
            raise UserError(f"evals.{name}: the command has made no row; see {folder / f'{name}.log'}")
        add_job(made, self.places.results, about=self._about(arm, name, one, command, seconds))
        shutil.rmtree(out / "features", ignore_errors=True)  # far larger than all else
        self.progress.finished(arm, name, seconds)

    def _about(self, arm: Arm, name: str, one: EvalConfig, command: Sequence[str], seconds: float) -> dict[str, Any]:
        folder = self.places.runs / arm.name
        about = {
            "arm": arm.key,
            "arm_label": arm.label,
            "eval": name,
            "eval_key": eval_key(one),
            "eval_s": round(seconds, 1),
            "base": arm.base,
            "change": dict(arm.change),
            "budget": "flops" if arm.base_config else "samples",
            "whole_command": f"python -m {shlex.join(command)}",
        }
        if arm.config is not None:
            summary = json.loads((folder / "summary.json").read_text())
            about["pretrain_command"] = (folder / "command.txt").read_text().strip()
            about["pretrain_code"] = (folder / "code.txt").read_text()
            about["pretrain_s"] = _seconds(folder / "seconds.json").get(PRETRAINING)
            about["val"] = summary.get("val", {})
        return about

    def _call(self, command: Sequence[str], log: Path, slot: Slot) -> None:
        """Run to its end. UserError where it fails, Stopped where the runner was interrupted."""
        with self._guard:
            if self._stop.is_set():
                raise Stopped
            child = start(command, log=log, cpus=slot.cpus, gpu=slot.gpu)
            self._children.add(child)
        try:
            status = child.wait()
        finally:
            with self._guard:
                self._children.discard(child)
        if self._stop.is_set():
            raise Stopped
        if status != 0:
            raise UserError(
                f"{command[0]} {command[1]} ended with status {status}: {last_line(log)} (all of it in {log})"
            )


def _last_of_each(rows: Sequence[EvalResult]) -> list[EvalResult]:
    """The latest row of each number: an evaluation that was made again, of changed code, leaves the earlier ones in its file."""
    return list({(row.task, row.dataset, row.split, row.metric): row for row in rows}.values())


def _seconds(path: Path) -> dict[str, float]:
    """Seconds by stage; a stage that was interrupted or killed has none of the lost time."""
    return json.loads(path.read_text()) if path.is_file() else {}


def _add_seconds(path: Path, stage: str, seconds: float) -> None:
    known = _seconds(path)
    write_atomically(path, json.dumps(known | {stage: round(known.get(stage, 0.0) + seconds, 1)}).encode())
