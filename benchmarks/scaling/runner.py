"""Runs a scaling study's plan: several workers, each run a process of the real entry point, finished work never done again.

What was interrupted goes on from its checkpoint. A branch starts as soon as its trunk has written the checkpoint that it needs,
and a checkpoint is deleted as soon as no unfinished branch needs it.
"""

import csv
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.processes import last_line, slots_of_workers, start
from benchmarks.scaling.plan import Job, Trunk, current_code
from benchmarks.scaling.rows import append_once, key_of, read_rows, row_of
from pretrain.run import checkpoint_path
from pretrain.types import UserError

_POLL_S = 0.2
#: Seconds that a run has to save its checkpoint when it is asked to stop.
_STOP_S = 120.0


def left_to_do(plan: list[Trunk], done: set[tuple]) -> list[Trunk]:
    """Trunks with the branches whose row is not there; trunks without such branches are left out."""
    left = [Trunk(trunk.job, tuple(one for one in trunk.branches if key_of(one) not in done)) for trunk in plan]
    return [trunk for trunk in left if trunk.branches]


def can_start(branch: Job) -> bool:
    """Whether a branch has what it starts from, or goes on from."""
    return checkpoint_path(branch.run).is_file() or branch.needs.is_file()


def current_step(run: Path) -> int:
    """The last step that a run has logged; 0 before it has."""
    try:
        with (run / "metrics.csv").open(newline="") as file:
            return max((int(row["step"]) for row in csv.DictReader(file)), default=0)
    except (OSError, KeyError, ValueError, TypeError):  # it is being written
        return 0


@dataclass
class _Active:
    job: Job
    process: subprocess.Popen[bytes]


