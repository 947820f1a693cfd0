"""ImageNet-1k as it is distributed: ROOT/train/WNID/*.JPEG and ROOT/val, checked against the official list of classes.

The official order is that of the sorted WNIDs; timm ships the list and WordNet's names (timm.data.ImageNetInfo).
"""

import csv
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo

from evals.data.files import FileSet, existing_file, existing_folder, first, is_picture
from evals.data.folders import check_classes, list_classes, split_folder
from pretrain.data.storage import PackedStrings, one_line
from pretrain.types import UserError

WANTED = "ImageNet-1k's official folders, train/WNID/*.JPEG and val/WNID/*.JPEG (WNID as n01440764)"
#: Names each picture of the flat val folder with its WNID; it comes with the data on Kaggle.
SOLUTION = "LOC_val_solution.csv"
#: Files that may tell a class order.
_CLASS_FILES = ("classes.txt", "class_index.json")
_WNID = re.compile(r"n\d{8}")


@cache
def wnids() -> tuple[str, ...]:
    """The 1,000 classes in the official order."""
    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def class_names() -> tuple[str, ...]:
    """WordNet's words for each class; the WNID stands behind names that two classes share (two are "crane")."""
    names = ImageNetInfo("imagenet-1k").label_descriptions()
    counts = Counter(names)
    return tuple(f"{name} ({wnid})" if counts[name] > 1 else name for name, wnid in zip(names, wnids(), strict=True))


def imagenet_set(root: str | Path, *, own_split: str, name: str, split: str) -> FileSet:
    """One split of ImageNet-1k.

    The val folder may also be flat (ILSVRC2012_val_*.JPEG) with Kaggle's `LOC_val_solution.csv` in `root`. The devkit's own
    `ILSVRC2012_validation_ground_truth.txt` is not read: it numbers classes in another order than the WNIDs'.

    Args:
        root: the folder of `train` and `val`.
        own_split: "train" or "val".
        name: the data set's.
        split: "train" or "test".

    Raises:
        UserError: a folder is missing, a WNID has no folder or no picture, a folder is no WNID of ImageNet-1k, or a file in
            `root` tells another order of classes.
    """
    folder = existing_folder(root, wanted=WANTED)
    place = split_folder(folder, own_split)
    for file_name in _CLASS_FILES:
        if (folder / file_name).is_file():
            _check_order(folder / file_name)
    entries = sorted(entry.name for entry in place.iterdir() if not entry.name.startswith("."))
    flat = [entry for entry in entries if is_picture(entry)]
    if flat and not any(_WNID.fullmatch(entry) for entry in entries):
        keys, label_N = _list_flat(folder, own_split, flat)
    else:
        found = [entry for entry in entries if (place / entry).is_dir()]
        if not found:
            raise UserError(f"path: {str(place)!r} holds no class folders; wanted: {WANTED}")
        check_classes(found, wnids(), place=str(place))
        keys, label_N = list_classes(folder, own_split, wnids())
    return FileSet(folder, keys=keys, label_N=label_N, classes=class_names(), name=name, split=split)


def _list_flat(root: Path, own_split: str, pictures: list[str]) -> tuple[PackedStrings, np.ndarray]:
    """Pictures of a flat folder with their labels from Kaggle's solution."""
    wanted = f"{SOLUTION} beside a flat {own_split} folder, or its pictures in a folder for each WNID"
    path = existing_file(root / SOLUTION, wanted=wanted)
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if not {"ImageId", "PredictionString"} <= set(rows.fieldnames or ()):
            raise UserError(f"path: {path} has columns {rows.fieldnames}; wanted: ImageId,PredictionString")
        wnid_of = {row["ImageId"]: (row["PredictionString"] or "").split(" ")[0] for row in rows}
    if unknown := [picture for picture in pictures if Path(picture).stem not in wnid_of]:
        raise UserError(f"path: {path} has no row for {first(unknown)}")
    label_of = {wnid: label for label, wnid in enumerate(wnids())}
    if unknown := sorted(set(wnid_of.values()) - set(label_of)):
        raise UserError(f"path: {path} names {first(unknown)}, none of ImageNet-1k's classes")
    label_N = np.array([label_of[wnid_of[Path(picture).stem]] for picture in pictures], dtype=np.int64)
    if empty := np.flatnonzero(np.bincount(label_N, minlength=len(wnids())) == 0).tolist():
        names = first(wnids()[label] for label in empty)
        raise UserError(f"path: {str(root / own_split)!r}: {len(empty)} classes have no picture: {names}")
    return PackedStrings(f"{own_split}/{picture}" for picture in pictures), label_N


def _check_order(path: Path) -> None:
    """Raise UserError where a file tells another order of the classes than the official one.

    A line of `classes.txt` begins with a WNID; `class_index.json` is a list of WNIDs or {"0": [WNID, name], ...}.
    """
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            if isinstance(content, dict):
                content = [content[str(label)] for label in range(len(content))]
            told = [str(entry[0] if isinstance(entry, list) else entry) for entry in content]
        else:
            told = [re.split(r"[\s,]", line.strip())[0] for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(f"path: {path} is no list of classes ({one_line(error) or type(error).__name__})") from error
    if len(told) != len(wnids()):
        raise UserError(f"path: {path} lists {len(told)} classes, ImageNet-1k has {len(wnids())}; correct or remove it")
    for label, (theirs, ours) in enumerate(zip(told, wnids(), strict=True)):
        if theirs != ours:
            raise UserError(
                f"path: {path} has {theirs!r} as class {label}, the official order has {ours} (sorted WNIDs); correct or "
                "remove it"
            )
