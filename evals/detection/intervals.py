"""95% intervals of average precision over the pictures that were scored, and of the difference between two detectors.

AP is no mean over pictures: it has to be accumulated anew for every resample. What a detection is (right, wrong, not counted)
depends on its own picture only, so COCO's matching is done once, and a resample is a weight for each picture: how often
it was drawn.

The intervals are the percentile bootstrap's (Efron & Tibshirani 1993, 13.3), moved by its bias: AP of a resample, where pictures
repeat, lies above AP by a point on small sets, so that the percentiles are shifted to have the measured AP for their mean. They
tell what another draw of test pictures would have given, and nothing about another seed of the detector's training.

Shape letters: I pictures, D detections of a class by falling score, T overlaps .50:.05:.95, K classes, S resamples, P right ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.detection.coco_eval import IOU50, IOU75
from evals.detection.coco_evaluators import match_with_pycocotools
from evals.detection.coco_records import Kind, found_records, truth_records
from evals.detection.samples import Detections
from pretrain.rng import draw_rng
from pretrain.types import UserError

NUM_RESAMPLES = 200
_COVERED = (2.5, 97.5)
_RECALL = np.linspace(0.0, 1.0, 101)
_NUM_OVERLAPS = 10
#: Numbers held at once for resamples of a class: 64 MB.
_MAX_CELLS = 8_000_000


@dataclass(frozen=True)
class ClassMatches:
    """What COCO's matching says of one class.

    Attributes:
        picture_D: place of each detection's picture.
        right_TD: it was matched to an object.
        counted_TD: it counts, right or wrong; what was found in a crowd does not.
        objects_I: objects looked for on each picture.
    """

    picture_D: np.ndarray
    right_TD: np.ndarray
    counted_TD: np.ndarray
    objects_I: np.ndarray


@dataclass(frozen=True)
class Matches:
    """What COCO's matching says of a detector on a set of pictures.

    Attributes:
        image_ids: of the pictures, by number.
        classes: of each class.
    """

    image_ids: np.ndarray
    classes: list[ClassMatches]


@dataclass(frozen=True)
class Difference:
    """How far the first detector is above the second, in points of percent.

    Attributes:
        value: on the pictures as they are.
        interval: 95%, both detectors on the same resamples.
    """

    value: float
    interval: tuple[float, float]


def match(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Detections],
    *,
    category_ids: Sequence[int],
    kind: Kind = "box",
) -> Matches:
    """Match detections to objects as COCO does; arguments and errors as of evals.detection.coco_eval.score."""
    truth = truth_records(ground_truth, category_ids=category_ids, kind=kind)
    found = found_records(detections, images=truth["images"], category_ids=category_ids, kind=kind)
    evaluator = match_with_pycocotools(truth, found, kind, areas=1)
    image_ids = np.array(evaluator.params.imgIds)
    num = len(image_ids)
    return Matches(
        image_ids,
        [
            _of_class(evaluator.evalImgs[place * num : (place + 1) * num])
            for place in (sorted(category_ids).index(number) for number in category_ids)
        ],
    )


def _of_class(per_picture: Sequence[dict[str, Any] | None]) -> ClassMatches:
    """From COCO's answers for one class; None stands for a picture without objects and detections of it."""
    objects_I = np.array([0 if one is None else np.count_nonzero(one["gtIgnore"] == 0) for one in per_picture])
    some = [(place, one) for place, one in enumerate(per_picture) if one is not None]
    if not some:
        empty = np.zeros((_NUM_OVERLAPS, 0), dtype=bool)
        return ClassMatches(np.zeros(0, dtype=np.int64), empty, empty, objects_I)
    score_D = np.concatenate([one["dtScores"] for _, one in some])
    order_D = np.argsort(-score_D, kind="stable")  # ties by picture, as COCO has them
    picture_D = np.concatenate([np.full(len(one["dtScores"]), place) for place, one in some]).astype(np.int64)
    matched_TD = np.concatenate([one["dtMatches"] for _, one in some], axis=1) > 0
    counted_TD = ~np.concatenate([one["dtIgnore"] for _, one in some], axis=1).astype(bool)
    return ClassMatches(picture_D[order_D], (matched_TD & counted_TD)[:, order_D], counted_TD[:, order_D], objects_I)


def average_precision(matches: Matches, weight_SI: np.ndarray) -> dict[str, np.ndarray]:
    """AP of weighted pictures in percent, [S] each; nan where no picture with a weight has an object.

    Args:
        matches: of a detector.
        weight_SI: whole numbers: how often each picture counts in each resample.

    Returns:
        "ap", "ap50", "ap75": means over the classes that have objects in the resample.
    """
    ap_STK = np.stack([_of_weights(one, weight_SI) for one in matches.classes], axis=2)
    present_SK = ~np.isnan(ap_STK[:, 0])

    def mean(ap_SK: np.ndarray) -> np.ndarray:
        count_S = present_SK.sum(1)
        total_S = np.where(present_SK, ap_SK, 0).sum(1)
        return np.where(count_S > 0, 100 * total_S / np.maximum(count_S, 1), np.nan)

    return {"ap": mean(ap_STK.mean(1)), "ap50": mean(ap_STK[:, IOU50]), "ap75": mean(ap_STK[:, IOU75])}


