"""COCO's records of what is annotated and of what was found: what every COCO evaluator is fed with, checked and copied.

Evaluators write into the records that they are given, and take an annotation with id 0 for one that nothing was matched to;
so records are made anew here, numbered from 1.

Shape letters: K detections.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from evals.detection.samples import Detections
from pretrain.types import UserError

Json = dict[str, Any]
#: What is compared: boxes or masks.
Kind = Literal["box", "mask"]
#: Names that COCO's evaluators have for the kinds.
IOU_TYPE = {"box": "bbox", "mask": "segm"}


def check_kind(kind: str) -> None:
    """Raises UserError for a kind that is neither boxes nor masks."""
    if kind not in IOU_TYPE:
        raise UserError(f"kind={kind!r} of detections is unknown; it must be 'box' or 'mask'")


def class_names(ground_truth: Mapping[str, Any], category_ids: Sequence[int]) -> tuple[str, ...]:
    """Names of the classes, by class number.

    Raises:
        UserError: a category that the ground truth lacks, one that is given twice, or a name that two have.
    """
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    missing = [number for number in category_ids if number not in names]
    if missing:
        raise UserError(f"category_ids: {missing[0]} is not a category of the ground truth, which has {sorted(names)}")
    chosen = tuple(str(names[number]) for number in category_ids)
    if not chosen or len(set(chosen)) < len(chosen) or len(set(category_ids)) < len(category_ids):
        raise UserError(f"category_ids: {list(category_ids)} must be one or more categories, each once, with own names")
    return chosen


def truth_records(ground_truth: Mapping[str, Any], *, category_ids: Sequence[int], kind: Kind) -> Json:
    """The ground truth as a dict of COCO's instances of its own.

    Args:
        ground_truth: COCO's instances; `iscrowd` is 0 where it is not given.
        category_ids: categories that count; annotations of others are left out.
        kind: masks are needed for "mask" only.

    Raises:
        UserError: no pictures, pictures with one id, or an annotation that lacks something.
    """
    check_kind(kind)
    wanted = set(category_ids)
    images = [dict(image) for image in ground_truth["images"]]
    known = {image["id"] for image in images}
    if not images or len(known) < len(images):
        raise UserError(f"ground truth: {len(images)} pictures with {len(known)} ids; it must be 1 or more, an id each")
    fields = ("image_id", "category_id", "bbox", "area", *(("segmentation",) if kind == "mask" else ()))
    annotations = []
    for annotation in ground_truth["annotations"]:
        if annotation["category_id"] not in wanted:
            continue
        name = f"ground truth: annotation {annotation.get('id')}"
        lacking = [field for field in fields if annotation.get(field) in (None, [])]
        if lacking:
            raise UserError(f"{name} has no {lacking[0]!r}, which scores of kind {kind!r} need")
        if annotation["image_id"] not in known:
            raise UserError(f"{name} is of picture {annotation['image_id']}, which is not among the pictures")
        crowd = int(annotation.get("iscrowd", 0))
        annotations.append({field: annotation[field] for field in fields} | {"iscrowd": crowd})
    categories = [dict(category) for category in ground_truth["categories"] if category["id"] in wanted]
    return {"images": images, "annotations": _numbered(annotations), "categories": categories}


def found_records(
    detections: Sequence[Detections],
    *,
    images: Sequence[Mapping[str, Any]],
    category_ids: Sequence[int],
    kind: Kind,
) -> list[Json]:
    """Detections as COCO's results, with what evaluators add to them on loading (`id`, `area`, `iscrowd`).

    The area of a mask's record is the mask's, that of a box's the box's; COCO's own loader takes the box's for both where both
    are given, so that detections would be sorted into small, medium and large in another way than objects are.

    Args:
        detections: one for each picture in which something was found; a picture without any is one without detections.
        images: COCO's records of the pictures: id, height and width.
        category_ids: COCO's number of each class.
        kind: what the records hold: boxes (x, y, width, height) or masks.

    Raises:
        UserError: a picture that is not among `images` or given twice; scores or boxes that are not finite; a class number
            without a category; a box that ends in front of its start; masks that are missing or of another size.
    """
    check_kind(kind)
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in images}
    records: list[Json] = []
    seen: set[int] = set()
    for found in detections:
        if found.image_id not in sizes or found.image_id in seen:
            fault = "are given twice" if found.image_id in seen else "belong to no picture of the ground truth"
            raise UserError(f"detections of picture {found.image_id} {fault}; there must be one entry for each picture")
        seen.add(found.image_id)
        _check(found, num_classes=len(category_ids))
        shapes = _boxes(found) if kind == "box" else _masks(found, sizes[found.image_id])
        for shape, label, confidence in zip(shapes, found.label_K.tolist(), found.score_K.tolist(), strict=True):
            head = {"image_id": found.image_id, "category_id": category_ids[label], "score": confidence, "iscrowd": 0}
            records.append(head | shape)
    return _numbered(records)


def _numbered(records: list[Json]) -> list[Json]:
    for number, record in enumerate(records, start=1):
        record["id"] = number
    return records


def _check(found: Detections, *, num_classes: int) -> None:
    name = f"detections of picture {found.image_id}"
    shapes = found.box_K4.shape, found.score_K.shape, found.label_K.shape
    if shapes != ((len(found), 4), (len(found),), (len(found),)):
        raise UserError(f"{name}: boxes, scores and labels of shapes {shapes}; they must be [K, 4], [K] and [K]")
    for what, values in (("score", found.score_K), ("box", found.box_K4)):
        wrong = ~np.isfinite(values)
        if wrong.any():
            raise UserError(f"{name}: a {what} is {values[wrong][0]}; all must be finite numbers")
    if len(found) and not 0 <= found.label_K.min() <= found.label_K.max() < num_classes:
        worst = max(found.label_K.min(), found.label_K.max(), key=lambda label: abs(label - (num_classes - 1) / 2))
        raise UserError(
            f"{name}: class number {worst}; there are {num_classes} classes, so it must be 0..{num_classes - 1}"
        )
    backwards = (found.box_K4[:, 2:] < found.box_K4[:, :2]).any(1)
    if backwards.any():
        raise UserError(
            f"{name}: box {found.box_K4[backwards][0].tolist()}; it must be x0, y0, x1, y1 with x0 <= x1, y0 <= y1"
        )


def _boxes(found: Detections) -> list[Json]:
    corner_K4 = found.box_K4.astype(np.float64)  # a difference of float32 would be rounded
    side_K2 = corner_K4[:, 2:] - corner_K4[:, :2]
    boxes = np.concatenate([corner_K4[:, :2], side_K2], axis=1).tolist()
    return [{"bbox": box, "area": area} for box, area in zip(boxes, side_K2.prod(1).tolist(), strict=True)]


def _masks(found: Detections, size: tuple[int, int]) -> list[Json]:
    name = f"detections of picture {found.image_id}"
    if found.masks is None or len(found.masks) != len(found):
        count = "no" if found.masks is None else str(len(found.masks))
        raise UserError(f"{name}: {count} masks for {len(found)} boxes; scores of kind 'mask' need one for each")
    for mask in found.masks:
        if tuple(mask["size"]) != size:
            raise UserError(f"{name}: a mask of {tuple(mask['size'])} pixels (height, width); the picture has {size}")
    # one by one: pycocotools 2.0.11 fails on the areas of more than 255 masks at once
    return [{"segmentation": mask, "area": float(coco_mask.area(mask))} for mask in found.masks]
