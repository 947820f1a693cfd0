"""Grounding data sets as configs name them: configs/evals/refcoco/NAME.yaml, one file for one data set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from evals.configs import config_names, read_config
from evals.data.files import existing_folder
from evals.detection.scene_folder import DATA_ROOT, SCENE_SEED, SceneFolder, scene_folder
from evals.grounding.leaks import Leaks, drop_leaks
from evals.grounding.ref_set import RefSet, find_images
from evals.grounding.release import read_release
from pretrain.types import UserError

FOLDER = Path(__file__).parents[2] / "configs" / "evals" / "refcoco"
#: Scenes cannot be drawn smaller.
_MIN_SCENE = 32


@dataclass(frozen=True)
class RefData:
    """The splits of a data set as an evaluation uses them.

    Attributes:
        train: trained on, without the pictures of the others.
        watch: looked at after each epoch; nothing is chosen on it.
        scored: scored once, with the last weights; `watch` may be among them.
        leaks: what training had to go without.
        reported: name of the scored split that the paper's table has, or of the only one.
    """

    train: RefSet
    watch: RefSet
    scored: tuple[RefSet, ...]
    leaks: Leaks
    reported: str

    @property
    def name(self) -> str:
        return self.train.name

    @property
    def synthetic(self) -> bool:
        return self.train.synthetic

    def splits(self) -> list[RefSet]:
        """Each once."""
        return list({part.split: part for part in (self.train, self.watch, *self.scored)}.values())


@dataclass(frozen=True)
class RefConfig:
    """One grounding data set: where it lies and what its splits are for.

    Attributes:
        kind: "release" (files in the official layout) or "scenes" (generated, written once in that layout).
        split_rule: which pictures are in which split, in words.
        source: where the data can be had.
        license: what its owners allow.
        name: as rows of results tell it; that of the file where it is not given.
        path: folder of the data, from the folder that commands are run in; "release" needs it.
        annotations: folder of instances.json and refs(...).p, relative to `path`.
        images: folders that may hold the pictures, relative to `path`; the first that is there is taken.
        split_by: whose splits: "unc" (RefCOCO, RefCOCO+), "umd" or "google" (RefCOCOg).
        train: name of the split that is trained on.
        watch: of the one that is looked at after each epoch.
        scored: of those that are scored.
        reported: of the one that the paper's Table 4 has; the first of `scored` where it is not given.
        counts: scenes: how many of each split.
        levels: scenes: weight of each level.
        seed: scenes: of all of them.
    """

    kind: Literal["release", "scenes"]
    split_rule: str
    source: str
    license: str
    name: str = ""
    path: str | None = None
    annotations: str = "."
    images: Sequence[str] = ()
    split_by: Literal["unc", "umd", "google"] = "unc"
    train: str = "train"
    watch: str = "val"
    scored: Sequence[str] = ("val",)
    reported: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    seed: int = SCENE_SEED

    def check(self) -> None:
        """Raise UserError for a field that is missing, of no use to this kind, or names no split that is scored."""
        for name in {"release": ("path", "images"), "scenes": ("counts", "levels")}[self.kind]:
            if not getattr(self, name):
                hint = "; name the data's folder with --data" if name == "path" else ""
                raise UserError(f"{name} is needed with kind {self.kind}{hint}")
        for name in {"release": ("counts", "levels"), "scenes": ("path", "images")}[self.kind]:
            if getattr(self, name):
                raise UserError(f"{name}={getattr(self, name)!r} is not used by kind {self.kind}; leave it out")
        if not self.scored:
            raise UserError("scored names no split; give one or more")
        if self.reported is not None and self.reported not in self.scored:
            raise UserError(f"reported={self.reported!r} is none of the splits that are scored, {list(self.scored)}")
        if self.train in (self.watch, *self.scored):
            raise UserError(f"train={self.train!r} is watched or scored too; name another split")

    def build(self, *, img_size: int, images: str | None = None, note: Callable[[str], None] = print) -> RefData:
        """Its splits; no picture is decoded. Scenes are written first where they are not there.

        Args:
            img_size: side in pixels that scenes are drawn at (32 at least); other sets have the pictures that they have.
            images: folder of the pictures, instead of the config's.
            note: takes one line about what is repaired or left out.

        Raises:
            UserError: the data is missing or damaged.
        """
        if self.kind == "scenes":
            if images is not None:
                raise UserError(f"--images={images}: scenes are drawn, not read; leave it out")
            settings = SceneFolder(self.counts, self.levels, img_size=max(_MIN_SCENE, img_size), seed=self.seed)
            root = scene_folder(settings, root=DATA_ROOT)
            release, folder = read_release(root / "refcoco", split_by=self.split_by), root / "images"
        else:
            wanted = f"{self.annotations} with instances.json and refs({self.split_by}).p, and the pictures"
            root = existing_folder(self.path, wanted=wanted)
            release = read_release(root / self.annotations, split_by=self.split_by)
            folder = Path(images) if images is not None else find_images(root, self.images, name=self.name)
        made: dict[str, RefSet] = {}
        for split in (self.train, self.watch, *self.scored):
            if split not in made:
                made[split] = RefSet(release, folder, name=self.name, split=split)
                if line := made[split].describe_repairs():
                    note(line)
        held = [made[split] for split in dict.fromkeys([self.watch, *self.scored])]
        train, leaks = drop_leaks(made[self.train], held)
        if leaks.num_samples:
            note(f"{self.name}: {leaks.describe()}")
        scored = tuple(made[split] for split in self.scored)
        return RefData(train, made[self.watch], scored, leaks, self.reported or self.scored[0])


def load_ref_config(name_or_file: str, *, path: str | None = None) -> RefConfig:
    """The config of a grounding data set.

    Args:
        name_or_file: a name in configs/evals/refcoco, or a .yaml file.
        path: the data's place, instead of the config's.

    Raises:
        UserError: unknown name, unknown or missing field, wrong type or value.
    """
    config, file = read_config(RefConfig, name_or_file, FOLDER)
    try:
        if path is not None:
            if config.kind == "scenes":
                raise UserError(f"--data={path}: scenes are drawn, not read; name another --dataset")
            config = replace(config, path=str(path))
        config.check()
    except UserError as error:
        raise UserError(f"dataset {file.name}: {error}") from error
    return config


def ref_names() -> list[str]:
    """Names that `load_ref_config` knows."""
    return config_names(FOLDER)
