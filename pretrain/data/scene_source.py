"""Scenes as a source of captioned pictures."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pretrain.data.samples import Captions, RawSample, Source, StoredSample
from pretrain.data.scene_render import render
from pretrain.data.scene_text import caption
from pretrain.data.scenes import Scene, draw_scene
from pretrain.rng import draw_rng


@dataclass
class SceneSample(RawSample):
    """A drawn scene; its caption is worded when it is chosen."""

    scene: Scene | None = None


class SceneSource(Source):
    """Scenes number 0..num_scenes-1 of a split; each is drawn anew from (seed, split, number) whenever it is asked for.

    Args:
        seed: 0 <= seed; the same seed gives the same scenes.
        split: "train", "val" or "test"; splits have no scene in common.
        img_size: side in pixels.
        num_scenes: how many there are.
        levels: weight of each named level.
        captions: weight of each caption style.
    """

    keys_fit_tar = True

    def __init__(
        self,
        *,
        seed: int,
        split: str,
        img_size: int,
        num_scenes: int,
        levels: Mapping[str, float],
        captions: Mapping[str, float],
    ) -> None:
        self.seed, self.split, self.img_size, self.num_scenes = seed, split, img_size, num_scenes
        self.levels, self.styles = dict(levels), dict(captions)
        self.faults = []
        self.choose_caption(
            self.load(0), np.random.default_rng(0)
        )  # a wrong level or style is an error now, not in a worker

    def __len__(self) -> int:
        return self.num_scenes

    def scene(self, index: int) -> Scene:
        return draw_scene(self.seed, self.split, index, self.levels)

    def load(self, index: int) -> SceneSample:
        scene = self.scene(index)
        return SceneSample(image=Image.fromarray(render(scene, self.img_size)), captions=[], key=scene.key, scene=scene)

    def read(self, index: int) -> StoredSample:
        """The scene as a PNG, with one caption of each style that has a weight, worded once and for all."""
        scene, file = self.scene(index), io.BytesIO()
        Image.fromarray(render(scene, self.img_size)).save(file, "PNG")
        weights = {style: weight for style, weight in self.styles.items() if weight > 0}
        kinds = {
            style: [caption(scene, {style: 1.0}, draw_rng(self.seed, f"stored/{self.split}/{style}", index))]
            for style in weights
        }
        texts = [text for kind in kinds.values() for text in kind]
        return StoredSample(file.getvalue(), Captions(texts, list(weights.values()), kinds), scene.key, scene.key)

    def choose_caption(self, sample: RawSample, rng: np.random.Generator) -> str:
        return caption(sample.scene, self.styles, rng)

    def iter_captions(self, limit: int | None = None) -> Iterator[str]:
        # a few thousand scenes hold every word that there is
        for index in range(min(self.num_scenes, limit or self.num_scenes, 5_000)):
            yield caption(self.scene(index), self.styles, draw_rng(self.seed, "tokenizer", index))
