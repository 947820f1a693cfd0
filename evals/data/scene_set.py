"""Generated scenes with the largest object's shape, or shape and colour, as the class."""

from collections.abc import Sequence
from itertools import islice
from typing import Literal

import numpy as np
from PIL import Image

from evals.data.files import did_you_mean
from evals.data.labelled import LabelledSet
from pretrain.data.scene_render import render
from pretrain.data.scenes import COLORS, LEVELS, SHAPES, Scene, draw_scene
from pretrain.data.storage import digest, spread_order
from pretrain.data.terminal import progress_bar
from pretrain.types import UserError

Target = Literal["shape", "shape_color"]
#: Scenes whose pixels are part of the set's identity: a change of the renderer makes features anew.
_NUM_SPREAD = 8


class SceneSet(LabelledSet):
    """Scenes number `start` .. `start + count - 1` of a split of scenes, the levels in turn; drawn anew whenever asked for.

    Args:
        own_split: the scenes' own split, "train", "val" or "test"; splits have no scene in common.
        start: number of the first scene.
        count: how many.
        levels: names of the levels, which take turns.
        target: "shape" of the largest object (8 classes), or "shape_color" (64, shape * 8 + colour).
        seed: of the scenes.
        img_size: side in pixels.
        name: the data set's.
        split: "train" or "test".

    Raises:
        UserError: unknown level or split, or a number that is none.
    """

    synthetic = True

    def __init__(
        self,
        own_split: str,
        *,
        start: int,
        count: int,
        levels: Sequence[str],
        target: Target,
        seed: int,
        img_size: int,
        name: str,
        split: str,
    ) -> None:
        for level in levels:
            if level not in LEVELS:
                raise UserError(
                    f"levels: {level!r} is no level{did_you_mean(level, LEVELS)}; there are {', '.join(LEVELS)}"
                )
        if not levels or count < 1 or img_size < 1:
            raise UserError(
                f"scenes: levels={list(levels)}, num={count}, img_size={img_size}: give at least one of each"
            )
        self.own_split, self.start, self.levels, self.seed, self.img_size = (
            own_split,
            start,
            tuple(levels),
            seed,
            img_size,
        )
        self.name, self.split, self.target = name, split, target
        self.classes = SHAPES if target == "shape" else tuple(f"{c} {s}" for s in SHAPES for c in COLORS)
        self.label_N = self._labels(count)

    def _labels(self, count: int) -> np.ndarray:
        """Read off the scenes, without rendering."""
        label_N = np.empty(count, dtype=np.int64)
        with progress_bar() as bar:
            task = bar.add_task(f"draw {self.own_split} scenes", total=count)
            for index in range(count):
                scene = self.scene(index)
                label_N[index] = scene.largest_shape_label
                if self.target == "shape_color":
                    label_N[index] = scene.largest_shape_label * len(COLORS) + scene.largest_color_label
                bar.advance(task)
        return label_N

    def scene(self, index: int) -> Scene:
        level = self.levels[index % len(self.levels)]
        return draw_scene(self.seed, self.own_split, self.start + index, {level: 1.0})

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(render(self.scene(index), self.img_size))

    def key(self, index: int) -> str:
        return self.scene(index).key

    def pictures_identity(self) -> str:
        """The same for both targets, so that they share features."""
        pixels = digest(*(np.asarray(self.load(index)) for index in islice(spread_order(len(self)), _NUM_SPREAD)))
        levels = ",".join(self.levels)
        return (
            f"scenes seed={self.seed} split={self.own_split} start={self.start} count={len(self)} levels={levels} "
            f"size={self.img_size} pixels={pixels}"
        )
