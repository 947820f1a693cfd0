"""Class folders: ROOT/SPLIT/CLASS/picture, any classes; labels follow the sorted names."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from evals.data.files import FileSet, did_you_mean, existing_folder, first, is_picture
from pretrain.data.storage import PackedStrings
from pretrain.data.terminal import progress_bar
from pretrain.types import UserError

_log = logging.getLogger(__name__)


def folder_set(
    root: str | Path, *, own_split: str, train_split: str, name: str, split: str, classes: Sequence[str] | None = None
) -> FileSet:
    """One split of class folders.

    Args:
        root: the data set's folder.
        own_split: folder of this split in it.
        train_split: folder of the training split: its classes are the data set's where `classes` is not given.
        name: the data set's.
        split: "train" or "test".
        classes: names of the class folders in the order of their labels; None: those of the training split, sorted.

    Raises:
        UserError: a folder is missing, a class has no folder or no picture, a folder belongs to no class.
    """
    folder = existing_folder(root, wanted=f"{train_split}/CLASS/picture and the same for the test split")
    known = split_classes(folder, train_split) if classes is None else classes
    found = split_classes(folder, own_split)
    check_classes(found, known, place=f"{folder / own_split}")
    keys, label_N = list_classes(folder, own_split, known)
    return FileSet(folder, keys=keys, label_N=label_N, classes=known, name=name, split=split)


def split_folder(root: Path, own_split: str) -> Path:
    """The folder of a split. Raises UserError with the nearest of the folders that are there."""
    folder = root / own_split
    if not folder.is_dir():
        beside = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        there = f"it holds {first(beside)}" if beside else "it holds no folders"
        raise UserError(f"path: {str(root)!r} has no folder {own_split!r}{did_you_mean(own_split, beside)}; {there}")
    return folder


def split_classes(root: Path, own_split: str) -> list[str]:
    """Names of the class folders of a split, sorted. Raises UserError where there is none."""
    with os.scandir(split_folder(root, own_split)) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"path: {str(root / own_split)!r} holds no class folders; wanted: {own_split}/CLASS/picture")
    return names


def check_classes(found: Sequence[str], known: Sequence[str], *, place: str) -> None:
    """Raise UserError where the class folders that are there are not the classes."""
    if unknown := sorted(set(found) - set(known)):
        near = did_you_mean(unknown[0], known)
        raise UserError(
            f"path: {place!r} has folders that are none of the {len(known)} classes: {first(unknown)}{near}"
        )
    if missing := sorted(set(known) - set(found)):
        raise UserError(f"path: {place!r} lacks {len(missing)} of {len(known)} class folders: {first(missing)}")


def list_classes(root: Path, own_split: str, classes: Sequence[str]) -> tuple[PackedStrings, np.ndarray]:
    """Pictures of all classes, sorted by class and name: paths relative to `root`, and labels.

    Raises:
        UserError: a class without a picture.
    """
    counts: list[int] = []
    others: list[str] = []
    empty: list[str] = []

    def pictures() -> Iterator[str]:
        with progress_bar() as bar:
            task = bar.add_task(f"list {own_split}", total=len(classes))
            for class_name in classes:
                with os.scandir(root / own_split / class_name) as entries:
                    names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
                counts.append(0)
                for name in names:
                    if is_picture(name):
                        counts[-1] += 1
                        yield f"{own_split}/{class_name}/{name}"
                    else:
                        others.append(f"{class_name}/{name}")
                if not counts[-1]:
                    empty.append(class_name)
                bar.advance(task)

    keys = PackedStrings(pictures())
    if empty:
        raise UserError(f"path: {str(root / own_split)!r}: {len(empty)} classes have no picture: {first(empty)}")
    if others:
        _log.warning("%s: %d files are no pictures: %s", root / own_split, len(others), first(others))
    return keys, np.repeat(np.arange(len(classes), dtype=np.int64), counts)
