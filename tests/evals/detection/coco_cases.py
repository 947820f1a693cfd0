"""Ground truth in COCO's layout and detections of it, for tests of scores."""

import numpy as np
from pycocotools import mask as coco_mask

from evals.detection.samples import Detections
from pretrain.data.scene_layouts import coco_instances
from pretrain.data.scenes import LEVELS, SHAPES, draw_scene

SHAPE_IDS = tuple(range(1, len(SHAPES) + 1))


class GroundTruthSet:
    """What evaluations of detections ask of a data set, from a dict of COCO's instances."""

    def __init__(self, ground_truth, *, name="made"):
        self.name, self._ground_truth = name, ground_truth
        self.category_ids = tuple(category["id"] for category in ground_truth["categories"])
        self.classes = tuple(category["name"] for category in ground_truth["categories"])

    def ground_truth(self):
        return self._ground_truth


def rectangle(box, size):
    """The mask of a box with whole corners, x0, y0, x1, y1."""
    mask_HW = np.zeros(size, dtype=np.uint8)
    x0, y0, x1, y1 = map(int, box)
    mask_HW[y0:y1, x0:x1] = 1
    return coco_mask.encode(np.asfortranarray(mask_HW))


def made_truth(objects, *, size=(100, 120), classes=("cat", "dog"), num_images=None):
    """Ground truth from (picture, class number, box, crowd); pictures are numbered from 1, categories 10, 20, ..."""
    num_images = num_images or max(one[0] for one in objects)
    return {
        "images": [{"id": k + 1, "height": size[0], "width": size[1]} for k in range(num_images)],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": 10 * (label + 1),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": float((x1 - x0) * (y1 - y0)),
                "iscrowd": int(crowd),
                "segmentation": rectangle((x0, y0, x1, y1), size),
            }
            for number, (image_id, label, (x0, y0, x1, y1), crowd) in enumerate(objects, start=1)
        ],
        "categories": [{"id": 10 * (label + 1), "name": name} for label, name in enumerate(classes)],
    }


def made_detections(image_id, found, *, size=(100, 120), with_masks=True):
    """Detections from (class number, score, box)."""
    boxes = [box for _, _, box in found]
    return Detections(
        image_id,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in found], dtype=np.float32),
        np.array([label for label, _, _ in found], dtype=np.int64),
        [rectangle(box, size) for box in boxes] if with_masks else None,
    )


def scenes_truth(split, num, *, img_size=32, start=0):
    """Ground truth of scenes; their pictures are not drawn."""
    levels = dict.fromkeys(LEVELS, 1.0)
    return coco_instances([draw_scene(5, split, start + index, levels) for index in range(num)], img_size)


def perturbed(ground_truth, category_ids, *, seed=0, ties=False, skip=0.2):
    """Detections near the objects: some right, some off, some of another class, some twice; crowds are found too."""
    rng = np.random.default_rng(seed)
    of_picture = {image["id"]: [] for image in ground_truth["images"]}
    for annotation in ground_truth["annotations"]:
        of_picture[annotation["image_id"]].append(annotation)
    detections = []
    for image_id, annotations in of_picture.items():
        rows = []
        for annotation in annotations:
            for _ in range(rng.integers(0, 4)):
                if rng.random() < skip:
                    continue
                x, y, width, height = annotation["bbox"]
                shift_4 = rng.normal(0, 0.15, 4) * [width, height, width, height] * (rng.random() < 0.6)
                x0, y0, x1, y1 = np.array([x, y, x + width, y + height]) + shift_4
                label = list(category_ids).index(annotation["category_id"])
                if rng.random() < 0.2:
                    label = int(rng.integers(len(category_ids)))
                score = rng.integers(0, 11) / 10 if ties else rng.random()
                mask_HW = coco_mask.decode(annotation["segmentation"])
                rolled_HW = np.roll(mask_HW, tuple(rng.integers(-2, 3, 2)), (0, 1))
                box = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
                rows.append((score, label, box, coco_mask.encode(np.asfortranarray(rolled_HW))))
        rows.sort(key=lambda row: -row[0])
        detections.append(
            Detections(
                image_id,
                np.array([row[2] for row in rows], dtype=np.float32).reshape(-1, 4),
                np.array([row[0] for row in rows], dtype=np.float32),
                np.array([row[1] for row in rows], dtype=np.int64),
                [row[3] for row in rows],
            )
        )
    return detections
