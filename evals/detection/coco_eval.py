"""COCO's average precision of detections, and LVIS's: from pycocotools, or faster from faster-coco-eval with the same numbers.

What is measured: Lin et al. 2014 and cocodataset.org/#detection-eval. AP is the mean of precision over 101 levels of recall, ten
overlaps (.50:.05:.95) and the categories that have objects; a hundred detections of a picture and category count. An object
is small below 32^2 pixels of its mask in the file's picture, large above 96^2, whatever the picture's size.

Shape letters: T overlaps, R levels of recall, K categories, A ranges of areas, M limits of detections.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evals.detection.coco_evaluators import (
    ALL_AREAS,
    faster_evaluator,
    faster_is_installed,
    with_faster,
    with_pycocotools,
)
from evals.detection.coco_records import Json, Kind, class_names, found_records, truth_records
from evals.detection.samples import Detections
from pretrain.types import UserError

Backend = Literal["auto", "pycocotools", "faster"]
#: LVIS's limit of detections for each picture.
LVIS_MAX_DETECTIONS = 300
#: Places among the ten overlaps, and among the ranges of areas.
IOU50, IOU75 = 0, 5
_SMALL, _MEDIUM, _LARGE = 1, 2, 3
#: LVIS's groups of categories, by how many training pictures have them: below 10, below 100, more (Gupta et al. 2019, 4.2).
_FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}


@dataclass(frozen=True)
class CocoScores:
    """Scores in percent; None where there is no such object.

    Attributes:
        kind: "box" or "mask".
        backend: "pycocotools" or "faster".
        ap: mean over overlaps .50:.05:.95.
        ap50: at overlap .50.
        ap75: at overlap .75.
        ap_small: of objects below 32^2 pixels.
        ap_medium: of those between.
        ap_large: of objects above 96^2 pixels.
        ar1: highest recall with one detection for each picture and category, mean over overlaps.
        ar10: with ten.
        ar100: with a hundred.
        per_class: `ap` of each class by name, in the order of class numbers.
        num_images: pictures.
        num_objects: objects looked for; crowds are not among them.
        precision_RK: 0..1 at overlap .50 and recall 0, .01, .., 1 of each class; nan for classes without objects.
    """

    kind: Kind
    backend: str
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    per_class: dict[str, float | None]
    num_images: int
    num_objects: int
    precision_RK: np.ndarray

    def metrics(self) -> dict[str, float | None]:
        """The plain numbers by name, as they go into results."""
        names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class LvisScores:
    """Scores in percent; None where there is no such object.

    Attributes:
        kind: "box" or "mask".
        ap: over all categories, mean over overlaps .50:.05:.95.
        ap50: at overlap .50.
        ap75: at overlap .75.
        ap_rare: `ap` of categories in fewer than 10 training pictures.
        ap_common: in fewer than 100.
        ap_frequent: in 100 and more.
        per_class: `ap` of each class by name, in the order of class numbers.
        num_images: pictures.
        num_objects: objects looked for.
    """

    kind: Kind
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_rare: float | None
    ap_common: float | None
    ap_frequent: float | None
    per_class: dict[str, float | None]
    num_images: int
    num_objects: int

    def metrics(self) -> dict[str, float | None]:
        """The plain numbers by name, as they go into results."""
        names = ("ap", "ap50", "ap75", "ap_rare", "ap_common", "ap_frequent")
        return {name: getattr(self, name) for name in names}


def score(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Detections],
    *,
    category_ids: Sequence[int],
    kind: Kind = "box",
    backend: Backend = "auto",
) -> CocoScores:
    """COCO's scores of detections.

    Args:
        ground_truth: COCO's instances (images, annotations, categories) of exactly the pictures that are scored.
        detections: of these pictures; one that is not among them counts as one where nothing was found.
        category_ids: COCO's number of each class of the detector.
        kind: whether boxes or masks are compared.
        backend: "auto" takes faster-coco-eval where it is installed.

    Raises:
        UserError: an unknown backend or one that is not installed; records that do not fit (see evals.detection.coco_records).
    """
    chosen = _choose(backend)
    names = class_names(ground_truth, category_ids)
    truth = truth_records(ground_truth, category_ids=category_ids, kind=kind)
    found = found_records(detections, images=truth["images"], category_ids=category_ids, kind=kind)
    evaluate = with_faster if chosen == "faster" else with_pycocotools
    precision_TRKA, recall_TKM = evaluate(truth, found, kind)
    order_K = _class_order(category_ids)
    ap_K = [_percent(precision_TRKA[:, :, k, ALL_AREAS]) for k in order_K]
    precision_RK = precision_TRKA[IOU50][:, order_K, ALL_AREAS]
    by_area = (_percent(precision_TRKA[..., area]) for area in (ALL_AREAS, _SMALL, _MEDIUM, _LARGE))
    ap, ap_small, ap_medium, ap_large = by_area
    ar1, ar10, ar100 = (_percent(recall_TKM[..., limit]) for limit in range(3))
    return CocoScores(
        kind=kind,
        backend=chosen,
        ap=ap,
        ap50=_percent(precision_TRKA[IOU50, ..., ALL_AREAS]),
        ap75=_percent(precision_TRKA[IOU75, ..., ALL_AREAS]),
        ap_small=ap_small,
        ap_medium=ap_medium,
        ap_large=ap_large,
        ar1=ar1,
        ar10=ar10,
        ar100=ar100,
        per_class=dict(zip(names, ap_K, strict=True)),
        num_images=len(truth["images"]),
        num_objects=_count_objects(truth),
        precision_RK=np.where(precision_RK > -1, precision_RK, np.nan),
    )


def score_lvis(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Detections],
    *,
    category_ids: Sequence[int],
    kind: Kind = "box",
) -> LvisScores:
    """LVIS's scores (Gupta et al. 2019): only some categories are annotated on each picture, the others do not count.

    A detection counts on pictures that have its category or list it as absent (`neg_category_ids`); where not all of its
    objects are annotated (`not_exhaustive_category_ids`), one that matches nothing is not wrong. The 300 best of a picture count.

    Args:
        ground_truth: LVIS's annotations; pictures with `neg_category_ids` and `not_exhaustive_category_ids`, categories with
            `frequency` "r", "c" or "f".
        detections: as of :func:`score`.
        category_ids: LVIS's number of each class of the detector.
        kind: whether boxes or masks are compared.

    Raises:
        UserError: faster-coco-eval is not installed; ground truth in COCO's layout; records that do not fit.
    """
    if not faster_is_installed():
        raise UserError("LVIS's scores need faster-coco-eval, which is not installed: run `make env`")
    names = class_names(ground_truth, category_ids)
    truth = truth_records(ground_truth, category_ids=category_ids, kind=kind)
    frequency = _frequencies(truth)
    best = [_best(found, LVIS_MAX_DETECTIONS) for found in detections]
    found = found_records(best, images=truth["images"], category_ids=category_ids, kind=kind)
    # the evaluator leaves them out too, but of masks fails on those on pictures without objects (faster-coco-eval 1.8.0)
    searched = _searched(truth)
    found = [record for record in found if (record["image_id"], record["category_id"]) in searched]
    evaluator = faster_evaluator(truth, found, kind, max_detections=[LVIS_MAX_DETECTIONS], lvis=True)
    precision_TRK = np.asarray(evaluator.eval["precision"])[..., ALL_AREAS, -1]
    order_K = _class_order(category_ids)

    def of_group(group: str) -> float | None:
        return _percent(precision_TRK[:, :, [k for k, name in enumerate(frequency) if name == group]])

    return LvisScores(
        kind=kind,
        ap=_percent(precision_TRK),
        ap50=_percent(precision_TRK[IOU50]),
        ap75=_percent(precision_TRK[IOU75]),
        ap_rare=of_group("r"),
        ap_common=of_group("c"),
        ap_frequent=of_group("f"),
        per_class={name: _percent(precision_TRK[:, :, k]) for name, k in zip(names, order_K, strict=True)},
        num_images=len(truth["images"]),
        num_objects=_count_objects(truth),
    )


def _choose(backend: str) -> str:
    if backend not in ("auto", "pycocotools", "faster"):
        raise UserError(
            f"backend={backend!r} of COCO's scores is unknown; it must be 'auto', 'pycocotools' or 'faster'"
        )
    if backend == "faster" and not faster_is_installed():
        raise UserError(
            "backend='faster' of COCO's scores needs faster-coco-eval, which is not installed: run `make env`"
        )
    if backend == "auto":
        return "faster" if faster_is_installed() else "pycocotools"
    return backend


def _class_order(category_ids: Sequence[int]) -> list[int]:
    """For each class, the place of its category among the evaluator's, which go by number."""
    return [sorted(category_ids).index(number) for number in category_ids]


