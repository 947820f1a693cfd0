"""The two libraries that match detections with objects as COCO does, behind one pair of functions, and silent.

Shape letters: T overlaps, R levels of recall, K categories, A ranges of areas, M limits of detections.
"""

import contextlib
import importlib.util
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evals.detection.coco_records import IOU_TYPE, Json, Kind

#: COCO's limits of detections for each picture and category.
MAX_DETECTIONS = (1, 10, 100)
#: Place of "all" among the ranges of areas.
ALL_AREAS = 0


def faster_is_installed() -> bool:
    """Whether faster-coco-eval can be used."""
    return importlib.util.find_spec("faster_coco_eval") is not None


def match_with_pycocotools(truth: Json, found: list[Json], kind: Kind, *, areas: int = 4) -> COCOeval:
    """COCO's evaluator after its matching: `evalImgs` is filled, nothing is accumulated.

    Args:
        truth: of evals.detection.coco_records.truth_records.
        found: of evals.detection.coco_records.found_records.
        kind: "box" or "mask".
        areas: how many of COCO's ranges of areas (all, small, medium, large) are matched.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it has no switch for what it prints
        evaluator = COCOeval(_indexed(COCO(), truth), _indexed(COCO(), truth | {"annotations": found}), IOU_TYPE[kind])
        evaluator.params.maxDets = list(MAX_DETECTIONS)
        evaluator.params.areaRng = evaluator.params.areaRng[:areas]
        evaluator.params.areaRngLbl = evaluator.params.areaRngLbl[:areas]
        evaluator.evaluate()
    return evaluator


def with_pycocotools(truth: Json, found: list[Json], kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Precision [T, R, K, A] of a hundred detections, and recall [T, K, M] over all areas; -1 without objects."""
    evaluator = match_with_pycocotools(truth, found, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.accumulate()
    return evaluator.eval["precision"][..., -1], evaluator.eval["recall"][:, :, ALL_AREAS]


def with_faster(truth: Json, found: list[Json], kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`with_pycocotools`, of faster-coco-eval."""
    evaluation = faster_evaluator(truth, found, kind, max_detections=list(MAX_DETECTIONS), lvis=False).eval
    return np.asarray(evaluation["precision"])[..., -1], np.asarray(evaluation["recall"])[:, :, ALL_AREAS]


def faster_evaluator(truth: Json, found: list[Json], kind: Kind, *, max_detections: list[int], lvis: bool) -> Any:
    """faster-coco-eval's evaluator after its work: `eval` holds what it found."""
    # imported where it is used: it is not needed for COCO's scores
    from faster_coco_eval.core.coco import COCO as FasterCOCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    def silent(text: str) -> None:
        return None

    evaluator = COCOeval_faster(
        _indexed(FasterCOCO(print_function=silent), truth),
        _indexed(FasterCOCO(print_function=silent), truth | {"annotations": found}),
        IOU_TYPE[kind],
        print_function=silent,
        lvis_style=lvis,
    )
    evaluator.params.maxDets = max_detections
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator


def _indexed(coco: Any, records: Json) -> Any:
    """An index over records; both libraries' own loaders would copy them, and pycocotools' fails on an empty list."""
    coco.dataset = records
    coco.createIndex()
    return coco
