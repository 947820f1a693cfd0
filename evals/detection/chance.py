"""Chance level of detection: the best that we know to do without a look at the picture.

Every test picture gets the same boxes, which are objects of training pictures, stretched to its size. Of each class they are
chosen one after the other (greedy maximum coverage): the next is the one that matches most training objects that those
before it do not, counted over COCO's ten overlaps. Its score is how many that are for each training picture, which orders
boxes of all classes by how likely they are right; its mask is where most of the objects are that it stands for. A detector has
to be above this to have seen anything; boxes drawn at random from the training objects are below it (a test holds that).

Shape letters: N objects, C candidates, T overlaps, K boxes that are chosen, G cells of a side of a mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from torch import from_numpy
from torchvision.ops import box_iou

from evals.detection.samples import Detections, Rle
from pretrain.rng import draw_rng
from pretrain.types import UserError

if TYPE_CHECKING:
    from evals.detection.coco_set import CocoSet

Annotation = Mapping[str, Any]
_OVERLAPS = np.linspace(0.5, 0.95, 10)
#: Of a class with more objects, this many are looked at, and so many of these stand for choice.
_MAX_OBJECTS, _MAX_CANDIDATES = 2000, 500
#: Objects whose masks one mask is made of, at most, and cells of the grid that they are brought to.
_MAX_MASKS, _MASK_CELLS = 50, 128


@dataclass(frozen=True)
class _Pick:
    """A box for any picture.

    Attributes:
        score: training objects that it matches and those before it do not, for each picture.
        label: class number.
        box: x0, y0, x1, y1 as fractions of the picture's sides.
        annotations: objects that it matches at overlap .50, and its own.
    """

    score: float
    label: int
    box: np.ndarray
    annotations: list[Annotation]


def blind_detections(
    train: "CocoSet", test: "CocoSet", *, num: int = 100, seed: int = 0, with_masks: bool = False
) -> list[Detections]:
    """Detections of the test pictures by a detector that has not looked at them.

    Args:
        train: where boxes, masks and scores come from: its annotations only, no picture is read.
        test: the pictures; only their ids and sizes are used.
        num: boxes for each picture, 100 as COCO counts; fewer where further ones match no training object.
        seed: of the draw of objects from classes that have many.
        with_masks: give each box a mask.

    Raises:
        UserError: the training pictures have no objects, or no masks where they are wanted; the two sets have other classes.
    """
    if tuple(train.category_ids) != tuple(test.category_ids):
        raise UserError(
            f"chance level: {train.name} has categories {list(train.category_ids)} and {test.name} "
            f"{list(test.category_ids)}; they must be the same"
        )
    truth = train.ground_truth()
    images = {image["id"]: image for image in truth["images"]}
    picks = _choose(truth["annotations"], images, train.category_ids, num=num, seed=seed)
    box_K4 = np.stack([pick.box for pick in picks])
    score_K = np.minimum([pick.score for pick in picks], 1.0).astype(np.float32)
    label_K = np.array([pick.label for pick in picks], dtype=np.int64)
    mask_KGG = [_mean_mask(pick.annotations, images) for pick in picks] if with_masks else None
    stretched: dict[tuple[int, int], list[Rle]] = {}
    detections = []
    for image in test.ground_truth()["images"]:
        size = height, width = int(image["height"]), int(image["width"])
        if mask_KGG is not None and size not in stretched:
            stretched[size] = [_stretch(mask_GG, size) for mask_GG in mask_KGG]
        own_K4 = (box_K4 * np.array([width, height, width, height])).astype(np.float32)
        detections.append(Detections(int(image["id"]), own_K4, score_K, label_K, stretched.get(size)))
    return detections


def _choose(
    annotations: list[Annotation],
    images: Mapping[int, Annotation],
    category_ids: tuple[int, ...],
    *,
    num: int,
    seed: int,
) -> list[_Pick]:
    """The `num` best of all classes."""
    if num < 1:
        raise UserError(f"chance level: num={num} boxes for each picture; it must be 1 or more")
    of_class: dict[int, list[Annotation]] = {number: [] for number in category_ids}
    for annotation in annotations:
        if not annotation.get("iscrowd", 0) and annotation["category_id"] in of_class:
            of_class[annotation["category_id"]].append(annotation)
    if not any(of_class.values()):
        raise UserError(f"chance level: none of the {len(images)} training pictures has an object to take boxes from")
    picks: list[_Pick] = []
    for label, objects in enumerate(of_class.values()):
        if not objects:
            continue
        drawn = draw_rng(seed, "detection/chance", label).permutation(len(objects))[:_MAX_OBJECTS]
        box_N4 = np.array([_fractions(objects[index], images) for index in drawn])
        share = len(objects) / len(drawn) / len(images)  # those that were drawn stand for all
        for place, gain, matched in _greedy(box_N4, num=num):
            stands_for = [objects[drawn[number]] for number in dict.fromkeys([place, *matched])]
            picks.append(_Pick(gain * share, label, box_N4[place], stands_for))
    return sorted(picks, key=lambda pick: -pick.score)[:num]  # stable: ties by class


def _greedy(box_N4: np.ndarray, *, num: int) -> list[tuple[int, float, list[int]]]:
    """Boxes that match most of the boxes that are not matched yet.

    Returns:
        Of each: its place, how many it matches newly (the mean over overlaps), and which at overlap .50.
    """
    box = from_numpy(box_N4)
    iou_CN = box_iou(box[:_MAX_CANDIDATES], box).numpy()
    match_TCN = iou_CN >= _OVERLAPS[:, None, None]
    open_TN = np.ones((len(_OVERLAPS), len(box_N4)), dtype=bool)
    gain_C = match_TCN.sum((0, 2))
    chosen = []
    for _ in range(min(num, len(iou_CN))):
        best = int(gain_C.argmax())
        if gain_C[best] == 0:
            break
        newly_TN = open_TN & match_TCN[:, best]
        chosen.append((best, float(gain_C[best]) / len(_OVERLAPS), np.flatnonzero(newly_TN[0]).tolist()))
        for match_CN, newly_N in zip(match_TCN, newly_TN, strict=True):
            gain_C -= match_CN[:, newly_N].sum(1)
        open_TN &= ~newly_TN
    return chosen


def _fractions(annotation: Annotation, images: Mapping[int, Annotation]) -> list[float]:
    """An object's box as fractions of its picture's sides; overlaps of boxes stay when both are stretched alike."""
    height, width = _size(annotation, images)
    x, y, box_width, box_height = annotation["bbox"]
    return [x / width, y / height, (x + box_width) / width, (y + box_height) / height]


def _size(annotation: Annotation, images: Mapping[int, Annotation]) -> tuple[int, int]:
    image = images[annotation["image_id"]]
    return image["height"], image["width"]


def _mean_mask(annotations: list[Annotation], images: Mapping[int, Annotation]) -> np.ndarray:
    """How many of the objects are where in their pictures: [G, G] float32, 0..1."""
    return np.mean(
        [
            _resize(_mask(one, _size(one, images)).astype(np.float32), (_MASK_CELLS, _MASK_CELLS))
            for one in annotations[:_MAX_MASKS]
        ],
        axis=0,
    )


def _mask(annotation: Annotation, size: tuple[int, int]) -> np.ndarray:
    """An object's mask [H, W], 0 or 1."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        raise UserError(
            f"chance level: training annotation {annotation['id']} has no mask; without masks, give with_masks=False"
        )
    if isinstance(segmentation, list):  # polygons
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *size)
    return coco_mask.decode(segmentation)


def _resize(mask_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return np.asarray(Image.fromarray(mask_HW).resize((width, height), Image.Resampling.BILINEAR))


def _stretch(mask_GG: np.ndarray, size: tuple[int, int]) -> Rle:
    """Where half of the objects are, or as many as there are anywhere."""
    mask_HW = _resize(mask_GG, size)
    inside_HW = mask_HW >= np.clip(mask_HW.max(), 1e-6, 0.5)
    return coco_mask.encode(np.asfortranarray(inside_HW, dtype=np.uint8))
