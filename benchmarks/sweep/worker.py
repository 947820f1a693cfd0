"""A worker of a sweep: takes trials of the study, one after the other, until all are done."""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from benchmarks.sweep.config import load_sweep
from benchmarks.sweep.study import SweepStudy, open_storage
from benchmarks.sweep.trial import Stopped, TrialRunner
from pretrain.types import UserError

#: Between two looks for a trial whose worker is gone, while others work on the last ones.
WAIT_S = 1.0


def work(study: SweepStudy, *, stop: threading.Event) -> None:
    """Take trials until none is left, or `stop` is set."""
    cpus = sorted(os.sched_getaffinity(0))
    while not stop.is_set():
        claim = study.claim()
        if claim is None:
            if study.is_finished():
                return
            stop.wait(WAIT_S)
            continue
        print(
            f"trial {claim.trial.number}: {claim.trial.params}" + f" (retry {claim.retries})" * bool(claim.retries),
            flush=True,
        )
        try:
            TrialRunner(study, claim, cpus=cpus, stop=stop).run()
        except Stopped:
            print(f"trial {claim.trial.number}: stopped, it will be taken up again", flush=True)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep.worker", description=__doc__, allow_abbrev=False)
    parser.add_argument("config")
    parser.add_argument("--storage", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, required=True)
    options = parser.parse_args(args)
    logging.basicConfig(level=logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        config = load_sweep(options.config, trials=options.trials)
        work(SweepStudy(config, storage=open_storage(options.storage), out=options.out), stop=stop)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 130 if stop.is_set() else 0


if __name__ == "__main__":
    sys.exit(main())
