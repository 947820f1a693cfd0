"""The study behind a sweep: who works on which trial, kept in an Optuna storage so that no kill can lose or double one.

A trial stays RUNNING until it is COMPLETE, PRUNED or FAIL. Where its worker is gone, another one takes the same trial up again
(Optuna's own way fails it and adds a copy in two writes; a kill between them would lose it, and one before a trial's first
heartbeat leaves it running for ever). Trials are made and taken up under a lock, one worker at a time.
"""

import fcntl
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import text

from benchmarks.sweep.config import SweepConfig
from benchmarks.sweep.space import Parameter, grid
from pretrain.types import UserError

HEARTBEAT_S, GRACE_S = 10, 60
#: Seconds that a writer waits for another one's write to SQLite.
_SQLITE_TIMEOUT_S = 60
#: A sampler that repeats itself so often is given a setting that is left.
_MAX_TWINS = 10
_log = logging.getLogger(__name__)


def sqlite_url(out: Path) -> str:
    """URL of the study in a sweep's folder, where it is in no other database."""
    return f"sqlite:///{(out / 'study.db').resolve()}"


def open_storage(url: str) -> RDBStorage:
    """The storage of an URL. Raises UserError where its driver is missing or nothing answers."""
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options = {"connect_args": {"timeout": _SQLITE_TIMEOUT_S}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        return RDBStorage(url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S)
    except ImportError as error:
        raise UserError(
            f"--storage {url.split(':')[0]}://...: its driver is not installed ({error.__cause__ or error}); for PostgreSQL: "
            "pip install psycopg2-binary"
        ) from error
    except Exception as error:  # whatever the database's driver raises
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"--storage {url.split(':')[0]}://... cannot be opened: {reason}") from error


def machine() -> str:
    """Tells machines, and containers with process numbers of their own, from each other."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return (
        f"{boot.read_text().strip() if boot.is_file() else socket.gethostname()} {os.stat('/proc/self/ns/pid').st_ino}"
    )


def this_worker() -> dict[str, Any]:
    """Names this process, for good: a process number is used again, with another time of start."""
    return {"machine": machine(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def is_gone(worker: Mapping[str, Any] | None) -> bool | None:
    """Whether a worker's process has ended; None for one on another machine."""
    if worker is None:  # killed while it made the trial, which only one does at a time
        return True
    if worker["machine"] != machine():
        return None
    try:
        process = psutil.Process(worker["pid"])
        return process.create_time() != worker["started"] or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@dataclass(frozen=True)
class Claim:
    """A trial that this worker works on.

    Attributes:
        trial: Optuna's.
        retries: how often it was taken up again.
    """

    trial: Trial
    retries: int


def draw(trial: Trial, parameter: Parameter) -> None:
    """Draw a parameter; one that was drawn before stays as it is."""
    about = parameter.distribution
    if isinstance(about, CategoricalDistribution):
        trial.suggest_categorical(parameter.name, about.choices)
    elif isinstance(about, FloatDistribution):
        trial.suggest_float(parameter.name, about.low, about.high, step=about.step, log=about.log)
    else:
        trial.suggest_int(parameter.name, about.low, about.high, step=about.step, log=about.log)


