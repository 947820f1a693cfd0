"""One trial: the real entry point as a child process, watched, pruned, resumed; then its objective."""

import csv
import io
import json
import math
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.commands import arguments, fill_in
from benchmarks.processes import last_line, start
from benchmarks.studies.arms import resolve
from benchmarks.sweep.config import SweepConfig
from benchmarks.sweep.lease import Lease
from benchmarks.sweep.study import Claim, SweepStudy
from evals.results import find, read
from pretrain.files import write_atomically
from pretrain.types import UserError

POLL_S = 0.5
#: After this long a child that was asked to stop is killed; it has a checkpoint all the same.
STOP_S = 120.0


@dataclass(frozen=True)
class Place:
    """Where a trial's things lie.

    Attributes:
        out: the sweep's folder.
        number: the trial's.
    """

    out: Path
    number: int

    @property
    def name(self) -> str:
        return f"trial-{self.number:04d}"

    @property
    def runs(self) -> Path:
        return self.out / "runs"

    @property
    def run(self) -> Path:
        return self.runs / self.name

    @property
    def log(self) -> Path:
        return self.out / "logs" / f"{self.name}.log"

    @property
    def setting(self) -> Path:
        return self.out / "settings" / f"{self.name}.json"

    @property
    def results(self) -> Path:
        return self.out / "evals" / self.name / "results.jsonl"


class Stopped(Exception):
    """The worker was asked to stop, or the trial is another's: it stays as it is."""


class Failed(Exception):
    """The child failed; the message is one line."""


class Pruned(Exception):
    """The trial is given up; the message says why."""


def base_arguments(config: SweepConfig, folder: Path) -> list[str]:
    """The base and the fields that every trial sets, as arguments.

    A mapping takes the place of the base's as a whole, where a command line would merge both: then the base is written
    to `folder` with it.
    """
    whole = {name: value for name, value in config.overrides.items() if isinstance(value, Mapping)}
    single = {name: value for name, value in config.overrides.items() if name not in whole}
    file = config.base
    if whole:
        file = folder / "base.yaml"
        write_atomically(file, yaml.safe_dump(resolve(yaml.safe_load(config.base.read_text()), whole)).encode())
    return ["--config", str(file), *arguments(single)]


def fit_command(config: SweepConfig, params: dict[str, Any], place: Place) -> list[str]:
    """The run's command behind `python -m`; from its checkpoint where there is one."""
    command = [*config.entry, *base_arguments(config, place.out), *arguments(params)]
    command += ["--name", place.name, "--runs", str(place.runs)]
    return command + (["--ckpt_path", "last"] if (place.run / "checkpoints" / "last.ckpt").is_file() else [])


def read_validation(run: Path, metric: str) -> list[tuple[int, float]]:
    """(step, value) of every validation that a run has written, of its earlier attempts too, by step.

    A line that is not whole yet, and one without the metric, is left for the next look.
    """
    found: dict[int, float] = {}
    for path in [*sorted(run.glob("metrics_*.csv")), run / "metrics.csv"]:
        if not path.is_file():
            continue
        text = path.read_text()
        for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])):
            try:
                found[int(row["step"])] = float(row[metric])
            except (KeyError, TypeError, ValueError):
                continue
    return sorted(found.items())