class Runner:
    """Works on a plan until nothing of it is left.

    Args:
        plan: all of the study, finished or not.
        study: its name, for rows.
        results: file of rows.
        logs: folder of the runs' output.
        workers: runs side by side, each on cores of its own.
    """

    def __init__(
        self, plan: list[Trunk], *, study: str, results: Path, logs: Path, workers: int, console: Console
    ) -> None:
        self._study, self._results, self._logs, self._console = study, results, logs, console
        self._slots = slots_of_workers(workers)
        self._done = {one.row.key() for one in read_rows(results)[0]}
        self._plan = plan
        self._active: dict[int, _Active] = {}
        #: what went wrong, by the job's folder
        self.failures: dict[Path, str] = {}
        self._restarted: set[Path] = set()
        self.num_added = 0

    def _left(self) -> list[Trunk]:
        return left_to_do(self._plan, self._done)

    def _ready(self) -> list[Job]:
        """Jobs that may start now: trunks first, since others wait for them, the longest first."""
        busy = {one.job.run for one in self._active.values()} | self.failures.keys()
        trunks, branches = [], []
        for trunk in self._left():
            waiting = [one for one in trunk.branches if one.run not in self.failures]
            branches += [one for one in waiting if one.run not in busy and can_start(one)]
            if trunk.job.run not in busy and not all(can_start(one) or one.summary.is_file() for one in waiting):
                trunks.append(trunk.job)
        longest_first = [sorted(jobs, key=lambda job: -job.samples) for jobs in (trunks, branches)]
        return longest_first[0] + longest_first[1]

    def _trunk_of(self, branch: Job) -> Job:
        return next(trunk.job for trunk in self._plan if branch in trunk.branches)

    def _collect(self) -> None:
        """Write the rows of branches that have finished, in this session or before one was killed, and drop their checkpoints."""
        active = {one.job.run for one in self._active.values()}
        for trunk in self._left():
            for branch in trunk.branches:
                if branch.run in active or branch.run in self.failures or not branch.summary.is_file():
                    continue
                try:
                    row = row_of(branch, study=self._study, trunk=trunk.job)
                except UserError as error:
                    self.failures[branch.run] = str(error)
                    continue
                self.num_added += append_once(row, self._results)
                self._done.add(row.key())
                losses = ", ".join(f"{name} {value:.4f}" for name, value in row.val.items())
                self._console.print(f"{branch.run.name}: val/{losses}", highlight=False)

    def _drop_checkpoints(self) -> None:
        """Delete what no unfinished branch starts from or goes on from."""
        unfinished = {trunk.job.run: trunk.branches for trunk in self._left()}
        active = {one.job.run for one in self._active.values()}
        for trunk in self._plan:
            left = unfinished.get(trunk.job.run, ())
            needed = {one.needs for one in left}
            for path in trunk.job.run.glob("checkpoints/step_*.ckpt"):
                if path not in needed:
                    path.unlink(missing_ok=True)
            runs = [one.run for one in trunk.branches if one not in left] + ([] if left else [trunk.job.run])
            for run in runs:
                if run not in active:
                    shutil.rmtree(run / "checkpoints", ignore_errors=True)

    def _start(self, worker: int, job: Job) -> None:
        """Start a job on a worker's cores.

        Raises:
            UserError: the code is no longer that of the plan, so that the row would name the wrong one.
        """
        if current_code() != job.code_hash:
            raise UserError("the code in pretrain/ has changed since this study was started; start it again")
        if job.needs is None and job.summary.is_file():
            # finished before, but a checkpoint that is needed now was not kept: another budget, or files deleted by hand
            if job.run in self._restarted:
                self.failures[job.run] = "it has finished without the checkpoints that its branches need"
                return
            self._restarted.add(job.run)
            self._console.print(
                f"{job.run.name}: a checkpoint that a branch needs is gone; the trunk is run again", highlight=False
            )
            shutil.rmtree(job.run)
        log = self._logs / f"{job.run.name}.log"
        slot = self._slots[worker]
        self._active[worker] = _Active(job, start(job.command(), log=log, cpus=slot.cpus, gpu=slot.gpu))

    def _reap(self) -> None:
        for worker, one in list(self._active.items()):
            status = one.process.poll()
            if status is None:
                continue
            del self._active[worker]
            if status != 0 or not one.job.summary.is_file():
                log = self._logs / f"{one.job.run.name}.log"
                self.failures[one.job.run] = f"exit status {status}: {last_line(log)} ({log})"
                self._console.print(f"{one.job.run.name} failed: {self.failures[one.job.run]}", highlight=False)

    def _stop(self) -> None:
        """Let the runs save and stop, and wait for them; kill those that do not."""
        for one in self._active.values():
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        for one in self._active.values():
            try:
                one.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
        self._active = {}

    def _show(self, progress: Progress, task: TaskID) -> None:
        left = {job.run: job.samples for trunk in self._left() for job in trunk.branches}
        # a trunk counts until all its branches can start
        left |= {t.job.run: t.job.samples for t in self._left() if not all(can_start(one) for one in t.branches)}
        names = []
        for one in self._active.values():
            step = max(one.job.start, current_step(one.job.run))
            names.append(f"{one.job.run.name.rpartition('-')[0]} step {step}/{one.job.steps}")
            left[one.job.run] = (one.job.steps - step) * one.job.batch
        total = progress.tasks[0].total or 0
        progress.update(task, completed=max(0, total - sum(left.values())), description="; ".join(names) or "waiting")

    def run(self) -> None:
        """Work until nothing can be started any more; failed runs are in `failures`."""
        left = self._left()
        total = sum(job.samples for trunk in left for job in (trunk.job, *trunk.branches))
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}% of samples"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console) as progress:
            task = progress.add_task("starting", total=total)
            try:
                while True:
                    self._reap()
                    self._collect()
                    self._drop_checkpoints()
                    free = [worker for worker in range(len(self._slots)) if worker not in self._active]
                    for worker, job in zip(free, self._ready(), strict=False):
                        self._start(worker, job)
                    if not self._active and not self._ready():
                        break
                    self._show(progress, task)
                    time.sleep(_POLL_S)
            finally:
                self._stop()
