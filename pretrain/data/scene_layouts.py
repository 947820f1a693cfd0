"""Scenes in the layouts of the official data sets, so that evals read them with the readers they have for real data.

COCO instances and captions (cocodataset.org/#format-data), RefCOCO's refs (lichengunc/refer), VQAv2's questions and
annotations (visualqa.org). Every number in these files follows from (split, index), so splits can be joined.
"""

import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from rich.progress import track

from pretrain.data.scene_render import boxes_xywh, masks, render
from pretrain.data.scene_text import captions, questions, referring_expressions
from pretrain.data.scenes import SHAPES, SPLITS, Scene, draw_scene
from pretrain.rng import draw_rng
from pretrain.types import UserError

Json = dict[str, Any]
#: Scenes of a split that have numbers of their own.
_MAX_SCENES = 1_000_000
#: The smallest object is eight pixels wide at this size; below it, a crescent has no pixel that is mostly covered.
_MIN_IMG_SIZE = 32
#: COCO has five captions a picture, VQAv2 ten answers a question.
_NUM_CAPTIONS, _NUM_ANSWERS = 5, 10
#: The longest first, since a question's type is the first that it starts with (as in VQAv2).
_QUESTION_TYPES = (
    "what colour is the",
    "what shape is the",
    "what pattern does",
    "what is the first",
    "what is written",
    "what does the",
    "how many",
    "where is the",
    "is there a",
    "is the",
)


def image_id(scene: Scene) -> int:
    """Number of a scene's picture, 1 or more, not used in other splits."""
    if scene.index >= _MAX_SCENES:
        raise UserError(f"scene index {scene.index} is too large for a layout; it must be below {_MAX_SCENES}")
    return SPLITS.index(scene.split) * _MAX_SCENES + scene.index + 1


def _annotation_id(scene: Scene, index: int) -> int:
    return image_id(scene) * 10 + index


def file_name(scene: Scene) -> str:
    """As COCO names its files, so that the name follows from split and image_id."""
    return f"scenes_{scene.split}_{image_id(scene):012d}.png"


def _text_rng(scene: Scene, stream: str) -> np.random.Generator:
    return draw_rng(scene.seed, f"scene-layout/{stream}/{scene.split}", scene.index)


def _info(scenes: Sequence[Scene]) -> Json:
    seeds = sorted({scene.seed for scene in scenes})
    return {"description": "synthetic scenes", "synthetic": True, "seeds": seeds}


def _images(scenes: Sequence[Scene], img_size: int, *, with_folder: bool = False) -> list[Json]:
    return [
        {
            "id": image_id(scene),
            "file_name": f"{scene.split}/{file_name(scene)}" if with_folder else file_name(scene),
            "height": img_size,
            "width": img_size,
        }
        for scene in scenes
    ]


def _annotations(scene: Scene, img_size: int) -> list[Json]:
    """One annotation per object, in the order of `scene.objects`."""
    visible_NHW = masks(scene, img_size)
    annotations = []
    for index, (obj, visible, box) in enumerate(zip(scene.objects, visible_NHW, boxes_xywh(visible_NHW))):
        rle = coco_mask.encode(np.asfortranarray(visible, dtype=np.uint8))
        annotation = {
            "id": _annotation_id(scene, index),
            "image_id": image_id(scene),
            "category_id": SHAPES.index(obj.shape) + 1,
            "segmentation": {"size": [img_size, img_size], "counts": rle["counts"].decode("ascii")},
            "bbox": box.tolist(),
            "area": int(visible.sum()),
            "iscrowd": 0,
        }
        annotations.append(annotation)
    return annotations


def coco_instances(scenes: Sequence[Scene], img_size: int) -> Json:
    """COCO's instances: the visible part of every object; categories are the shapes, numbered from 1.

    Args:
        scenes: of one split.
        img_size: side of the pictures in pixels; boxes (x, y, width, height) and areas are in these pixels.

    Raises:
        UserError: img_size below 32.
    """
    if img_size < _MIN_IMG_SIZE:
        raise UserError(f"img_size {img_size} is too small for boxes and masks; it must be {_MIN_IMG_SIZE} or more")
    return {
        "info": _info(scenes),
        "licenses": [],
        "images": _images(scenes, img_size),
        "annotations": [annotation for scene in scenes for annotation in _annotations(scene, img_size)],
        "categories": [{"id": k + 1, "name": shape, "supercategory": "shape"} for k, shape in enumerate(SHAPES)],
    }


def coco_captions(scenes: Sequence[Scene], img_size: int) -> Json:
    """COCO's captions: five full descriptions of each scene, which differ in their wording."""
    annotations = []
    for scene in scenes:
        rng = _text_rng(scene, "captions")
        for k in range(_NUM_CAPTIONS):
            text = captions(scene, rng)["full"]
            annotations.append({"id": _annotation_id(scene, k), "image_id": image_id(scene), "caption": text})
    return {
        "info": _info(scenes),
        "licenses": [],
        "images": _images(scenes, img_size),
        "annotations": annotations,
    }


