"""Scenes as a labelled set."""

from dataclasses import replace

import numpy as np
import pytest

from evals.data.config import build_set, load_dataset_config
from evals.data.scene_set import SceneSet
from evals.scenes import draw_set
from pretrain.data.scenes import COLORS, LEVELS, SHAPES
from pretrain.types import UserError


def shipped(name, split, *, size=16, **changes):
    config = replace(load_dataset_config(name), num_train=40, num_test=20, **changes)
    return build_set(config, split, img_size=size)


@pytest.mark.parametrize("split", ["train", "test"])
def test_pictures_and_labels_are_those_of_the_scenes(split):
    """Against evals.scenes, which draws the same ranges: validation from 100,000, test from 0, levels in turn."""
    start = {"train": ("val", 100_000, 40), "test": ("test", 0, 20)}[split]
    theirs = draw_set(start[0], num=start[2], img_size=16, start=start[1])
    shape, both = shipped("scenes_shape", split), shipped("scenes_shape_color", split)
    assert shape.label_N.tolist() == theirs.labels("shape").tolist()
    assert both.label_N.tolist() == (theirs.labels("shape") * 8 + theirs.labels("color")).tolist()
    for index in (0, 3, len(shape) - 1):
        scene = theirs.scenes[index]
        assert np.array_equal(np.asarray(shape.load(index)).transpose(2, 0, 1), theirs.image_BCHW[index].numpy())
        assert shape.key(index) == scene.key
        assert shape.classes[shape.label_N[index]] == scene.largest.shape
        assert both.classes[both.label_N[index]] == f"{scene.largest.color} {scene.largest.shape}"
    assert shape.synthetic


def test_classes():
    assert shipped("scenes_shape", "test").classes == SHAPES
    both = shipped("scenes_shape_color", "test").classes
    assert (len(both), both[0], both[1], both[8]) == (64, f"{COLORS[0]} circle", f"{COLORS[1]} circle", "red square")
    assert len(set(both)) == 64


def test_levels_take_equal_parts():
    scenes = shipped("scenes_shape", "train")
    levels = [scenes.scene(index).level for index in range(40)]
    assert {level: levels.count(level) for level in LEVELS} == dict.fromkeys(LEVELS, 8)


def test_both_targets_share_features():
    shape, both = shipped("scenes_shape", "train"), shipped("scenes_shape_color", "train")
    assert shape.pictures_identity() == both.pictures_identity()
    assert shape.identity() != both.identity()
    others = [shipped("scenes_shape", "test"), shipped("scenes_shape", "train", size=24)]
    others += [shipped("scenes_shape", "train", **change) for change in ({"seed": 1}, {"levels": ["one"]})]
    identities = {one.pictures_identity() for one in [shape, *others]}
    assert len(identities) == 5


def test_errors():
    with pytest.raises(
        UserError, match=r"scenes_shape: levels: 'crowds' is no level \(did you mean 'crowd'\?\)"
    ) as error:
        shipped("scenes_shape", "train", levels=["crowds"])
    assert "DATA=" not in str(error.value)
    numbers = {"start": 0, "levels": ["one"], "target": "shape", "seed": 0, "name": "x", "split": "train"}
    with pytest.raises(UserError, match="num=0"):
        SceneSet("val", count=0, img_size=16, **numbers)
    with pytest.raises(UserError, match="scene split 'vall' is unknown"):
        SceneSet("vall", count=2, img_size=16, **numbers)
