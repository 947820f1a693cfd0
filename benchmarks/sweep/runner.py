"""The workers of a sweep as processes, started again where one is killed, with progress and an estimate."""

import signal
import subprocess
import threading
from pathlib import Path

from optuna.trial import TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.processes import last_line, slots_of_workers, start
from benchmarks.sweep.study import SweepStudy
from pretrain.types import UserError

POLL_S = 1.0
#: Workers that ended by a signal or a storage's fault are started again this often for each trial; then something is wrong.
_RESTARTS_PER_TRIAL = 3


def finished_seconds(study: SweepStudy) -> list[float]:
    """Of the trials that ran to their end."""
    complete = [trial for trial in study.trials() if trial.state == TrialState.COMPLETE]
    return [trial.user_attrs["seconds"] for trial in complete if "seconds" in trial.user_attrs]


def estimate(study: SweepStudy, *, workers: int) -> str | None:
    """How long what is left takes, from the trials so far; None before the first one."""
    seconds = finished_seconds(study)
    if not seconds:
        return None
    left = study.config.trials - sum(trial.state.is_finished() for trial in study.trials())
    mean = sum(seconds) / len(seconds)
    rounds = -(-left // workers)
    return f"{mean / 60:.1f} min a trial, {left} left on {workers} workers: about {mean * rounds / 60:.0f} min at most"


class Sweep:
    """Runs a study's workers to its end.

    Args:
        study: with a plan.
        storage: URL for the workers.
        workers: how many.
        stop: set by Ctrl-C or SIGTERM: workers let their trials save and end.
        console: for notes.
    """

    def __init__(
        self, study: SweepStudy, *, storage: str, workers: int, stop: threading.Event, console: Console
    ) -> None:
        self.study, self._storage, self._stop, self._console = study, storage, stop, console
        self._slots = slots_of_workers(workers)
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._restarts = 0

    def _log(self, number: int) -> Path:
        return self.study.out / "logs" / f"worker-{number}.log"

    def _start(self, number: int) -> None:
        config = self.study.config
        command = [
            "benchmarks.sweep.worker",
            str(config.path),
            "--storage",
            self._storage,
            "--out",
            str(self.study.out),
        ]
        command += ["--trials", str(config.trials)]
        slot = self._slots[number]
        self._workers[number] = start(command, log=self._log(number), cpus=slot.cpus, gpu=slot.gpu)

    def run(self) -> int:
        """0 when all trials are done or it was stopped.

        Raises:
            UserError: the workers end again and again.
        """
        config = self.study.config
        if self.study.is_finished():
            self._console.print(f"{config.name}: all {config.trials} trials are done; --trials N adds some")
            return 0
        note = estimate(self.study, workers=len(self._slots))
        self._console.print(
            note or f"{config.trials} trials on {len(self._slots)} workers; an estimate follows the first trial"
        )
        for number in range(len(self._slots)):
            self._start(number)
        try:
            self._watch(note is None)
        finally:
            self._end()
        return 0

    def _watch(self, wants_estimate: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            task, told = progress.add_task(self.study.config.name, total=self.study.config.trials), set()
            while not self._stop.is_set() and self._workers:
                for trial in self.study.trials():
                    if trial.state.is_finished() and trial.number not in told:
                        told.add(trial.number)
                        self._tell(trial)
                progress.update(task, completed=len(told))
                if wants_estimate and (note := estimate(self.study, workers=len(self._slots))):
                    self._console.print(note)
                    wants_estimate = False
                self._restart()
                self._stop.wait(POLL_S)

    def _tell(self, trial: object) -> None:
        about = f"{trial.value:.4f}" if trial.state == TrialState.COMPLETE else trial.user_attrs.get("reason", "")
        setting = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in trial.params.items()
        )
        line = f"trial {trial.number} {trial.state.name.lower()}: {about}   {setting}"
        self._console.print(line, markup=False, soft_wrap=True)

    def _restart(self) -> None:
        for number, worker in list(self._workers.items()):
            status = worker.poll()
            if status is None:
                continue
            del self._workers[number]
            if status == 0:
                continue
            if status == 2 or self._restarts >= _RESTARTS_PER_TRIAL * self.study.config.trials:
                raise UserError(f"worker {number} ended with status {status}: {last_line(self._log(number))}")
            self._restarts += 1
            self._console.print(
                f"worker {number} ended with status {status}; started again, its trial goes on from its checkpoint"
            )
            self._start(number)

    def _end(self) -> None:
        """Let the workers' runs save; a second signal to the workers' group is not needed."""
        for worker in self._workers.values():
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self._workers.values():
            worker.wait()
