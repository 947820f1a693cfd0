"""An annotation file in COCO's layout (cocodataset.org/#format-data), checked once and kept in a few arrays.

As Python objects a file of COCO's size takes gigabytes, which every worker of a loader would copy page by page; as arrays and
two blocks of bytes it takes some hundred megabytes, which they share.

Shape letters: S pictures, A annotations, sorted by picture and in the file's order within one.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from evals.data.files import existing_file
from evals.detection.lvis_fields import LvisFields, file_name, read_lvis_fields
from evals.detection.samples import Rle
from pretrain.data.storage import PackedStrings, one_line
from pretrain.data.terminal import progress_bar
from pretrain.types import UserError

Json = dict[str, Any]
_WANTED = (
    'COCO\'s layout: "images" (id, file_name, width, height), "annotations" (id, image_id, category_id, bbox) and '
    '"categories" (id, name)'
)
#: COCO writes boxes with two decimals: reaching outside by so many pixels is rounding, and is no repair.
ROUNDING = 0.01
#: A polygon has three corners at least; shorter ones enclose nothing (mmdet and Detectron2 leave them out too).
_MIN_NUMBERS = 6
#: What `repairs` counts, and what is done about it.
REPAIRS = {
    "box_clipped": "reach outside their picture and are clipped",
    "box_outside": "lie outside their picture and are left out",
    "box_empty": "have no width or no height and are left out",
    "no_mask": "have no segmentation and are left out",
    "mask_empty": "have a segmentation without a pixel: they are not trained on, and stay in the ground truth",
    "no_area": "have no area: their mask's is taken, or their box's",
}


@dataclass(frozen=True)
class CocoFile:
    """What an annotation file says, repaired.

    Attributes:
        path: of the file.
        classes: names in the order of the category ids.
        category_ids: COCO's id of each class.
        image_id_S: int64, in the file's order.
        size_S2: int64, height and width.
        names: file name of each picture.
        start_S: int64, S + 1 numbers: the annotations of picture s are start_S[s] to start_S[s + 1].
        id_A: int64.
        label_A: int64, number of the class.
        xywh_A4: float64, as COCO has boxes: x, y, width, height.
        area_A: float64, of the segmentation in pixels, as the file gives it.
        crowd_A: bool, regions of many objects.
        unseen_A: bool, segmentations without a pixel.
        counts: compressed run-length encoding of each mask; None where masks are not asked for.
        lvis: LVIS's own fields; None of a file in COCO's layout.
        repairs: kind (see REPAIRS) and number of the picture, one for each annotation that was touched.
    """

    path: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_id_S: np.ndarray
    size_S2: np.ndarray
    names: PackedStrings
    start_S: np.ndarray
    id_A: np.ndarray
    label_A: np.ndarray
    xywh_A4: np.ndarray
    area_A: np.ndarray
    crowd_A: np.ndarray
    unseen_A: np.ndarray
    counts: PackedStrings | None
    lvis: LvisFields | None
    repairs: list[tuple[str, int]]

    def annotations(self, picture: int) -> slice:
        """Those of a picture."""
        return slice(int(self.start_S[picture]), int(self.start_S[picture + 1]))

    def rle(self, picture: int, annotation: int) -> Rle:
        """COCO's run-length encoding of a mask, with `counts` as text, so that it can be written as JSON."""
        return {"size": self.size_S2[picture].tolist(), "counts": self.counts[annotation]}


@dataclass
class _Row:
    """One annotation on its way into the arrays."""

    picture: int
    id: int
    label: int
    xywh: tuple[float, float, float, float]
    area: float
    crowd: bool
    unseen: bool
    counts: str


