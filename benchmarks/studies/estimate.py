"""How long jobs will take: from what earlier rows took, where there are any, from the configs' minutes otherwise."""

from collections.abc import Sequence
from statistics import fmean

from benchmarks.rows import read_rows
from benchmarks.studies.arms import Arm, Job
from benchmarks.studies.config import StudyConfig
from benchmarks.studies.runner import PRETRAINING, Runner


class Estimate:
    """Minutes that are left, corrected by what finished steps took.

    Args:
        jobs: to run, with their open evaluations.
        runner: knows where things lie.
        studies: that the jobs are of; their minutes are of one training at a time on one core or GPU of its own.
        num_workers: trainings at a time.
    """

    def __init__(
        self, jobs: Sequence[Job], runner: Runner, studies: Sequence[StudyConfig], *, num_workers: int
    ) -> None:
        self._num_workers = num_workers
        known = _known_seconds(runner)
        pretraining = {study.base.as_posix(): 60 * study.minutes for study in studies}
        self._open: dict[tuple[str, int, str], float] = {}
        for job in jobs:
            arm = job.arm
            if arm.config is not None and not (runner.places.runs / arm.name / "summary.json").is_file():
                of_base = known.get((arm.base, PRETRAINING), pretraining.get(arm.base, 0.0))
                seconds = known.get((arm.key, PRETRAINING), of_base)
                self._open[arm.key, arm.seed, PRETRAINING] = seconds
            for name, one in job.evals.items():
                self._open[arm.key, arm.seed, name] = known.get(("", name), 60 * one.minutes)
        self.num_steps, self.num_finished = len(self._open), 0
        self._expected_s = self._taken_s = 0.0

    def finished(self, arm: Arm, stage: str, seconds: float) -> None:
        """A step has taken so long."""
        self.num_finished += 1
        self._expected_s += self._open.pop((arm.key, arm.seed, stage), seconds)
        self._taken_s += seconds

    def minutes_left(self) -> float:
        """Of what is open, workers side by side."""
        pace = self._taken_s / self._expected_s if self._expected_s else 1.0
        return pace * sum(self._open.values()) / 60 / self._num_workers


def _known_seconds(runner: Runner) -> dict[tuple[str, str], float]:
    """Mean seconds of earlier trainings by arm and by base, of evaluations by name."""
    found: dict[tuple[str, str], list[float]] = {}
    for one in read_rows(runner.places.results).rows:
        details = one.row.details
        if details.get("arm") is None:
            continue
        if details.get("pretrain_s"):
            for name in (details["arm"], details["base"]):
                found.setdefault((name, PRETRAINING), []).append(details["pretrain_s"])
        if details.get("eval_s"):
            found.setdefault(("", details["eval"]), []).append(details["eval_s"])
    return {name: fmean(seconds) for name, seconds in found.items()}