class TrialRunner:
    """Works on one claimed trial to its end.

    Args:
        study: that it is of.
        claim: of this worker.
        cpus: cores for the children.
        stop: set when the worker is to end.
    """

    def __init__(self, study: SweepStudy, claim: Claim, *, cpus: Sequence[int], stop: threading.Event) -> None:
        self.study, self.config, self.trial = study, study.config, claim.trial
        self._cpus, self._stop = cpus, stop
        self.place = Place(study.out, claim.trial.number)

    def run(self) -> None:
        """Ends the trial in the study, or leaves it as it is where the worker is to stop."""
        began = time.monotonic()
        with Lease(self.study, self.trial) as self._lease:
            try:
                if (reason := self.trial.user_attrs.get("prune")) is not None:  # its worker was killed in between
                    raise Pruned(reason)
                self._check_folder()
                if not (self.place.run / "summary.json").is_file():
                    self._fit()
                value = self._objective()
                if not math.isfinite(value):
                    raise Pruned(f"diverged: {self.config.objective.title} is {value}")
                self._own(began)
                self.study.complete(self.trial, value)
            except Pruned as pruned:
                self._own(began)
                self.study.prune(self.trial, str(pruned))
            except Failed as failed:
                self._own(began)
                self.study.fail(self.trial, str(failed))

    def _own(self, began: float) -> None:
        """Raises Stopped where another worker has the trial by now; keeps the seconds of this attempt."""
        attributes = self.study.storage.get_trial(self.trial._trial_id).user_attrs
        if self._lease.is_lost.is_set() or attributes.get("worker") != self.study.worker:
            raise Stopped
        self.trial.set_user_attr("seconds", attributes.get("seconds", 0.0) + round(time.monotonic() - began, 1))

    def _check_folder(self) -> None:
        """A run folder of the same name with another setting is of a study that was deleted: never resume from it."""
        setting, path = {"overrides": dict(self.config.overrides), "params": self.trial.params}, self.place.setting
        content = (json.dumps(setting, indent=2, sort_keys=True) + "\n").encode()
        is_ours = path.read_bytes() == content if path.is_file() else not self.place.run.exists()
        if not is_ours:
            raise Failed(f"{self.place.run} holds a run of another study: move {self.study.out} away")
        write_atomically(path, content)

    def _fit(self) -> None:
        attempts = 0
        while True:
            child = start(fit_command(self.config, self.trial.params, self.place), log=self.place.log, cpus=self._cpus)
            try:
                status = self._watch(child, report=True)
            finally:
                stop_child(child)
            if status == 0:
                self._report()
                return
            if status > 0 and status != 130:
                raise Failed(f"exit status {status}: {last_line(self.place.log)}")
            attempts += 1  # killed from outside: its checkpoint is whole
            if attempts > self.config.retries:
                raise Failed(f"its run was killed {attempts} times: {last_line(self.place.log)}")

    def _watch(self, child: subprocess.Popen[bytes], *, report: bool) -> int:
        """Wait for a child. Raises Stopped or Pruned; the child is stopped by whoever calls."""
        while child.poll() is None:
            if self._stop.is_set() or self._lease.is_lost.is_set():
                raise Stopped
            if report:
                self._report()
            self._stop.wait(POLL_S)
        return child.returncode

    def _report(self) -> None:
        """Hand on new validations. Raises Pruned where the trial is not worth going on with."""
        # the study's direction is the objective's: a loss beside an accuracy is reported with its sign turned
        sign = 1.0 if self.config.monitor_direction == self.config.objective.direction else -1.0
        known = self.study.storage.get_trial(self.trial._trial_id).intermediate_values
        for step, value in read_validation(self.place.run, self.config.monitor):
            if step in known:
                continue
            if not math.isfinite(value):
                self._prune(f"diverged: {self.config.monitor} is {value} at step {step}")
            self.trial.report(sign * value, step)
            if self.trial.should_prune():
                self._prune(f"{self.config.monitor} is {value:.4g} at step {step}: {self.config.pruner.kind} pruner")

    def _prune(self, reason: str) -> None:
        self.trial.set_user_attr("prune", reason)
        raise Pruned(reason)

    def _objective(self) -> float:
        objective = self.config.objective
        if objective.eval:
            return self._evaluate()
        values = json.loads((self.place.run / "summary.json").read_text())["val"]
        name = objective.metric.removeprefix("val/")
        if name not in values:
            raise Failed(f"the run validates {', '.join(values)}, not {name}")
        return float(values[name])

    def _evaluate(self) -> float:
        objective, results = self.config.objective, self.place.results
        command = fill_in(objective.eval, run=self.place.run, seed=self.config.seed, out=results.parent / "out")
        results.parent.mkdir(parents=True, exist_ok=True)
        child = start([*command, "--results", str(results)], log=self.place.log, cpus=self._cpus)
        try:
            status = self._watch(child, report=False)
        finally:
            stop_child(child)
        if status != 0:
            raise Failed(f"evaluation, exit status {status}: {last_line(self.place.log)}")
        wanted = {name: getattr(objective, name) for name in ("task", "dataset", "metric", "split")}
        try:
            row = find(read(results), wanted)
        except UserError as error:
            raise Failed(str(error)) from error
        if row is None:
            raise Failed(f"the evaluation wrote no row with {', '.join(f'{k} {v}' for k, v in wanted.items())}")
        return row.value


def stop_child(child: subprocess.Popen[bytes]) -> None:
    """Ask a child to save and stop; kill it where it does not."""
    if child.poll() is not None:
        return
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