class SweepStudy:
    """A study, its trials, and the lock that they are dealt out under.

    Args:
        config: the sweep.
        storage: from :func:`open_storage`.
        out: the sweep's folder; on several machines one that they share.
        worker: who asks; this process where not given.
    """

    def __init__(
        self, config: SweepConfig, *, storage: RDBStorage, out: Path, worker: Mapping[str, Any] | None = None
    ) -> None:
        self.config, self.storage, self.out = config, storage, out
        self.worker = dict(worker or this_worker())
        out.mkdir(parents=True, exist_ok=True)
        with self.lock():
            self.study = optuna.create_study(
                study_name=config.name, storage=storage, direction=config.objective.direction, load_if_exists=True
            )
        self.study.pruner = self._pruner()
        self._check()

    def _check(self) -> None:
        """UserError where the study was made with other settings."""
        made_with = self.study.user_attrs.get("fingerprint")
        if made_with is not None and made_with != self.config.fingerprint():
            raise UserError(
                f"{self.config.path}: the study in {self.out} was made with other settings (base, space, objective, ...), its "
                "trials do not compare: give --out another folder (and another --storage, if you give one)"
            )

    @property
    def plan(self) -> list[dict[str, Any]] | None:
        """Settings of the first trials; None before it has been made."""
        return self.study.user_attrs.get("plan")

    def make_plan(self, defaults: Mapping[str, Any]) -> None:
        """Trial 0 with the defaults, then the enqueued settings, then a grid's; written once."""
        found = [dict(defaults), *(dict(defaults) | dict(one) for one in self.config.enqueue)]
        if self.config.sampler.kind == "grid":
            found += list(grid(self.config.space) or ())
        plan = [one for number, one in enumerate(found) if one not in found[:number]]
        with self.lock():
            if self.plan is None:
                self.study.set_user_attr("fingerprint", self.config.fingerprint())
                self.study.set_user_attr("plan", plan)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One worker at a time, on all machines; a kill gives it free."""
        with (self.out / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not self.storage.url.startswith("postgresql"):
                yield
                return
            with self.storage.engine.connect() as connection:  # a lock of the session's: it ends with the connection
                connection.execute(text("SELECT pg_advisory_lock(hashtext(:name))"), {"name": self.config.name})
                try:
                    yield
                finally:
                    connection.execute(text("SELECT pg_advisory_unlock(hashtext(:name))"), {"name": self.config.name})

    def trials(self) -> list[FrozenTrial]:
        """All that count: without those that a sampler drew a second time."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if "twin_of" not in trial.user_attrs]

    def is_finished(self) -> bool:
        trials = self.trials()
        return len(trials) >= self.config.trials and all(trial.state.is_finished() for trial in trials)

    def claim(self) -> Claim | None:
        """The next trial: one whose worker is gone, or a new one; None where all are made and somebody's."""
        with self.lock():
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if "twin_of" in trial.user_attrs:  # killed before it could be ended
                    self.study.tell(trial.number, state=TrialState.FAIL)
                elif self._is_left(trial) and (claim := self._take_up(trial)):
                    return claim
            while sum(trial.state != TrialState.WAITING for trial in self.trials()) < self.config.trials:
                if claim := self._make():
                    return claim
            return None

    def _is_left(self, trial: FrozenTrial) -> bool:
        gone = is_gone(trial.user_attrs.get("worker"))
        if gone is not None:
            return gone
        # on another machine: its heartbeat tells (Optuna has no public way to ask without failing the trial)
        return trial._trial_id in self.storage._get_stale_trial_ids(self.study._study_id)

    def _take_up(self, frozen: FrozenTrial) -> Claim | None:
        retries = frozen.user_attrs.get("retries", 0) + ("worker" in frozen.user_attrs)
        self.study.sampler = self._sampler(frozen.number)
        trial = Trial(self.study, frozen._trial_id)
        if retries > self.config.retries:
            self.fail(trial, f"given up after {self.config.retries} retries: its worker was gone every time")
            return None
        self._own(trial, retries)
        return self._complete(trial, retries)

    def _make(self) -> Claim | None:
        counted = [trial for trial in self.trials() if trial.state != TrialState.WAITING]
        waiting = [trial for trial in self.trials() if trial.state == TrialState.WAITING]
        number = len(counted)
        if not waiting:
            if number < len(self.plan or ()):
                self.study.enqueue_trial(self.plan[number])
            elif self._num_last_twins() >= _MAX_TWINS:
                self.study.enqueue_trial(self._left_setting(counted))
        everything = self.study.get_trials(deepcopy=False)
        self.study.sampler = self._sampler(len(everything))
        trial = self.study.ask()
        self._own(trial, 0)
        return self._complete(trial, 0)

    def _own(self, trial: Trial, retries: int) -> None:
        trial.set_user_attr("retries", retries)
        trial.set_user_attr("worker", self.worker)
        self.storage.record_heartbeat(trial._trial_id)

    def _complete(self, trial: Trial, retries: int) -> Claim | None:
        """Draw what is not drawn yet; None where that gives the setting of another trial."""
        for parameter in self.config.space:
            draw(trial, parameter)
        for other in self.trials():
            if other.number < trial.number and other.params == trial.params:
                trial.set_user_attr("twin_of", other.number)
                self.study.tell(trial, state=TrialState.FAIL)
                return None
        return Claim(trial, retries)

    def _num_last_twins(self) -> int:
        flags = ["twin_of" in trial.user_attrs for trial in self.study.get_trials(deepcopy=False)]
        return next((n for n, is_twin in enumerate(reversed(flags)) if not is_twin), len(flags))

    def _left_setting(self, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
        used = [trial.params for trial in trials]
        left = [setting for setting in grid(self.config.space) or () if setting not in used]
        return left[np.random.default_rng((self.config.sampler.seed, len(trials))).integers(len(left))]

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Its seed is of this trial alone: workers that start from one seed would draw the same settings."""
        seed = int(np.random.SeedSequence((self.config.sampler.seed, number)).generate_state(1)[0])
        if self.config.sampler.kind == "tpe":
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # running trials count as bad ones
        return optuna.samplers.RandomSampler(seed=seed)

    def _pruner(self) -> optuna.pruners.BasePruner:
        about = self.config.pruner
        if about.kind == "median":
            return optuna.pruners.MedianPruner(n_startup_trials=about.startup, n_warmup_steps=about.warmup)
        if about.kind == "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=max(about.warmup, 1))
        return optuna.pruners.NopPruner()

    def fail(self, trial: Trial, reason: str) -> None:
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def prune(self, trial: Trial, reason: str) -> None:
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=TrialState.PRUNED)

    def complete(self, trial: Trial, value: float) -> None:
        self.study.tell(trial, value)