def refcoco(scenes: Sequence[Scene], img_size: int) -> tuple[Json, list[Json]]:
    """RefCOCO's instances and refs. Objects without a unique expression have an annotation but no ref.

    File names start with the split's folder, since RefCOCO keeps all splits in one file.
    """
    instances = coco_instances(scenes, img_size) | {"images": _images(scenes, img_size, with_folder=True)}
    refs = []
    for scene in scenes:
        for index, expressions in referring_expressions(scene, _text_rng(scene, "refs")):
            ref_id = _annotation_id(scene, index)
            sentences = [
                {"tokens": text.split(), "raw": text, "sent": text, "sent_id": ref_id * 10 + k}
                for k, text in enumerate(expressions)
            ]
            ref = {
                "ref_id": ref_id,
                "ann_id": _annotation_id(scene, index),
                "image_id": image_id(scene),
                "category_id": SHAPES.index(scene.objects[index].shape) + 1,
                "file_name": f"{scene.split}/{file_name(scene)}",
                "split": scene.split,
                "sentences": sentences,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
            }
            refs.append(ref)
    return instances, refs


def _question_type(question: str) -> str:
    return next((start for start in _QUESTION_TYPES if question.startswith(start)), "none of the above")


def vqa_v2(scenes: Sequence[Scene]) -> tuple[Json, Json]:
    """VQAv2's questions and annotations. The ten answers agree; `kind` (object, text, choice) is our own field."""
    asked, answered = [], []
    for scene in scenes:
        for k, item in enumerate(questions(scene, _text_rng(scene, "questions"))):
            numbers = {"image_id": image_id(scene), "question_id": image_id(scene) * 100 + k}
            asked.append({**numbers, "question": item.question})
            answers = [
                {"answer": item.answer, "answer_confidence": "yes", "answer_id": n + 1} for n in range(_NUM_ANSWERS)
            ]
            annotation = {
                **numbers,
                "question_type": _question_type(item.question),
                "answer_type": item.answer_type,
                "multiple_choice_answer": item.answer,
                "answers": answers,
                "kind": item.kind,
            }
            answered.append(annotation)
    head = {
        "info": _info(scenes),
        "license": {},
        "data_type": "scenes",
        "data_subtype": "+".join(sorted({scene.split for scene in scenes})),
    }
    return {**head, "task_type": "Open-Ended", "questions": asked}, {**head, "annotations": answered}


def _write(path: Path, content: bytes) -> Path:
    """Beside the target, then in its place, so that a file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
    return path


def _write_json(path: Path, content: Json) -> Path:
    return _write(path, json.dumps(content).encode())


def _join_refcoco(folder: Path, split: str, instances: Json, refs: list[Json]) -> tuple[Json, list[Json]]:
    """Puts a split into the files that hold all splits, in place of what they held of it."""
    paths = folder / "instances.json", folder / "refs(unc).p"
    if not all(path.exists() for path in paths):
        return instances, refs
    earlier = json.loads(paths[0].read_text())
    # our own file: its content is what this module wrote
    refs = [ref for ref in pickle.loads(paths[1].read_bytes()) if ref["split"] != split] + refs
    kept = {image["id"] for image in earlier["images"] if not image["file_name"].startswith(f"{split}/")}
    joined = {
        "images": [image for image in earlier["images"] if image["id"] in kept] + instances["images"],
        "annotations": [a for a in earlier["annotations"] if a["image_id"] in kept] + instances["annotations"],
    }
    return instances | joined, refs


def write_layouts(
    folder: str | Path, seed: int, split: str, num: int, img_size: int, level_weights: dict[str, float]
) -> Json:
    """Writes pictures and all layouts of the scenes 0 to num - 1 of a split. Splits can share a folder.

    `images/SPLIT/*.png`, `annotations/{instances,captions}_SPLIT.json`, `refcoco/instances.json` and
    `refcoco/refs(unc).p` (all splits in one), `vqa/v2_OpenEnded_scenes_SPLIT_questions.json` and
    `vqa/v2_scenes_SPLIT_annotations.json`.

    Returns:
        Paths ("images", "instances", "captions", "refcoco", "questions", "annotations") as strings, and counts
        ("num_images", "num_objects", "num_captions", "num_refs", "num_questions").

    Raises:
        UserError: unknown split or level, img_size below 32, num outside 1..1,000,000.
    """
    if not 1 <= num <= _MAX_SCENES:
        raise UserError(f"num {num} scenes cannot be written; it must be 1 to {_MAX_SCENES}")
    folder = Path(folder)
    scenes = [draw_scene(seed, split, index, level_weights) for index in range(num)]
    instances, refs = refcoco(scenes, img_size)
    coco = instances | {"images": _images(scenes, img_size)}
    texts = coco_captions(scenes, img_size)
    asked, answered = vqa_v2(scenes)
    images = folder / "images" / split
    images.mkdir(parents=True, exist_ok=True)
    for scene in track(scenes, description=f"scenes {split}"):
        Image.fromarray(render(scene, img_size)).save(images / file_name(scene), compress_level=1)
    joined, joined_refs = _join_refcoco(folder / "refcoco", split, instances, refs)
    _write_json(folder / "refcoco" / "instances.json", joined)
    _write(folder / "refcoco" / "refs(unc).p", pickle.dumps(joined_refs))
    notes, vqa = folder / "annotations", folder / "vqa"
    return {
        "images": str(images),
        "instances": str(_write_json(notes / f"instances_{split}.json", coco)),
        "captions": str(_write_json(notes / f"captions_{split}.json", texts)),
        "refcoco": str(folder / "refcoco"),
        "questions": str(_write_json(vqa / f"v2_OpenEnded_scenes_{split}_questions.json", asked)),
        "annotations": str(_write_json(vqa / f"v2_scenes_{split}_annotations.json", answered)),
        "num_images": len(scenes),
        "num_objects": len(coco["annotations"]),
        "num_captions": len(texts["annotations"]),
        "num_refs": len(refs),
        "num_questions": len(asked["questions"]),
    }
