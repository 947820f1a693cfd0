"""RefCOCO's release as its authors give it out (lichengunc/refer): instances.json and refs(SPLIT BY).p, checked and linked.

Boxes are x0, y0, x1, y1 in pixels, y downwards; x1 and y1 lie behind the last pixel. In the files they are x, y, width, height.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from evals.data.files import existing_file, existing_folder, first
from evals.grounding.unpickle import load_plain_pickle
from pretrain.data.storage import one_line
from pretrain.types import UserError

Box = tuple[float, float, float, float]
Json = dict[str, Any]
#: COCO writes boxes with two decimals: what lies outside by less is rounding.
_ROUNDING = 0.01
_WANTED = "a folder of the official release: instances.json and refs(unc).p, refs(umd).p or refs(google).p"


class Picture(NamedTuple):
    """A picture of instances.json."""

    file_name: str
    height: int
    width: int


class Annotation(NamedTuple):
    """An object of instances.json: its box is inside the picture; None where nothing of it is."""

    image_id: int
    box: Box | None
    clipped: bool
    crowd: bool


@dataclass(frozen=True)
class Ref:
    """One object that sentences refer to.

    Attributes:
        ref_id: of this entry.
        ann_id: of its annotation.
        image_id: of its picture.
        split: "train", "val", "test", "testA", "testB".
        sentences: sent_id and text, lower-cased and without punctuation as the release has it ("sent").
    """

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Release:
    """All splits of one data set.

    Attributes:
        folder: of its two files.
        split_by: "unc", "umd" or "google".
        pictures: by COCO's id.
        annotations: by id.
        refs: in the file's order.
        synthetic: whether its pictures are generated.
        numbering: whose ids its pictures have: "coco", or the generated set's name.
    """

    folder: Path
    split_by: str
    pictures: Mapping[int, Picture]
    annotations: Mapping[int, Annotation]
    refs: tuple[Ref, ...]
    synthetic: bool
    numbering: str

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have refs."""
        return sorted({ref.split for ref in self.refs})


