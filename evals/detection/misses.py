"""Where a detector fails most: wrong detections with the highest scores, and objects that were not found.

Boxes are compared at overlap .50, as COCO does: by falling score, each detection takes the free object of its class that it
overlaps most. Those inside a crowd of their class are left out.

Shape letters: N objects, M crowds, K detections.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evals.detection.coco_records import class_names, found_records, truth_records
from evals.detection.samples import Detections

OVERLAP = 0.5
#: From this overlap on, a wrong detection is taken for one of the object whose box is off.
_NEAR = 0.1
#: What `pair` says of a detection that has no object.
NOTHING, CROWD = -1, -2

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Miss:
    """One failure on one picture.

    Attributes:
        image_id: COCO's.
        kind: "confused" (another class is there), "misplaced" (the box is off), "duplicate" (found before), "invented" (nothing
            is there), or "missed" (an object that was not found, or with a low score only).
        box: the detection's; the object's where it was missed. x0, y0, x1, y1 in pixels.
        label: class number of what was said; of a missed object, its own.
        score: of what was said, 0..1; of a missed object, of the detection that found it, 0 where none did.
        other: class number of the object that is there; of a missed object, what it was taken for; None: nothing.
        other_score: of what a missed object was taken for.
    """

    image_id: int
    kind: str
    box: Box
    label: int
    score: float
    other: int | None = None
    other_score: float = 0.0

    def caption(self, classes: Sequence[str]) -> tuple[str, str]:
        """Two short lines: what was said or missed, and what is there."""
        name, score = classes[self.label], f"{100 * self.score:.0f}%"
        if self.kind == "missed":
            found = f"missed: {name}" if self.score == 0 else f"{name} found with {score} only"
            return found, "nothing found there" if self.other is None else (
                f"taken for {classes[self.other]} {100 * self.other_score:.0f}%"
            )
        below = {
            "confused": f"there is: {classes[self.other]}" if self.other is not None else "",
            "misplaced": "the box is off",
            "duplicate": "found a second time",
            "invented": "nothing is there",
        }
        return f"said {name} {score}", below[self.kind]


@dataclass(frozen=True)
class WorstMisses:
    """Attributes: wrong detections by falling score; missed objects, those missed by far first."""

    wrong: list[Miss]
    missed: list[Miss]


def overlaps(box_K4: np.ndarray, box_N4: np.ndarray, *, of_first: bool = False) -> np.ndarray:
    """Intersection over union [K, N]; with `of_first` over the first box's area, as COCO compares with crowds."""
    box_K4, box_N4 = box_K4.astype(np.float64), box_N4.astype(np.float64)
    low_KN2 = np.maximum(box_K4[:, None, :2], box_N4[None, :, :2])
    high_KN2 = np.minimum(box_K4[:, None, 2:], box_N4[None, :, 2:])
    inside_KN = np.clip(high_KN2 - low_KN2, 0, None).prod(-1)
    area_K, area_N = ((box[:, 2:] - box[:, :2]).prod(-1) for box in (box_K4, box_N4))
    whole_KN = area_K[:, None] + (0 if of_first else area_N[None] - inside_KN)
    return np.divide(inside_KN, whole_KN, out=np.zeros_like(inside_KN), where=whole_KN > 0)


def pair(
    box_K4: np.ndarray,
    label_K: np.ndarray,
    *,
    box_N4: np.ndarray,
    label_N: np.ndarray,
    crowd_M4: np.ndarray | None = None,
    crowd_label_M: np.ndarray | None = None,
) -> np.ndarray:
    """For detections by falling score: the object [K] that each takes, NOTHING, or CROWD.

    Args:
        box_K4: detections.
        label_K: their classes.
        box_N4: objects.
        label_N: their classes.
        crowd_M4: regions where nothing is wrong.
        crowd_label_M: their classes; for any class where it is None.
    """
    overlap_KN = np.where(label_K[:, None] == label_N[None], overlaps(box_K4, box_N4), 0.0)
    taken_K = np.full(len(label_K), NOTHING)
    for place in range(len(label_K)):
        if overlap_KN.shape[1] and overlap_KN[place].max() >= OVERLAP:
            taken_K[place] = overlap_KN[place].argmax()
            overlap_KN[:, taken_K[place]] = 0
    if crowd_M4 is not None and len(crowd_M4):
        inside_KM = overlaps(box_K4, crowd_M4, of_first=True) >= OVERLAP
        if crowd_label_M is not None:
            inside_KM &= label_K[:, None] == crowd_label_M[None]
        taken_K[(taken_K == NOTHING) & inside_KM.any(1)] = CROWD
    return taken_K


