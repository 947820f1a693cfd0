"""How well sentences are placed: precision@k at IoU 0.5, mean IoU, intervals over pictures, paired differences.

An answer is right where its IoU with the object's box is 0.5 or more. Papers word it as "above 0.5"; the code that their numbers
come from has ">=": mmdet's RefExpMetric (mmdet/evaluation/metrics/refexp_metric.py), of the framework that the paper's Table 4
was made with. mmdet takes the first k boxes as they come; here the scores decide, whatever the order.

Every sentence counts once, also where several mean one object. Sentences on one picture are not independent, so intervals are
over pictures (percentile bootstrap, Efron & Tibshirani 1993, 13.3); they say nothing about another seed of the training.

Shape letters: N expressions, K boxes, M other boxes, P pictures, S resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evals.grounding.expressions import Expression, Located
from evals.statistics import NUM_RESAMPLES, Estimate, picture_interval

#: Least IoU of a right box.
MIN_IOU = 0.5
TOP_K = (1, 5, 10)


def box_iou(box_K4: np.ndarray, box_M4: np.ndarray) -> np.ndarray:
    """IoU of each box with each other: float64 [K, M]. Corners (x0, y0, x1, y1); a box without extent has 0 with all."""
    box_K4, box_M4 = (np.asarray(box, dtype=np.float64).reshape(-1, 4) for box in (box_K4, box_M4))
    low_KM2 = np.maximum(box_K4[:, None, :2], box_M4[None, :, :2])
    high_KM2 = np.minimum(box_K4[:, None, 2:], box_M4[None, :, 2:])
    inner_KM = np.clip(high_KM2 - low_KM2, 0, None).prod(-1)
    area_K, area_M = (np.clip(box[:, 2:] - box[:, :2], 0, None).prod(-1) for box in (box_K4, box_M4))
    outer_KM = area_K[:, None] + area_M[None] - inner_KM
    return np.divide(inner_KM, outer_KM, out=np.zeros_like(inner_KM), where=outer_KM > 0)


def paired_iou(box_N4: np.ndarray, other_N4: np.ndarray) -> np.ndarray:
    """IoU of each box with the one beside it: float64 [N]."""
    box_N4, other_N4 = (np.asarray(box, dtype=np.float64).reshape(-1, 4) for box in (box_N4, other_N4))
    inner_N = np.clip(np.minimum(box_N4[:, 2:], other_N4[:, 2:]) - np.maximum(box_N4[:, :2], other_N4[:, :2]), 0, None)
    inner_N = inner_N.prod(-1)
    area_N, area_M = (np.clip(box[:, 2:] - box[:, :2], 0, None).prod(-1) for box in (box_N4, other_N4))
    outer_N = area_N + area_M - inner_N
    return np.divide(inner_N, outer_N, out=np.zeros_like(inner_N), where=outer_N > 0)


@dataclass(frozen=True)
class Placed:
    """Each expression's boxes against its object.

    Attributes:
        image_id_N: int64, the picture of each expression.
        best_iou_N: IoU of the box with the highest score; 0 where there is no box.
        right_N: k -> bool, whether any of the k boxes of highest score has an IoU of 0.5 or more.
    """

    image_id_N: np.ndarray
    best_iou_N: np.ndarray
    right_N: Mapping[int, np.ndarray]

    def __len__(self) -> int:
        return len(self.image_id_N)

    def precision(self, k: int = 1) -> float:
        """In percent, over expressions."""
        return 100 * float(self.right_N[k].mean())

    def mean_iou(self) -> float:
        """Of the boxes of highest score, in percent."""
        return 100 * float(self.best_iou_N.mean())

    def estimate(self, k: int = 1, *, seed: int = 0, num: int = NUM_RESAMPLES) -> Estimate:
        """Precision@k with its interval."""
        return Estimate(self.precision(k), picture_interval(self.right_N[k], self.image_id_N, seed=seed, num=num))

    def estimate_iou(self, *, seed: int = 0, num: int = NUM_RESAMPLES) -> Estimate:
        """Mean IoU with its interval."""
        return Estimate(self.mean_iou(), picture_interval(self.best_iou_N, self.image_id_N, seed=seed, num=num))


def place(expressions: Sequence[Expression], located: Sequence[Located], *, top_k: Sequence[int] = TOP_K) -> Placed:
    """Compare answers with the objects' boxes.

    Args:
        expressions: at least one.
        located: exactly one for each of them, in any order.
        top_k: how many boxes may be tried.

    Raises:
        ValueError: an answer is missing or there twice, or a score is no number.
    """
    answers = {answer.sent_id: answer for answer in located}
    if len(answers) < len(located) or set(answers) != {expression.sent_id for expression in expressions}:
        raise ValueError(f"{len(located)} answers ({len(answers)} different) to {len(expressions)} expressions")
    best_iou_N = np.zeros(len(expressions))
    right_N = {k: np.zeros(len(expressions), dtype=bool) for k in top_k}
    for number, expression in enumerate(expressions):
        answer = answers[expression.sent_id]
        score_K = np.asarray(answer.score_K, dtype=np.float64)
        if np.isnan(score_K).any():
            raise ValueError(f"sentence {expression.sent_id}: a score is no number")
        if not len(score_K):
            continue  # no answer is a wrong one
        order_K = np.argsort(-score_K, kind="stable")
        iou_K = box_iou(answer.box_K4, np.array(expression.box))[order_K, 0]
        best_iou_N[number] = iou_K[0]
        for k in top_k:
            right_N[k][number] = (iou_K[:k] >= MIN_IOU).any()
    image_id_N = np.array([expression.image_id for expression in expressions], dtype=np.int64)
    return Placed(image_id_N, best_iou_N, right_N)


def paired_difference(first: Placed, second: Placed, *, seed: int = 0, num: int = NUM_RESAMPLES) -> Estimate:
    """How many points of precision@1 the first model is above the second, on the same expressions in the same order.

    Raises:
        ValueError: they are not on the same pictures.
    """
    if not np.array_equal(first.image_id_N, second.image_id_N):
        raise ValueError("a paired difference needs two models on the same expressions in the same order")
    difference_N = first.right_N[1].astype(np.float64) - second.right_N[1]
    return Estimate(
        100 * float(difference_N.mean()), picture_interval(difference_N, first.image_id_N, seed=seed, num=num)
    )
