"""Pictures with boxes, masks and crowd regions from files in COCO's official layout; read one by one.

Shape letters: S pictures of the set, N objects, M regions of crowds, H/W pixels.
"""

import copy
import logging
import os
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from evals.data.files import existing_folder, first, read_as_stored
from evals.data.labelled import BadSample
from evals.detection.coco_file import REPAIRS, read_coco_file
from evals.detection.samples import Objects
from pretrain.data.storage import digest, read_picture, spread_order
from pretrain.types import UserError

_log = logging.getLogger(__name__)
#: Pictures whose bytes are part of the identity, and how many are looked for when a set is made.
_NUM_SPREAD, _NUM_LOOKED_FOR = 20, 8


class CocoSet:
    """One split of a detection data set.

    Classes are numbered without gaps in the order of COCO's category ids. Pictures without annotations stay: they are
    negatives; so do classes without objects, which evaluation gives no AP. Crowd regions are no objects.

    Args:
        annotations: file of instances.
        images: folder that file names are relative to.
        name: the data set's.
        split: "train" or "test": what the split is for.
        with_masks: whether masks are read; annotations without a segmentation are left out then, and counted.
        synthetic: whether pictures are generated.
        lvis: whether the file is in LVIS's layout: `images` is COCO's folder then, which holds train2017 and val2017.

    Attributes:
        classes: names, by class number.
        category_ids: COCO's ids, by class number.
        image_ids: int64 [S], COCO's, in the order of the set.
        num_leaks: training pictures that were left out because the test set has them (`evals.detection.datasets.without_leaks`).

    Raises:
        UserError: as `evals.detection.coco_file.read_coco_file`, and where the folder is missing or holds none of the pictures.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        *,
        name: str,
        split: str,
        with_masks: bool = True,
        synthetic: bool = False,
        lvis: bool = False,
    ) -> None:
        self.folder = existing_folder(images, wanted=f"the pictures that {annotations} names")
        self._file = read_coco_file(annotations, with_masks=with_masks, lvis=lvis)
        self.name, self.split, self.with_masks, self.synthetic = name, split, with_masks, synthetic
        self.classes, self.category_ids = self._file.classes, self._file.category_ids
        self._picture_S = np.arange(len(self._file.image_id_S))
        self._identity: str | None = None
        self.num_leaks = 0
        self._resolved = self.folder.resolve()
        self._look_for_pictures()
        if self.repaired:
            _log.warning("%s: %s", self._file.path, self.describe_repairs())

    def _look_for_pictures(self) -> None:
        some = [self.file(index) for index in islice(spread_order(len(self)), _NUM_LOOKED_FOR)]
        if not any(path.is_file() for path in some):
            raise UserError(
                f"path: {str(self.folder)!r} lacks the pictures that {self._file.path} names, e.g. "
                f"{self.key(0)!r}; name the folder that holds them"
            )

    @property
    def lvis(self) -> bool:
        """Whether only some classes are annotated on each picture, as LVIS says and its evaluation needs."""
        return self._file.lvis is not None

    @property
    def image_ids(self) -> np.ndarray:
        return self._file.image_id_S[self._picture_S]

    @property
    def repaired(self) -> dict[str, int]:
        """How many annotations of these pictures were clipped or left out, by kind; `coco_file.REPAIRS` says what each means."""
        chosen = set(self._picture_S.tolist())
        counts = Counter(kind for kind, picture in self._file.repairs if picture in chosen)
        return {kind: counts[kind] for kind in REPAIRS if counts[kind]}

    def describe_repairs(self) -> str:
        """One line; "" where nothing was touched."""
        return "; ".join(f"{count:,} annotations {REPAIRS[kind]}" for kind, count in self.repaired.items())

    @property
    def counts(self) -> dict[str, int]:
        """What is there: pictures, pictures without objects, objects, crowd regions, classes, classes without objects."""
        parts = [self._file.annotations(picture) for picture in self._picture_S]
        objects = [self._file.label_A[part][~self._file.crowd_A[part]] for part in parts]
        num_objects = sum(map(len, objects))
        return {
            "pictures": len(self),
            "pictures_without_objects": sum(not len(labels) for labels in objects),
            "objects": num_objects,
            "crowds": sum(part.stop - part.start for part in parts) - num_objects,
            "classes": len(self.classes),
            "classes_without_objects": len(self.classes) - len(np.unique(np.concatenate(objects))),
        }

    def __len__(self) -> int:
        return len(self._picture_S)

    def key(self, index: int) -> str:
        """The picture's file name, as the annotations have it."""
        return self._file.names[int(self._picture_S[index])]

    def file(self, index: int) -> Path:
        return self.folder / self.key(index)

    def place(self, index: int) -> str:
        """Where a picture lies, the same for all sets that share its folder."""
        return os.path.normpath(self._resolved / self.key(index))

    def load(self, index: int) -> tuple[Image.Image, Objects]:
        """The picture, RGB and as it is stored (COCO's annotations know no EXIF), and what is annotated, in its pixels.

        Raises:
            BadSample: the file is missing or cannot be decoded, or its size is not the one that the annotations are made for.
        """
        height, width = self._file.size_S2[self._picture_S[index]].tolist()
        rgb = read_as_stored(self.file(index), self.key(index), size=(height, width), source=self._file.path.name)
        return rgb, self.objects(index)

    def objects(self, index: int) -> Objects:
        """What is annotated on a picture, without reading it."""
        file, picture = self._file, int(self._picture_S[index])
        part = file.annotations(picture)
        height, width = file.size_S2[picture].tolist()
        corners = file.xywh_A4[part].copy()
        corners[:, 2:] += corners[:, :2]
        np.clip(corners, 0, (width, height, width, height), out=corners)
        crowd = file.crowd_A[part]
        chosen = ~crowd & ~file.unseen_A[part]
        mask_NHW = None
        if file.counts is not None:
            rles = [file.rle(picture, number) for number in part.start + np.flatnonzero(chosen)]
            mask_HWN = coco_mask.decode(rles) if rles else np.zeros((height, width, 0), dtype=np.uint8)
            mask_NHW = torch.from_numpy(np.ascontiguousarray(mask_HWN.transpose(2, 0, 1)).astype(bool))
        return Objects(
            box_N4=torch.from_numpy(corners[chosen].astype(np.float32)),
            label_N=torch.from_numpy(file.label_A[part][chosen]),
            mask_NHW=mask_NHW,
            crowd_M4=torch.from_numpy(corners[crowd].astype(np.float32)),
        )

    def ground_truth(self) -> dict[str, Any]:
        """These pictures and their repaired annotations as COCO's (or LVIS's) evaluation reads them; masks as run lengths.

        pycocotools takes an annotation of id 0 for none: where a file counts from 0, ids are moved up by one.
        """
        file, images, annotations = self._file, [], []
        first_id = int(file.id_A.min()) if len(file.id_A) else 1
        shift = max(0, 1 - first_id)
        for picture in self._picture_S.tolist():
            image_id = int(file.image_id_S[picture])
            height, width = file.size_S2[picture].tolist()
            image = {"id": image_id, "file_name": file.names[picture], "height": height, "width": width}
            images.append(image if file.lvis is None else image | file.lvis.of_picture(picture))
            part = file.annotations(picture)
            for number in range(part.start, part.stop):
                annotation = {
                    "id": int(file.id_A[number]) + shift,
                    "image_id": image_id,
                    "category_id": self.category_ids[file.label_A[number]],
                    "bbox": file.xywh_A4[number].tolist(),
                    "area": float(file.area_A[number]),
                    "iscrowd": int(file.crowd_A[number]),
                }
                if file.counts is not None:
                    annotation["segmentation"] = file.rle(picture, number)
                annotations.append(annotation)
        categories = [{"id": k, "name": name} for k, name in zip(self.category_ids, self.classes, strict=True)]
        if file.lvis is not None:
            for category, frequency in zip(categories, file.lvis.frequency, strict=True):
                category["frequency"] = frequency
        return {
            "info": {},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }

    def identity(self) -> str:
        """What decides pictures, their order and their annotations; the same on any machine."""
        if self._identity is None:
            file = self._file
            arrays = (file.image_id_S, file.size_S2, file.start_S, file.id_A, file.label_A, file.xywh_A4, file.area_A)
            masks = () if file.counts is None else file.counts.parts()
            lvis = () if file.lvis is None else file.lvis.parts()
            words = "\n".join([*map(str, self.category_ids), *self.classes]).encode()
            written = digest(*arrays, file.crowd_A, *file.names.parts(), *masks, *lvis, words)
            pixels = digest(*(self._bytes(index) for index in islice(spread_order(len(self)), _NUM_SPREAD)))
            self._identity = f"coco {written} pictures={digest(self._picture_S.astype(np.int64))} bytes={pixels}"
        return self._identity

    def _bytes(self, index: int) -> bytes:
        try:
            return read_picture(self.file(index), self.key(index))
        except BadSample:  # counted when it is loaded
            return b""

    def subset(self, image_ids: Sequence[int] | np.ndarray) -> Self:
        """Some pictures by COCO's id, in this order, with the same classes.

        Raises:
            UserError: an id that the set does not have, or one twice, or none at all.
        """
        wanted = [int(image_id) for image_id in image_ids]
        places = dict(zip(self.image_ids.tolist(), self._picture_S.tolist(), strict=True))
        if unknown := [str(image_id) for image_id in wanted if image_id not in places]:
            raise UserError(
                f"image_ids: {first(unknown)} are none of {self.name}'s {len(self):,} {self.split} pictures"
            )
        if not wanted or len(set(wanted)) < len(wanted):
            raise UserError(f"image_ids: {len(wanted)} ids, {len(set(wanted))} different ones; give each once")
        part = copy.copy(self)
        part._picture_S, part._identity = np.array([places[image_id] for image_id in wanted]), None
        return part
