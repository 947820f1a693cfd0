"""A release as its authors give it out, written by hand: three photographs, four objects, seven sentences.

Picture 581857 is 40 wide and 30 high, 94 is 32 x 32, 1 is 20 x 50. x, y, width, height of the annotations:

    ann 11 on 581857   5, 6, 20, 10       inside
    ann 12 on 581857   -4, 10, 60, 30     outside on three sides: 0, 10, 40, 30 is left
    ann 13 on 94       4, 4, 8, 8         inside
    ann 14 on 1        2, 3, 5, 7         inside
    ann 15 on 94       0, 0, 32, 32       a crowd, referred to by nobody
    ann 16 on 94       20, 20, 6, 4       referred to by nobody

refs: 1 (train, ann 11), 2 (train, ann 12), 3 (val, ann 13), 4 (testA, ann 14).
"""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Json = dict[str, Any]
SIZES = {581857: (40, 30), 94: (32, 32), 1: (20, 50)}


def file_name(image_id: int) -> str:
    return f"COCO_train2014_{image_id:012d}.jpg"


def annotation(number: int, image_id: int, bbox: Any, *, crowd: int = 0) -> Json:
    return {"id": number, "image_id": image_id, "category_id": 47, "bbox": bbox, "area": 1.0, "iscrowd": crowd}


def ref(number: int, ann_id: int, image_id: int, split: str, *texts: str, first_sent: int | None = None) -> Json:
    """As the release has it: `file_name` has the annotation's number behind it, so there is no such file."""
    start = 10 * number if first_sent is None else first_sent
    return {
        "sent_ids": list(range(start, start + len(texts))),
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "ann_id": ann_id,
        "ref_id": number,
        "image_id": image_id,
        "split": split,
        "category_id": 47,
        "sentences": [
            {"tokens": text.split(), "raw": text.title() + ".", "sent_id": start + k, "sent": text}
            for k, text in enumerate(texts)
        ],
    }


def instances() -> Json:
    images = [
        {"license": 1, "file_name": file_name(i), "height": height, "width": width, "id": i}
        for i, (width, height) in SIZES.items()
    ]
    annotations = [
        annotation(11, 581857, [5, 6, 20, 10]),
        annotation(12, 581857, [-4.0, 10.0, 60.0, 30.0]),
        annotation(13, 94, [4, 4, 8, 8]),
        annotation(14, 1, [2, 3, 5, 7]),
        annotation(15, 94, [0, 0, 32, 32], crowd=1),
        annotation(16, 94, [20, 20, 6, 4]),
    ]
    return {"info": {"description": "by hand"}, "images": images, "annotations": annotations, "categories": []}


def refs() -> list[Json]:
    return [
        ref(1, 11, 581857, "train", "left cup", "the cup  on the left"),
        ref(2, 12, 581857, "train", "table"),
        ref(3, 13, 94, "val", "small dog", "dog"),
        ref(4, 14, 1, "testA", "man", "tall man"),
    ]


def pixels(image_id: int) -> np.ndarray:
    """uint8 [height, width, 3], of one colour, so that a JPEG keeps it."""
    width, height = SIZES[image_id]
    colour = np.random.default_rng(image_id).integers(0, 256, 3, dtype=np.uint8)
    return np.broadcast_to(colour, (height, width, 3)).copy()


def write_release(
    root: Path, *, content: Json | None = None, entries: list[Json] | None = None, split_by: str = "unc"
) -> tuple[Path, Path]:
    """Folder of the two files, and folder of the pictures (train2014)."""
    folder, images = root / "refcoco", root / "train2014"
    folder.mkdir(parents=True, exist_ok=True)
    images.mkdir(exist_ok=True)
    (folder / "instances.json").write_text(json.dumps(instances() if content is None else content))
    written = pickle.dumps(refs() if entries is None else entries, protocol=0)
    (folder / f"refs({split_by}).p").write_bytes(written)
    for image_id in SIZES:
        Image.fromarray(pixels(image_id)).save(images / file_name(image_id), quality=95)
    return folder, images