def read_coco_file(path: str | Path, *, with_masks: bool, lvis: bool = False) -> CocoFile:
    """Read and check a file of instances.

    Args:
        path: instances_*.json.
        with_masks: whether masks are wanted; annotations without one are left out then.
        lvis: whether the file is in LVIS's layout (see evals.detection.lvis_fields).

    Raises:
        UserError: the file is absent or not in this layout; an id is there twice; an annotation names a picture or a category
            that the file does not have, or has a box or a segmentation that is none.
    """
    path = existing_file(Path(path).expanduser(), wanted=f"an annotation file in {_WANTED}")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({one_line(error)}); it must be in {_WANTED}") from error
    for field in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not _is_list_of_dicts(content.get(field)):
            raise UserError(f"{path}: {field!r} is no list of entries; the file must be in {_WANTED}")
        if field != "annotations" and not content[field]:
            raise UserError(f"{path}: {field!r} is empty; the file must be in {_WANTED}")
    category_ids, classes = _categories(path, content["categories"])
    images = _images(path, content["images"], lvis=lvis)
    own = None
    if lvis:
        tables = {"images": content["images"], "categories": content["categories"]}
        own = read_lvis_fields(path, **tables, category_ids=category_ids)
    reader = _Annotations(path, images, category_ids, with_masks=with_masks)
    rows = list(reader.rows(content["annotations"]))
    if with_masks and reader.num_without_mask and not rows:
        raise UserError(f"{path}: no annotation has a segmentation; detect boxes only, or name a file with masks")
    rows.sort(key=lambda row: row.picture)  # stable: the file's order within a picture
    picture_A = np.array([row.picture for row in rows], dtype=np.int64)
    return CocoFile(
        path=path,
        classes=classes,
        category_ids=category_ids,
        image_id_S=np.array(list(images), dtype=np.int64),
        size_S2=np.array([(height, width) for _, height, width in images.values()], dtype=np.int64),
        names=PackedStrings(name for name, _, _ in images.values()),
        start_S=np.searchsorted(picture_A, np.arange(len(images) + 1)),
        id_A=np.array([row.id for row in rows], dtype=np.int64),
        label_A=np.array([row.label for row in rows], dtype=np.int64),
        xywh_A4=np.array([row.xywh for row in rows], dtype=np.float64).reshape(-1, 4),
        area_A=np.array([row.area for row in rows], dtype=np.float64),
        crowd_A=np.array([row.crowd for row in rows], dtype=bool),
        unseen_A=np.array([row.unseen for row in rows], dtype=bool),
        counts=PackedStrings(row.counts for row in rows) if with_masks else None,
        lvis=own,
        repairs=reader.repairs,
    )


