"""The paper's sets that torchvision reads: it knows files and labels, pictures are decoded here on request."""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets

from evals.data.files import FileSet, did_you_mean, existing_folder
from evals.data.labelled import LabelledSet
from pretrain.data.storage import BadSample, PackedStrings, digest, one_line
from pretrain.types import Fault, UserError

#: Name of torchvision's class -> the layout that it wants below the root.
LAYOUTS = {
    "CIFAR10": "cifar-10-batches-py/data_batch_1, ...",
    "CIFAR100": "cifar-100-python/train, test, meta",
    "Food101": "food-101/images/CLASS/*.jpg and food-101/meta/train.json, test.json",
    "DTD": "dtd/dtd/images/CLASS/*.jpg and dtd/dtd/labels/train1.txt, ...",
    "OxfordIIITPet": "oxford-iiit-pet/images/*.jpg and oxford-iiit-pet/annotations/trainval.txt, test.txt",
    "StanfordCars": "stanford_cars/cars_train, cars_test, devkit/*.mat and cars_test_annos_withlabels.mat",
    "EuroSAT": "eurosat/2750/CLASS/*.jpg",
    "PCAM": "pcam/camelyonpatch_level_2_split_train_x.h5, ..._y.h5",
}
#: What torchvision raises for sets that are absent, half there or damaged.
_ERRORS = (RuntimeError, ValueError, OSError, LookupError, TypeError)


def torchvision_set(
    root: str | Path,
    *,
    dataset: str,
    own_split: str,
    name: str,
    split: str,
    download: bool = False,
    partition: int = 1,
) -> LabelledSet:
    """One split of a set that torchvision has.

    Args:
        root: torchvision's root, the folder above the data set's own.
        dataset: name of torchvision's class, one of LAYOUTS.
        own_split: torchvision's split, or several joined by "+"; for EuroSAT, which has none, a range "0%-60%" of each class
            in the order of the SHA-256 of the file names.
        name: the data set's.
        split: "train" or "test".
        download: let torchvision fetch it first, where it can.
        partition: DTD's, 1 to 10.

    Raises:
        UserError: unknown data set or split, nothing at `root`, or a package that torchvision needs is missing.
    """
    if dataset not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise UserError(f"torchvision: {dataset!r} is none of its sets{did_you_mean(dataset, LAYOUTS)}: {known}")
    folder = Path(root).expanduser() if download else existing_folder(root, wanted=LAYOUTS[dataset])

    def open_split(**options: Any) -> Any:
        try:
            return getattr(datasets, dataset)(folder, download=download, **options)
        except _ERRORS as error:
            raise UserError(
                f"path: torchvision finds no {dataset} in {str(folder)!r} ({one_line(error)}); wanted: {LAYOUTS[dataset]}"
            ) from error

    common = {"name": name, "split": split}
    if dataset in ("CIFAR10", "CIFAR100"):
        if own_split not in ("train", "test"):
            raise UserError(f"{split}: {dataset} has the splits train and test, not {own_split!r}")
        return ArraySet(open_split(train=own_split == "train"), **common)
    if dataset == "PCAM":
        return PcamSet(open_split(split=own_split), **common)
    if dataset == "EuroSAT":
        return _eurosat(open_split(), own_split, folder, **common)
    options = {"partition": partition} if dataset == "DTD" else {}
    parts = [open_split(split=part, **options) for part in own_split.split("+")]
    return _files(parts, _FILES[dataset], folder, **common)


#: Where torchvision's classes keep the files and labels of a split.
_FILES: dict[str, Callable[[Any], tuple[Sequence[Any], Sequence[int]]]] = {
    "Food101": lambda whole: (whole._image_files, whole._labels),
    "DTD": lambda whole: (whole._image_files, whole._labels),
    "OxfordIIITPet": lambda whole: (whole._images, whole._labels),
    "StanfordCars": lambda whole: tuple(zip(*whole._samples)),
}


def _files(
    parts: Sequence[Any],
    read: Callable[[Any], tuple[Sequence[Any], Sequence[int]]],
    root: Path,
    *,
    name: str,
    split: str,
) -> FileSet:
    classes = list(parts[0].classes)
    keys: list[str] = []
    labels: list[int] = []
    for part in parts:
        if list(part.classes) != classes:
            raise UserError(f"{split}: the splits that make it up in {str(root)!r} have different classes")
        files, part_labels = read(part)
        keys += [Path(file).relative_to(root).as_posix() for file in files]
        labels += [int(label) for label in part_labels]
    return FileSet(root, keys=PackedStrings(keys), label_N=np.array(labels), classes=classes, name=name, split=split)


def _eurosat(whole: Any, own_split: str, root: Path, *, name: str, split: str) -> FileSet:
    """A range of each class, in an order that depends on the file names alone."""
    match = re.fullmatch(r"(\d+)%-(\d+)%", own_split)
    low, high = map(int, match.groups()) if match else (0, 0)
    if not 0 <= low < high <= 100:
        raise UserError(
            f"{split}: {own_split!r} is no part of EuroSAT, which has no splits; give a range such as 0%-60%"
        )
    keys: list[str] = []
    labels: list[int] = []
    for label in range(len(whole.classes)):
        files = [Path(file) for file, own in whole.samples if own == label]
        files.sort(key=lambda file: hashlib.sha256(file.name.encode()).digest())
        part = files[len(files) * low // 100 : len(files) * high // 100]
        keys += [file.relative_to(root).as_posix() for file in part]
        labels += [label] * len(part)
    return FileSet(
        root, keys=PackedStrings(keys), label_N=np.array(labels), classes=whole.classes, name=name, split=split
    )


class ArraySet(LabelledSet):
    """CIFAR: torchvision holds all pictures decoded, uint8 [N, 32, 32, 3]."""

    def __init__(self, whole: Any, *, name: str, split: str) -> None:
        self.name, self.split, self.classes = name, split, tuple(whole.classes)
        self._image_NHWC = np.ascontiguousarray(whole.data)
        self.label_N = np.array(whole.targets, dtype=np.int64)
        self._identity: str | None = None

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self._image_NHWC[index])

    def key(self, index: int) -> str:
        return f"{self.split}/{index}"

    def pictures_identity(self) -> str:
        if self._identity is None:
            self._identity = f"array {digest(self._image_NHWC)}"
        return self._identity


class PcamSet(LabelledSet):
    """PatchCamelyon: pictures in an HDF5 file that torchvision opens for each; labels are read at once."""

    def __init__(self, whole: Any, *, name: str, split: str) -> None:
        self.name, self.split, self.classes = name, split, ("no tumor tissue", "tumor tissue")
        self._whole = whole
        path = whole._base_folder / whole._FILES[whole._split]["targets"][0]
        with whole.h5py.File(path) as file:
            self.label_N = np.asarray(file["y"]).reshape(-1).astype(np.int64)  # [N, 1, 1, 1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_whole": (type(self._whole), str(self._whole.root), self._whole._split)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kind, root, own_split = state.pop("_whole")  # torchvision keeps the module h5py in it, which cannot be pickled
        self.__dict__.update(state)
        self._whole = kind(root, split=own_split)

    def load(self, index: int) -> Image.Image:
        try:
            return self._whole[index][0]
        except (OSError, KeyError, ValueError) as error:
            raise BadSample(Fault("corrupt", self.key(index), one_line(error))) from error

    def key(self, index: int) -> str:
        return f"{self._whole._split}/{index}"

    def pictures_identity(self) -> str:
        path = self._whole._base_folder / self._whole._FILES[self._whole._split]["images"][0]
        return f"pcam {path.name} {path.stat().st_size} bytes"