def _of_weights(one: ClassMatches, weight_SI: np.ndarray) -> np.ndarray:
    """AP [S, T] of a class, 0..1; nan where it has no objects."""
    rows = max(1, _MAX_CELLS // max(1, len(one.picture_D)))
    parts = [_of_few(one, weight_SI[start : start + rows]) for start in range(0, len(weight_SI), rows)]
    return np.concatenate(parts)


def _of_few(one: ClassMatches, weight_SI: np.ndarray) -> np.ndarray:
    objects_S = weight_SI @ one.objects_I
    weight_SD = weight_SI[:, one.picture_D].astype(np.int64)
    alike = bool((one.counted_TD == one.counted_TD[:1]).all())  # unless there are crowds
    seen_SD = np.cumsum(weight_SD * one.counted_TD[0], axis=1) if alike else None
    ap_ST = np.empty((len(weight_SI), _NUM_OVERLAPS))
    for overlap in range(_NUM_OVERLAPS):
        # precision has its maxima, and recall its steps, at right detections: the others need not be looked at
        place_P = np.flatnonzero(one.right_TD[overlap])
        right_SP = np.cumsum(weight_SD[:, place_P], axis=1)
        counted_SD = np.cumsum(weight_SD * one.counted_TD[overlap], axis=1) if seen_SD is None else seen_SD
        # the smallest of numbers is added by COCO, against 0 / 0
        precision_SP = right_SP / (counted_SD[:, place_P] + np.spacing(1))
        best_SP = np.maximum.accumulate(precision_SP[:, ::-1], axis=1)[:, ::-1]
        recall_SP = right_SP / np.maximum(objects_S, 1)[:, None]
        ap_ST[:, overlap] = [_mean_precision(*pair) for pair in zip(recall_SP, best_SP, strict=True)]
    return np.where(objects_S[:, None] > 0, ap_ST, np.nan)


def _mean_precision(recall_P: np.ndarray, best_P: np.ndarray) -> float:
    """Mean over levels of recall of the best precision at that recall or a higher one; 0 where it is not reached."""
    return float(np.append(best_P, 0.0)[np.searchsorted(recall_P, _RECALL, side="left")].mean())


def resample(num_images: int, *, num: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray:
    """Weights [S, I] of `num` draws of the pictures with replacement: a function of the seed and their number only."""
    if num_images < 1 or num < 1:
        raise UserError(f"{num} resamples of {num_images} pictures; both must be 1 or more")
    return draw_rng(seed, "detection/resample", 0).multinomial(
        num_images, np.full(num_images, 1 / num_images), size=num
    )


def intervals(matches: Matches, *, num: int = NUM_RESAMPLES, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95% intervals of "ap", "ap50" and "ap75" in percent; a metric without any object has none.

    Args:
        matches: of a detector.
        num: resamples.
        seed: of the resamples.
    """
    weight_SI = _with_whole(resample(len(matches.image_ids), num=num, seed=seed))
    drawn = average_precision(matches, weight_SI)
    return {name: _covered(value_S, low=0.0) for name, value_S in drawn.items() if not np.isnan(value_S[0])}


def paired_difference(
    first: Matches, second: Matches, *, num: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """How far the first detector's "ap", "ap50" and "ap75" are above the second's, both on the same resamples.

    Args:
        first: a detector's matches.
        second: another's on the same ground truth.
        num: resamples.
        seed: of the resamples.

    Raises:
        UserError: they are not of the same pictures, classes and objects.
    """
    same = np.array_equal(first.image_ids, second.image_ids) and len(first.classes) == len(second.classes)
    if not same or any(
        not np.array_equal(one.objects_I, other.objects_I) for one, other in zip(first.classes, second.classes)
    ):
        raise UserError(
            f"difference of two detectors: {len(first.image_ids)} and {len(second.image_ids)} pictures that do not have the "
            "same ids and objects; both must be scored on the same ground truth"
        )
    weight_SI = _with_whole(resample(len(first.image_ids), num=num, seed=seed))
    one, other = average_precision(first, weight_SI), average_precision(second, weight_SI)
    differences = {name: one[name] - other[name] for name in one}
    return {
        name: Difference(float(value_S[0]), _covered(value_S, low=-100.0))
        for name, value_S in differences.items()
        if not np.isnan(value_S[0])
    }


def _with_whole(weight_SI: np.ndarray) -> np.ndarray:
    """The pictures as they are in front of the resamples."""
    return np.concatenate([np.ones_like(weight_SI[:1]), weight_SI])


def _covered(value_S: np.ndarray, *, low: float) -> tuple[float, float]:
    """The interval around the first value by the others; nothing is below `low` or above 100."""
    ends = np.nanpercentile(value_S[1:], _COVERED) + value_S[0] - np.nanmean(value_S[1:])
    first, last = np.clip(ends, low, 100.0)
    return float(first), float(last)