def _is_list_of_dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _whole(entry: Json, field: str, where: str, *, least: int | None = None) -> int:
    """A whole number, which some tools write as 640.0."""
    value = entry.get(field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        bound = "" if least is None else f", {least} or more"
        raise UserError(f"{where}: {field} is {value!r:.40}; it must be a whole number{bound}")
    return value


def _text(entry: Json, field: str, where: str) -> str:
    value = entry.get(field)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {field} is {value!r:.40}; it must be a text")
    return value


def _categories(path: Path, categories: Sequence[Json]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ids, which may have gaps, in rising order, and names."""
    named: dict[int, str] = {}
    for number, category in enumerate(categories):
        where = f"{path}: categories[{number}]"
        category_id, name = _whole(category, "id", where), _text(category, "name", where)
        if category_id in named or name in named.values():
            raise UserError(f"{where}: id {category_id} or name {name!r} is there twice; each class needs its own")
        named[category_id] = name
    ids = sorted(named)
    return tuple(ids), tuple(named[category_id] for category_id in ids)


def _images(path: Path, images: Sequence[Json], *, lvis: bool) -> dict[int, tuple[str, int, int]]:
    """Id -> file name, height, width, in the file's order."""
    found: dict[int, tuple[str, int, int]] = {}
    for number, image in enumerate(images):
        image_id = _whole(image, "id", f"{path}: images[{number}]")
        where = f"{path}: image {image_id}"
        if image_id in found:
            raise UserError(f"{where} is there twice; each picture needs an id of its own")
        if not lvis and "file_name" not in image and "coco_url" in image:
            raise UserError(f"{where} has a coco_url and no file_name: a file in LVIS's layout is read with kind: lvis")
        name = file_name(path, image) if lvis else _text(image, "file_name", where)
        found[image_id] = name, _whole(image, "height", where, least=1), _whole(image, "width", where, least=1)
    return found


class _Annotations:
    """Checks and repairs the annotations of a file, one by one."""

    def __init__(
        self, path: Path, images: dict[int, tuple[str, int, int]], category_ids: tuple[int, ...], *, with_masks: bool
    ) -> None:
        self.path, self.with_masks = path, with_masks
        self._pictures = {image_id: (s, *size) for s, (image_id, (_, *size)) in enumerate(images.items())}
        self._labels = {category_id: label for label, category_id in enumerate(category_ids)}
        self._ids: set[int] = set()
        self.repairs: list[tuple[str, int]] = []
        self.num_without_mask = 0

    def rows(self, annotations: Sequence[Json]) -> Iterator[_Row]:
        with progress_bar() as bar:
            for number, annotation in enumerate(bar.track(annotations, description=f"read {self.path.name}")):
                if (row := self._row(number, annotation)) is not None:
                    yield row

    def _row(self, number: int, annotation: Json) -> _Row | None:
        """None where the annotation is left out; that is counted."""
        annotation_id = _whole(annotation, "id", f"{self.path}: annotations[{number}]")
        where = f"{self.path}: annotation {annotation_id}"
        if annotation_id in self._ids:
            raise UserError(f"{where} is there twice; each annotation needs an id of its own")
        self._ids.add(annotation_id)
        image_id, category_id = _whole(annotation, "image_id", where), _whole(annotation, "category_id", where)
        if image_id not in self._pictures:
            raise UserError(f"{where}: image_id {image_id} is none of the {len(self._pictures):,} pictures of the file")
        if category_id not in self._labels:
            raise UserError(f"{where}: category_id {category_id} is none of the {len(self._labels)} of the file")
        picture, height, width = self._pictures[image_id]
        if (xywh := self._box(annotation.get("bbox"), picture, height, width, where)) is None:
            return None
        rle = segmentation_rle(annotation.get("segmentation"), height, width, where) if self.with_masks else None
        if self.with_masks and rle is None:
            self.num_without_mask += 1
            return self._left_out("no_mask", picture)
        mask_area = None if rle is None else int(coco_mask.area(rle))
        if mask_area == 0:
            self.repairs.append(("mask_empty", picture))
        area = annotation.get("area")
        if area is None:
            self.repairs.append(("no_area", picture))
            area = xywh[2] * xywh[3] if mask_area is None else mask_area
        if not isinstance(area, int | float) or not 0 <= area < math.inf:
            raise UserError(f"{where}: area is {area!r:.40}; it must be a number of pixels, 0 or more")
        crowd = bool(_whole(annotation, "iscrowd", where)) if "iscrowd" in annotation else False
        counts = "" if rle is None else rle["counts"].decode("ascii")
        label = self._labels[category_id]
        return _Row(picture, annotation_id, label, xywh, float(area), crowd, mask_area == 0, counts)

    def _left_out(self, kind: str, picture: int) -> None:
        self.repairs.append((kind, picture))

    def _box(
        self, bbox: Any, picture: int, height: int, width: int, where: str
    ) -> tuple[float, float, float, float] | None:
        """The part of a box inside its picture; a box that is inside stays as it is written, to the last bit."""
        try:
            x, y, w, h = (float(number) for number in bbox)
        except (TypeError, ValueError):
            x = y = w = h = math.nan
        if not all(map(math.isfinite, (x, y, w, h))):
            raise UserError(f"{where}: bbox is {bbox!r:.60}; it must be four numbers: x, y, width, height in pixels")
        if w <= 0 or h <= 0:
            return self._left_out("box_empty", picture)
        x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
        if x1 <= x0 or y1 <= y0:
            return self._left_out("box_outside", picture)
        if max(x0 - x, y0 - y, x + w - x1, y + h - y1) <= ROUNDING:
            return x, y, w, h
        self.repairs.append(("box_clipped", picture))
        return x0, y0, x1 - x0, y1 - y0


def segmentation_rle(segmentation: Any, height: int, width: int, where: str) -> Rle | None:
    """A segmentation of any of COCO's three kinds (polygons; run lengths as numbers or as text) as compressed run lengths.

    What polygons enclose outside the picture is cut off, as pycocotools does.

    Args:
        segmentation: as the file has it.
        height: of the picture, which is the mask's.
        width: likewise.
        where: names file and annotation, for errors.

    Returns:
        {"size": [height, width], "counts": bytes}; None where there is none.

    Raises:
        UserError: it is of none of these kinds, or does not fit the picture.
    """
    if not segmentation:
        return None
    wanted = "it must be polygons [[x, y, x, y, ...], ...] or run lengths {size: [height, width], counts: ...}"
    try:
        if isinstance(segmentation, dict):
            return _checked_rle(segmentation, height, width)
        polygons = [np.array(polygon, dtype=np.float64) for polygon in segmentation]
        if any(len(polygon) % 2 or not np.isfinite(polygon).all() for polygon in polygons):
            raise ValueError("a polygon has an odd number of values, or one that is no number")
        polygons = [polygon.tolist() for polygon in polygons if len(polygon) >= _MIN_NUMBERS]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)) if polygons else None
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise UserError(f"{where}: its segmentation cannot be read ({one_line(error)}); {wanted}") from error


def _checked_rle(segmentation: Json, height: int, width: int) -> Rle:
    size, counts = segmentation["size"], segmentation["counts"]
    if list(size) != [height, width]:
        raise ValueError(f"its size is {size}, the picture's height and width are {[height, width]}")
    if isinstance(counts, list):
        if any(not isinstance(count, int) or count < 0 for count in counts) or sum(counts) != height * width:
            raise ValueError(f"its counts are not whole numbers that add up to {height} x {width}")
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    rle = {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else bytes(counts)}
    coco_mask.decode(rle)  # raises where the text is no run lengths of this size
    return rle
