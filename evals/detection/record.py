"""Detections on the disk, in COCO's layout for results, so that official tools read them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.detection.samples import Detections, Rle
from pretrain.files import atomic_file
from pretrain.types import UserError


def write_detections(path: Path, found: Sequence[Detections], *, category_ids: Sequence[int]) -> None:
    """A JSON list with an entry for each detection: image_id, category_id, bbox (x, y, width, height), score, segmentation."""
    with atomic_file(path) as file:
        # piece by piece: LVIS's validation set has millions of them
        separator = b"[\n"
        for one in found:
            for entry in _entries(one, category_ids):
                file.write(separator + json.dumps(entry).encode())
                separator = b",\n"
        file.write(b"\n]\n" if separator == b",\n" else b"[]\n")


def _entries(one: Detections, category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    for place in range(len(one)):
        x0, y0, x1, y1 = one.box_K4[place].tolist()
        entry = {
            "image_id": one.image_id,
            "category_id": int(category_ids[one.label_K[place]]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": float(one.score_K[place]),
        }
        if one.masks is not None:
            entry["segmentation"] = _as_text(one.masks[place])
        yield entry


def read_detections(path: Path, *, category_ids: Sequence[int]) -> list[Detections]:
    """What :func:`write_detections` wrote, in its order; pictures without any detections are left out.

    Raises:
        UserError: the file is none of these, or has a category that is not in `category_ids`.
    """
    label = {category: number for number, category in enumerate(category_ids)}
    by_image: dict[int, list[dict[str, Any]]] = {}
    try:
        for entry in json.loads(path.read_text()):
            by_image.setdefault(int(entry["image_id"]), []).append(entry)
        return [_of_picture(image_id, entries, label) for image_id, entries in by_image.items()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: this is no list of COCO results for these classes ({error})") from error


def _of_picture(image_id: int, entries: Sequence[dict[str, Any]], label: dict[int, int]) -> Detections:
    box_K4 = np.array([entry["bbox"] for entry in entries], dtype=np.float64)
    box_K4[:, 2:] += box_K4[:, :2]
    masks = [_as_bytes(entry["segmentation"]) for entry in entries] if "segmentation" in entries[0] else None
    return Detections(
        image_id=image_id,
        box_K4=box_K4.astype(np.float32),
        score_K=np.array([entry["score"] for entry in entries], dtype=np.float32),
        label_K=np.array([label[entry["category_id"]] for entry in entries], dtype=np.int64),
        masks=masks,
    )


def _as_text(rle: Rle) -> Rle:
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _as_bytes(rle: Rle) -> Rle:
    return {"size": rle["size"], "counts": rle["counts"].encode("ascii")}
