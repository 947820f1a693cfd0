"""What detections of a test set are worth: COCO's scores with intervals, or LVIS's, and their rows of results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.detection.coco_eval import LVIS_MAX_DETECTIONS, CocoScores, LvisScores, score, score_lvis
from evals.detection.coco_records import Json, Kind
from evals.detection.coco_set import CocoSet
from evals.detection.intervals import Matches, intervals, match
from evals.detection.samples import Detections
from evals.encoder import Provenance
from evals.results import EvalResult, command_line

Scores = CocoScores | LvisScores
#: (epoch, AP, AP50) of boxes on held-out training pictures.
Curve = list[tuple[float, float, float]]


@dataclass(frozen=True)
class Outcome:
    """A scored detector.

    Attributes:
        rows: of results.
        scores: by kind, "box" and "mask".
        matches: likewise, for intervals and for differences between detectors; empty with LVIS, whose evaluation has none.
        found: on the test set.
        curve: (epoch, AP, AP50) of boxes on held-out training pictures.
        folder: holds detector.safetensors, detections.json, scores.json, metrics.csv; None for the chance level.
    """

    rows: list[EvalResult]
    scores: dict[Kind, Scores]
    matches: dict[Kind, Matches]
    found: list[Detections]
    curve: Curve
    folder: Path | None


def most_detections(dataset: CocoSet) -> int:
    """Of a picture, that count: 100 of each class with COCO, 300 of all with LVIS."""
    return LVIS_MAX_DETECTIONS if dataset.lvis else 100


def score_on(dataset: CocoSet, truth: Json, found: Sequence[Detections], *, kind: Kind = "box") -> Scores:
    """Detections against `truth`, the data set's or that of a part of it, as the data set wants it."""
    evaluate = score_lvis if dataset.lvis else score
    return evaluate(truth, found, category_ids=dataset.category_ids, kind=kind)


def score_outcome(
    dataset: CocoSet,
    truth: Json,
    found: list[Detections],
    *,
    kinds: Sequence[Kind],
    curve: Curve | None = None,
    folder: Path | None = None,
    rows: list[EvalResult] | None = None,
) -> Outcome:
    """Detections of a test set with their scores; arguments as of :class:`Outcome`."""
    scores = {kind: score_on(dataset, truth, found, kind=kind) for kind in kinds}
    ids = dataset.category_ids
    matched = [] if dataset.lvis else kinds
    matches = {kind: match(truth, found, category_ids=ids, kind=kind) for kind in matched}
    return Outcome(rows or [], scores, matches, found, curve or [], folder)


def result_rows(
    outcome: Outcome,
    dataset: CocoSet,
    where: Provenance,
    key: Mapping[str, Any],
    *,
    seconds: float,
    details: Mapping[str, Any],
) -> list[EvalResult]:
    """A row for each number that there is; those of AP carry the details, and the last one says that it is the last.

    Args:
        outcome: its scores and matches are read.
        dataset: the test set.
        where: the encoder.
        key: task, dataset, seed, config_hash, checkpoint_hash, code_hash and run.
        seconds: of all of it.
        details: of the training.
    """
    rows = []
    for kind, scores in outcome.scores.items():
        covered = intervals(outcome.matches[kind]) if kind in outcome.matches else {}
        for metric, value in scores.metrics().items():
            if value is None:  # no such object: there is nothing to say
                continue
            own = {"per_class": scores.per_class, **details} if metric == "ap" else {}
            rows.append(
                EvalResult(
                    synthetic=dataset.synthetic,
                    split=dataset.split,
                    metric=f"{kind}_{metric}",
                    value=value,
                    n=scores.num_images,
                    encoder=where.spec,
                    objective=where.objective,
                    samples_seen=where.samples_seen,
                    training_flops=where.training_flops,
                    command=command_line(),
                    wall_s=round(seconds, 1),
                    interval=covered.get(metric),
                    details=own,
                    **key,
                )
            )
    rows[-1].details["last_of_task"] = True
    return rows