def read_release(folder: str | Path, *, split_by: str = "unc") -> Release:
    """Read and check a release.

    RefCOCO and RefCOCO+ are split by "unc" (val, testA, testB), RefCOCOg by "umd" (val, test) or "google" (val).

    Args:
        folder: of instances.json and refs(...).p.
        split_by: whose splits.

    Raises:
        UserError: a file is missing, damaged or of another layout; the pickle has code in it; a ref names an annotation or a
            picture that is not there.
    """
    folder = existing_folder(folder, wanted=_WANTED)
    path = existing_file(folder / f"refs({split_by}).p", wanted=_WANTED)
    instances = existing_file(folder / "instances.json", wanted=_WANTED)
    try:
        content = json.loads(instances.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{instances} cannot be read as JSON ({one_line(error)}); wanted: {_WANTED}") from error
    if not isinstance(content, dict):
        raise UserError(f"{instances} holds {type(content).__name__}, not an object; wanted: {_WANTED}")
    pictures = _read_pictures(instances, content)
    annotations = _read_annotations(instances, content, pictures)
    refs = tuple(_read_refs(path, load_plain_pickle(path), annotations, pictures))
    info = content.get("info")
    info = info if isinstance(info, dict) else {}
    synthetic = info.get("synthetic") is True
    numbering = f"{info.get('description', 'generated')} {info.get('seeds', '')}".strip() if synthetic else "coco"
    return Release(folder, split_by, pictures, annotations, refs, synthetic, numbering)


def _entries(path: Path, content: Json, field: str) -> list[Json]:
    entries = content.get(field)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: {field!r} is no list of entries; wanted: {_WANTED}")
    return entries


def _whole(entry: Json, field: str, where: str) -> int:
    value = entry.get(field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value.bit_length() > 63:  # arrays hold 64 bits
        raise UserError(f"{where}: {field} is {value!r:.40}; it must be a whole number")
    return value


def _read_pictures(path: Path, content: Json) -> dict[int, Picture]:
    pictures: dict[int, Picture] = {}
    for number, entry in enumerate(_entries(path, content, "images")):
        where = f"{path}: images[{number}]"
        image_id, name = _whole(entry, "id", where), entry.get("file_name")
        height, width = _whole(entry, "height", where), _whole(entry, "width", where)
        if image_id in pictures:
            raise UserError(f"{where}: id {image_id} is there twice; each picture needs one of its own")
        if not isinstance(name, str) or not name or height < 1 or width < 1:
            raise UserError(f"{where}: file_name {name!r:.60} of {width} x {height} pixels; it must name a picture")
        pictures[image_id] = Picture(name, height, width)
    return pictures


def _read_annotations(path: Path, content: Json, pictures: Mapping[int, Picture]) -> dict[int, Annotation]:
    annotations: dict[int, Annotation] = {}
    for number, entry in enumerate(_entries(path, content, "annotations")):
        annotation_id = _whole(entry, "id", f"{path}: annotations[{number}]")
        where = f"{path}: annotation {annotation_id}"
        image_id = _whole(entry, "image_id", where)
        if annotation_id in annotations:
            raise UserError(f"{where} is there twice; each annotation needs an id of its own")
        if image_id not in pictures:
            raise UserError(f"{where}: image_id {image_id} is none of the {len(pictures):,} pictures of the file")
        box, clipped = inside(_corners(entry.get("bbox"), where), pictures[image_id])
        annotations[annotation_id] = Annotation(image_id, box, clipped, bool(entry.get("iscrowd", 0)))
    return annotations


def _corners(bbox: Any, where: str) -> Box:
    try:
        x, y, width, height = (float(number) for number in bbox)
    except (TypeError, ValueError, OverflowError):
        x = y = width = height = math.nan
    if not all(map(math.isfinite, (x, y, width, height))):
        raise UserError(f"{where}: bbox is {bbox!r:.60}; it must be four numbers: x, y, width, height in pixels")
    return x, y, x + width, y + height


def inside(box: Box, picture: Picture) -> tuple[Box | None, bool]:
    """The part of a box inside its picture (None where it has no extent), and whether more than rounding was cut off."""
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return None, False
    cut = max(x0, 0.0), max(y0, 0.0), min(x1, float(picture.width)), min(y1, float(picture.height))
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        return None, False
    return cut, max(abs(a - b) for a, b in zip(cut, box)) > _ROUNDING


def _read_refs(
    path: Path, content: Any, annotations: Mapping[int, Annotation], pictures: Mapping[int, Picture]
) -> list[Ref]:
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) for entry in content):
        raise UserError(f"{path} holds {type(content).__name__}, not a list of refs; wanted: {_WANTED}")
    refs, seen, seen_sentences = [], set(), set()
    for number, entry in enumerate(content):
        ref_id = _whole(entry, "ref_id", f"{path}: entry {number}")
        where = f"{path}: ref {ref_id}"
        ann_id, image_id = _whole(entry, "ann_id", where), _whole(entry, "image_id", where)
        if ann_id not in annotations:
            raise UserError(f"{where}: its annotation {ann_id} is not in instances.json; both must be of one release")
        if image_id not in pictures or annotations[ann_id].image_id != image_id:
            raise UserError(
                f"{where}: its picture is {image_id}, its annotation {ann_id} is on picture {annotations[ann_id].image_id}; "
                "both files must be of one release"
            )
        if not isinstance(entry.get("split"), str):
            raise UserError(f"{where}: split is {entry.get('split')!r:.40}; it must be a name such as 'train'")
        sentences = tuple(_read_sentences(where, entry.get("sentences")))
        if ref_id in seen or (twice := seen_sentences & {sent_id for sent_id, _ in sentences}):
            what = f"ref_id {ref_id}" if ref_id in seen else f"sent_id {first(map(str, sorted(twice)))}"
            raise UserError(f"{where}: {what} is there twice; each needs one of its own")
        seen.add(ref_id)
        seen_sentences |= {sent_id for sent_id, _ in sentences}
        refs.append(Ref(ref_id, ann_id, image_id, entry["split"], sentences))
    return refs


def _read_sentences(where: str, sentences: Any) -> list[tuple[int, str]]:
    """Numbers and texts; white space is made even. `raw`, lower-cased, is taken where there is no `sent`."""
    found = []
    for number, sentence in enumerate(sentences if isinstance(sentences, list | tuple) else [None]):
        if not isinstance(sentence, dict):
            raise UserError(f"{where}: sentences holds no entries with sent_id and sent")
        text = sentence.get("sent", sentence.get("raw"))
        if not isinstance(text, str):
            raise UserError(f"{where}: sentences[{number}]: sent is {text!r:.40}; it must be a text")
        text = text if "sent" in sentence else text.lower()
        found.append((_whole(sentence, "sent_id", f"{where}: sentences[{number}]"), " ".join(text.split())))
    return found
