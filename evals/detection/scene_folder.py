"""Scenes as a folder of files in the official layouts of COCO and RefCOCO: written once, found again by what decides them.

    images/SPLIT/*.png   annotations/instances_SPLIT.json   refcoco/instances.json   refcoco/refs(unc).p   settings.json

Splits are the scenes' own, "train", "val" and "test". RefCOCO's file names are relative to images/.

A scene is a function of (seed, split, number, level), and the layouts begin with number 0 of each split. Pre-training draws its
training scenes from split "train", number 0 and on, with the run's own seed (0, 1, 2, ...), and its validation scenes from split
"val" with seed 0; probes and retrieval take "val" and "test" with seed 0. With one of these seeds a detector would be trained
on the very pictures that its encoder was pre-trained on. So the default here is a seed that no run has by chance: none of
these scenes is one of the others.
"""

import fcntl
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from evals.results import hash_of, source_hash
from pretrain.data.scene_layouts import write_layouts
from pretrain.data.scenes import SPLITS, check_level_weights
from pretrain.files import write_atomically
from pretrain.types import UserError

#: Of scenes for detection and grounding; see above.
SCENE_SEED = 5_000_000
#: Where data that commands make for themselves lies.
DATA_ROOT = Path("runs/data")
_REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class SceneFolder:
    """What decides the scenes of a folder.

    Attributes:
        counts: scenes of each split that is wanted, e.g. {"train": 4000, "test": 500}.
        levels: weight of each level (`pretrain.data.scenes.LEVELS`); the same for all splits.
        img_size: side of the pictures in pixels, 32 or more.
        seed: of the scenes.
    """

    counts: Mapping[str, int]
    levels: Mapping[str, float]
    img_size: int = 32
    seed: int = SCENE_SEED

    def check(self) -> None:
        """Raise UserError for values that cannot be meant."""
        check_level_weights(self.levels)
        if not self.counts or (unknown := [split for split in self.counts if split not in SPLITS]):
            wrong = "none" if not self.counts else repr(unknown[0])
            raise UserError(f"counts: {wrong} given; give a number of scenes for one or more of {', '.join(SPLITS)}")
        for split, count in self.counts.items():
            if count < 1:
                raise UserError(f"counts: {split}={count} scenes; give 1 or more, or leave the split out")
        if self.img_size < 32:
            raise UserError(f"img_size: {self.img_size} pixels are too few for masks of scenes; give 32 or more")

    def identity(self) -> str:
        """A short name for these settings and for the code that draws scenes."""
        drawers = [str(path.relative_to(_REPOSITORY)) for path in (_REPOSITORY / "pretrain/data").glob("scene*.py")]
        return hash_of([self._plain(), source_hash(*sorted(drawers), "pretrain/rng.py")])

    def _plain(self) -> dict[str, object]:
        # a level of weight 0 and the order of splits decide nothing
        counts, levels = dict(sorted(self.counts.items())), {k: float(v) for k, v in self.levels.items() if v > 0}
        return {**asdict(self), "counts": counts, "levels": dict(sorted(levels.items()))}


def scene_folder(settings: SceneFolder, *, root: Path = DATA_ROOT) -> Path:
    """The folder of these scenes, written now where it is not there yet.

    It is written beside its place, with a bar for each split, and moved there when all of it is done: an interruption leaves
    nothing that would be taken for it. Processes that want the same folder wait for the one that writes it.

    Args:
        settings: what the scenes are.
        root: folder that such folders lie in.

    Raises:
        UserError: settings that cannot be meant.
    """
    settings.check()
    folder = root / f"scenes-{settings.identity()}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():  # written while this process waited
            return folder
        beside = root / f".{folder.name}.partial"
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
        try:
            for split, count in settings.counts.items():
                write_layouts(beside, settings.seed, split, count, settings.img_size, dict(settings.levels))
            write_atomically(beside / "settings.json", (json.dumps(settings._plain(), indent=2) + "\n").encode())
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder
