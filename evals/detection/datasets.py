"""Detection data sets as configs name them: configs/evals/detection/NAME.yaml, one file for one data set."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from evals.configs import config_names, read_config
from evals.data.files import existing_folder
from evals.detection.coco_set import CocoSet
from evals.detection.scene_folder import DATA_ROOT, SCENE_SEED, SceneFolder, scene_folder
from pretrain.types import UserError

FOLDER = Path(__file__).parents[2] / "configs" / "evals" / "detection"


@dataclass(frozen=True)
class DetectionData:
    """One detection data set: where it lies and what is expected there.

    Attributes:
        kind: "coco" (files in the official layout), "lvis" (files in LVIS's) or "scenes" (generated, written once in COCO's).
        split_rule: which pictures are in which split, in words.
        source: where the data can be had.
        license: what its owners allow.
        name: as rows of results tell it; that of the file where it is not given.
        path: folder of the data, from the folder that commands are run in; all but "scenes" need it.
        train_annotations: file of instances that are trained on, relative to `path`.
        train_images: folder of their pictures, likewise; of LVIS COCO's folder, which holds train2017 and val2017.
        test_annotations: what is scored, likewise.
        test_images: likewise.
        num_train: expected pictures, or scenes to draw; another number is an error; None checks nothing.
        num_test: likewise.
        num_classes: expected classes, likewise.
        check_sizes: whether other numbers of pictures than those expected are an error.
        synthetic: whether pictures are generated.
        levels: scenes: weight of each level.
        img_size: scenes: side in pixels.
        seed: scenes: of all of them.
    """

    kind: Literal["coco", "lvis", "scenes"]
    split_rule: str
    source: str
    license: str
    name: str = ""
    path: str | None = None
    train_annotations: str | None = None
    train_images: str | None = None
    test_annotations: str | None = None
    test_images: str | None = None
    num_train: int | None = None
    num_test: int | None = None
    num_classes: int | None = None
    check_sizes: bool = True
    synthetic: bool = False
    levels: Mapping[str, float] = field(default_factory=dict)
    img_size: int = 32
    seed: int = SCENE_SEED

    def check(self) -> None:
        """Raise UserError for a field that is missing, of no use to this kind, or out of range."""
        files = ("train_annotations", "train_images", "test_annotations", "test_images")
        own = {"coco": ("path", *files), "lvis": ("path", *files), "scenes": ("levels", "num_train", "num_test")}
        for name in own[self.kind]:
            if not getattr(self, name):
                hint = "; name the data's folder" if name == "path" else ""
                raise UserError(f"{name} is needed with kind {self.kind}{hint}")
        useless = ("path", *files) if self.kind == "scenes" else ("levels", "img_size", "seed")
        default = type(self)(kind=self.kind, split_rule="", source="", license="")
        for name in useless:
            if getattr(self, name) != getattr(default, name):
                raise UserError(f"{name}={getattr(self, name)!r} is not used by kind {self.kind}; leave it out")
        for name in ("num_train", "num_test", "num_classes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        if self.kind == "scenes":
            self.scenes().check()

    def scenes(self) -> SceneFolder:
        """What decides the folder of scenes: they are trained on split "train", and scored on split "test"."""
        counts = {"train": self.num_train or 0, "test": self.num_test or 0}
        return SceneFolder(counts=counts, levels=self.levels, img_size=self.img_size, seed=self.seed)

    def build(self, *, with_masks: bool, root: Path = DATA_ROOT) -> tuple[CocoSet, CocoSet]:
        """What is trained on and what is scored; no picture is decoded. Scenes are written first where they are not there.

        Args:
            with_masks: whether masks are read.
            root: folder for scenes.

        Raises:
            UserError: the data is missing or not as the config says, or the two files have different classes.
        """
        try:
            train, test = self._build(with_masks=with_masks, root=root)
            if (train.category_ids, train.classes) != (test.category_ids, test.classes):
                raise UserError(f"{_difference(train, test)}; both annotation files need the same list")
            if self.num_classes is not None and len(train.classes) != self.num_classes:
                raise UserError(f"{len(train.classes)} classes are there, {self.num_classes} are expected")
            for built, expected in ((train, self.num_train), (test, self.num_test)):
                if self.check_sizes and expected is not None and len(built) != expected:
                    raise UserError(
                        f"its {built.split} annotations name {len(built):,} pictures, {expected:,} are expected; complete "
                        "the data, or take it as it is (allow_sizes)"
                    )
            train = without_leaks(train, test)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error
        return train, test

    def _build(self, *, with_masks: bool, root: Path) -> tuple[CocoSet, CocoSet]:
        common = {"name": self.name, "with_masks": with_masks, "synthetic": self.synthetic, "lvis": self.kind == "lvis"}
        if self.kind == "scenes":
            folder = scene_folder(self.scenes(), root=root)
            files = [(f"annotations/instances_{split}.json", f"images/{split}") for split in ("train", "test")]
        else:
            folder = existing_folder(self.path, wanted=f"{self.train_annotations}, {self.train_images}/ and the like")
            files = [(self.train_annotations, self.train_images), (self.test_annotations, self.test_images)]
        train, test = (
            CocoSet(folder / annotations, folder / images, split=split, **common)
            for split, (annotations, images) in zip(("train", "test"), files, strict=True)
        )
        return train, test


def without_leaks(train: CocoSet, test: CocoSet) -> CocoSet:
    """The training set without the pictures that are in the test set: the same file, whatever its number in either.

    `train.num_leaks` tells how many they were.

    Raises:
        UserError: all of them are.
    """
    scored = {test.place(index) for index in range(len(test))}
    kept_S = np.array([train.place(index) not in scored for index in range(len(train))])
    if kept_S.all():
        return train
    if not kept_S.any():
        raise UserError(
            f"all {len(train):,} training pictures are in the test set too; name other pictures to train on"
        )
    clean = train.subset(train.image_ids[kept_S])
    clean.num_leaks = int((~kept_S).sum())
    return clean


def _difference(train: CocoSet, test: CocoSet) -> str:
    """The first category that only one of the two has, or has by another name."""
    named = [dict(zip(part.category_ids, part.classes, strict=True)) for part in (train, test)]
    category_id = min(k for k in named[0].keys() | named[1].keys() if named[0].get(k) != named[1].get(k))
    words = [repr(part[category_id]) if category_id in part else "not there" for part in named]
    return f"category {category_id} is {words[0]} in the training annotations, {words[1]} in those for the test"


def detection_names() -> list[str]:
    """Names that `load_detection_config` knows."""
    return config_names(FOLDER)


def load_detection_config(name_or_file: str, *, path: str | None = None, allow_sizes: bool = False) -> DetectionData:
    """The config of a detection data set.

    Args:
        name_or_file: a name in configs/evals/detection, or a .yaml file.
        path: the data's place, instead of the config's.
        allow_sizes: take the data whatever its number of pictures. By default the numbers of the config must be there, so
            that AP on a part of COCO is not taken for COCO's.

    Raises:
        UserError: unknown name, unknown or missing field, wrong type or value.
    """
    config, file = read_config(DetectionData, name_or_file, FOLDER)
    try:
        if path is not None:
            if config.kind == "scenes":
                raise UserError(f"path={path!r}: scenes are generated and lie nowhere; name another data set")
            config = replace(config, path=str(path))
        config = replace(config, check_sizes=config.check_sizes and not allow_sizes)
        config.check()
    except UserError as error:
        raise UserError(f"dataset {file.name}: {error}") from error
    return config