def worst_misses(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Detections],
    *,
    category_ids: Sequence[int],
    num: int = 8,
) -> WorstMisses:
    """The `num` worst of wrong detections and of missed objects, one of each sort for a picture.

    Args:
        ground_truth: COCO's instances of exactly the pictures that are looked at.
        detections: of these pictures.
        category_ids: COCO's number of each class.
        num: how many of either.

    Raises:
        UserError: records that do not fit (see evals.detection.coco_records).
    """
    class_names(ground_truth, category_ids)  # checks the categories
    truth = truth_records(ground_truth, category_ids=category_ids, kind="box")
    found_records(detections, images=truth["images"], category_ids=category_ids, kind="box")  # checks the detections
    label_of = {number: label for label, number in enumerate(category_ids)}
    annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        annotations[annotation["image_id"]].append(annotation | {"label": label_of[annotation["category_id"]]})
    area = {image["id"]: float(image["width"] * image["height"]) for image in truth["images"]}
    by_picture = {found.image_id: found for found in detections}
    wrong: list[Miss] = []
    missed: list[tuple[tuple[float, ...], Miss]] = []
    for image_id, of_picture in annotations.items():
        found = by_picture.get(image_id) or nothing_found(image_id)
        some_wrong, some_missed = _of_picture(found, of_picture)
        wrong += some_wrong
        missed += [((miss.score, -miss.other_score, -_area(miss.box) / area[image_id]), miss) for miss in some_missed]
    wrong.sort(key=lambda miss: -miss.score)
    missed.sort(key=lambda pair: pair[0])
    return WorstMisses(_one_each(wrong, num), _one_each([miss for _, miss in missed], num))


def nothing_found(image_id: int) -> Detections:
    """Detections of a picture in which nothing was found."""
    return Detections(image_id, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def _of_picture(found: Detections, annotations: Sequence[Mapping[str, Any]]) -> tuple[list[Miss], list[Miss]]:
    """Wrong detections and all objects of a picture, the latter with the score that they were found with."""
    objects = [one for one in annotations if not one["iscrowd"]]
    crowds = [one for one in annotations if one["iscrowd"]]
    (box_N4, label_N), (crowd_M4, crowd_label_M) = _arrays(objects), _arrays(crowds)
    order_K = np.argsort(-found.score_K, kind="stable")
    box_K4, label_K = found.box_K4[order_K].astype(np.float64), found.label_K[order_K]
    score_K = found.score_K[order_K].tolist()
    taken_K = pair(box_K4, label_K, box_N4=box_N4, label_N=label_N, crowd_M4=crowd_M4, crowd_label_M=crowd_label_M)
    overlap_KN = overlaps(box_K4, box_N4)
    wrong = []
    for place in np.flatnonzero(taken_K == NOTHING):
        miss = Miss(found.image_id, "invented", _box(box_K4[place]), int(label_K[place]), score_K[place])
        wrong.append(_explain(miss, overlap_KN[place], label_N))
    missed = []
    for number in range(len(objects)):
        own = np.flatnonzero(taken_K == number)
        score = score_K[own[0]] if len(own) else 0.0
        miss = Miss(found.image_id, "missed", _box(box_N4[number]), int(label_N[number]), score)
        # what is free (no other object's) and says something else here, with a higher score
        rivals = np.flatnonzero(
            (overlap_KN[:, number] >= OVERLAP) & (taken_K == NOTHING) & (label_K != label_N[number])
        )
        if len(rivals) and score_K[rivals[0]] > score:
            miss = replace(miss, other=int(label_K[rivals[0]]), other_score=score_K[rivals[0]])
        missed.append(miss)
    return wrong, missed


def _explain(miss: Miss, overlap_N: np.ndarray, label_N: np.ndarray) -> Miss:
    """Says of a wrong detection what is wrong with it."""
    if not len(label_N):
        return miss
    same_N = np.where(label_N == miss.label, overlap_N, 0.0)
    if same_N.max() >= OVERLAP:
        return replace(miss, kind="duplicate", other=miss.label)
    if overlap_N.max() >= OVERLAP:
        return replace(miss, kind="confused", other=int(label_N[overlap_N.argmax()]))
    return replace(miss, kind="misplaced", other=miss.label) if same_N.max() >= _NEAR else miss


def _arrays(annotations: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    box_N4 = np.array([one["bbox"] for one in annotations], dtype=np.float64).reshape(-1, 4)
    box_N4[:, 2:] += box_N4[:, :2]
    return box_N4, np.array([one["label"] for one in annotations], dtype=np.int64)


def _one_each(misses: Sequence[Miss], num: int) -> list[Miss]:
    """The first of each picture."""
    first: dict[int, Miss] = {}
    for miss in misses:
        first.setdefault(miss.image_id, miss)
    return list(first.values())[:num]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _box(box_4: np.ndarray) -> Box:
    x0, y0, x1, y1 = box_4.tolist()
    return x0, y0, x1, y1