def _percent(values: np.ndarray) -> float | None:
    """Mean of what is not marked as absent (-1)."""
    present = values[values > -1]
    return 100 * float(present.mean()) if present.size else None


def _count_objects(truth: Json) -> int:
    return sum(not annotation["iscrowd"] for annotation in truth["annotations"])


def _frequencies(truth: Json) -> list[str]:
    """LVIS's group of each category by number, after a check that this is LVIS's layout."""
    for image in truth["images"]:
        for field in ("neg_category_ids", "not_exhaustive_category_ids"):
            if field not in image:
                raise UserError(
                    f"ground truth: picture {image['id']} has no {field!r}; LVIS's scores need LVIS's annotations"
                )
    for category in truth["categories"]:
        if category.get("frequency") not in _FREQUENCIES:
            raise UserError(
                f"ground truth: category {category['name']!r} has frequency {category.get('frequency')!r}; "
                "LVIS's scores need 'r', 'c' or 'f'"
            )
    return [category["frequency"] for category in sorted(truth["categories"], key=lambda category: category["id"])]


def _searched(truth: Json) -> set[tuple[int, int]]:
    """Pairs of picture and category that LVIS's annotations say something about."""
    present = {(annotation["image_id"], annotation["category_id"]) for annotation in truth["annotations"]}
    return present | {(image["id"], absent) for image in truth["images"] for absent in image["neg_category_ids"]}


def _best(found: Detections, limit: int) -> Detections:
    if len(found) <= limit:
        return found
    kept = np.argsort(-found.score_K, kind="stable")[:limit]
    masks = None if found.masks is None else [found.masks[index] for index in kept]
    return Detections(found.image_id, found.box_K4[kept], found.score_K[kept], found.label_K[kept], masks)
