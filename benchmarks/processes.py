"""Child processes of studies, sweeps and scaling: the real entry points, each on cores of its own, none outliving its parent."""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain.types import UserError

#: prctl(2): the signal that a child gets when its parent dies.
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Slot:
    """Where a worker's children run.

    Attributes:
        cpus: cores; None for all of them.
        gpu: number among those that this process sees; None for none, or all.
    """

    cpus: tuple[int, ...] | None = None
    gpu: int | None = None


def default_workers() -> int:
    """As many as GPUs; without any two at most, each on cores of its own: what memory more would take is not known here."""
    return torch.cuda.device_count() or min(2, len(os.sched_getaffinity(0)))


def slots_of_workers(num_workers: int) -> list[Slot]:
    """Cores and GPUs, dealt out to workers."""
    gpus = torch.cuda.device_count()
    cpus = cpus_of_workers(num_workers)
    return [Slot(cpus[worker], worker % gpus if gpus else None) for worker in range(num_workers)]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder of runs; it is free again when this process ends, however it does.

    Raises:
        UserError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another runner is at work there; wait for it, or give another folder"
            ) from error
        yield


def cpus_of_workers(num_workers: int) -> list[tuple[int, ...]]:
    """This process's cores, dealt out to workers; they share them where there are more workers than cores."""
    cpus = sorted(os.sched_getaffinity(0))
    if num_workers > len(cpus):
        return [(cpus[worker % len(cpus)],) for worker in range(num_workers)]
    return [tuple(cpus[worker::num_workers]) for worker in range(num_workers)]


def start(
    command: Sequence[str], *, log: Path, cpus: Sequence[int] | None = None, gpu: int | None = None
) -> subprocess.Popen[bytes]:
    """Start `python -m COMMAND`; what it prints is appended to `log`.

    The child is killed with the thread that started it: a runner that was killed and started again must not meet the first one's
    children at work on the same files.

    Args:
        command: module and arguments.
        log: file; its folder is made.
        cpus: cores that it may use, with as many threads; all of them where not given.
        gpu: number of the only one that it sees, among those that this process sees; all of them where not given.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ, COLUMNS="160")
    if cpus is not None:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(len(cpus)))
    if gpu is not None:
        visible = [one for one in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
        environment["CUDA_VISIBLE_DEVICES"] = visible[gpu] if visible else str(gpu)
    parent, prctl = os.getpid(), ctypes.CDLL(None, use_errno=True).prctl

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)
        if cpus is not None:
            os.sched_setaffinity(0, cpus)

    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=before_exec,
        )


def last_line(log: Path) -> str:
    """The last line with something on it, for a message about a child that failed."""
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
