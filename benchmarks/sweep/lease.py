"""The hold that a worker has on a trial while it works on it."""

import logging
import threading

from optuna.exceptions import StorageInternalError
from optuna.trial import Trial

from benchmarks.sweep.study import HEARTBEAT_S, SweepStudy

_log = logging.getLogger(__name__)


class Lease:
    """Beats for a trial while its block runs, and notices where another worker has taken the trial over.

    Attributes:
        is_lost: set then; what is done for the trial counts no more.
    """

    def __init__(self, study: SweepStudy, trial: Trial) -> None:
        self._study, self._trial = study, trial
        self.is_lost, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        storage, trial_id = self._study.storage, self._trial._trial_id
        while not self._done.wait(HEARTBEAT_S):
            try:
                if storage.get_trial(trial_id).user_attrs.get("worker") != self._study.worker:
                    self.is_lost.set()
                    return
                storage.record_heartbeat(trial_id)
            except StorageInternalError as error:  # busy or away: the grace period bears a few
                _log.warning("trial %d: no heartbeat: %s", self._trial.number, error)
