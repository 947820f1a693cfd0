import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from pretrain.data.scene_render import boxes_xywh, masks, render
from pretrain.data.scenes import COLORS, LEVELS, SHAPES, SIZES, Scene, draw_scene
from pretrain.types import UserError

ALL = dict.fromkeys(LEVELS, 1.0)


@cache
def scenes_of(level: str, num: int = 600) -> tuple[Scene, ...]:
    return tuple(draw_scene(5, "train", index, {level: 1}) for index in range(num))


def test_same_arguments_same_scene_and_picture():
    for index in range(50):
        first, second = (draw_scene(3, "val", index, ALL) for _ in range(2))
        assert first == second
        assert (render(first, 32) == render(second, 32)).all()


def test_order_of_the_weights_does_not_matter():
    backwards = dict(reversed(ALL.items()))
    assert all(draw_scene(1, "train", k, ALL) == draw_scene(1, "train", k, backwards) for k in range(50))


def test_seed_split_and_index_each_change_the_scene():
    keys, pictures = set(), set()
    for seed, split, index in [(s, p, k) for s in (0, 1) for p in ("train", "val", "test") for k in range(100)]:
        scene = draw_scene(seed, split, index, ALL)
        keys.add(scene.key)
        pictures.add(render(scene, 32).tobytes())
    assert len(keys) == len(pictures) == 600


def test_key_settles_the_scene_whatever_the_weights():
    mixed = [draw_scene(0, "train", k, {"one": 1, "crowd": 3}) for k in range(60)]
    assert {scene.level for scene in mixed} == {"one", "crowd"}
    for scene in mixed:
        alone = draw_scene(0, "train", scene.index, {scene.level: 1})
        assert (scene.key, scene) == (alone.key, alone)


def test_weights_set_the_shares_of_levels():
    drawn = [draw_scene(0, "train", k, {"one": 1, "two": 3, "word": 0}).level for k in range(2000)]
    assert set(drawn) == {"one", "two"}
    # 1500 expected, standard deviation sqrt(2000 * 0.75 * 0.25) = 19
    assert abs(drawn.count("two") - 1500) < 90


@pytest.mark.parametrize("level", LEVELS)
def test_one_object_is_the_largest_by_class_and_by_area(level):
    ranks = list(SIZES)
    for scene in scenes_of(level):
        first, *others = (ranks.index(obj.size) for obj in scene.objects)
        assert all(rank < first for rank in others)
        assert scene.largest is max(scene.objects, key=lambda obj: obj.diameter)
        if not others:
            continue
        # whole areas: each object alone, nothing in front
        whole = [masks(_alone(scene, k), 64)[0].sum() for k in range(len(scene.objects))]
        assert whole[0] > max(whole[1:]), scene.key


def _alone(scene: Scene, *indices: int) -> Scene:
    return replace(scene, objects=tuple(scene.objects[k] for k in indices), text=None)


@pytest.mark.parametrize(("level", "num_objects", "written"), [("one", {1}, 0), ("two", {2}, 0), ("three", {3}, 0)])
def test_levels_without_overlap(level, num_objects, written):
    scenes = scenes_of(level)
    assert {len(scene.objects) for scene in scenes} == num_objects
    assert sum(scene.text is not None for scene in scenes) == written
    for scene in scenes:
        _assert_nothing_hidden(scene)


def _assert_nothing_hidden(scene: Scene) -> None:
    visible = masks(scene, 48)
    for k in range(len(scene.objects)):
        assert (visible[k] == masks(_alone(scene, k), 48)[0]).all(), scene.key


def test_word_has_a_string_beside_its_object():
    scenes = scenes_of("word")
    for scene in scenes:
        assert len(scene.objects) == 1
        assert scene.text is not None
        content = scene.text.content
        assert content.isdigit() or (content.isalpha() and content.isupper() and not set(content) & set("IOQ"))
        assert content[0] != "0"
        assert scene.text.height >= 0.25
        _assert_nothing_hidden(scene)
    # numbers and letters of one, two and three characters, about 100 each
    counts = [
        sum((len(s.text.content), s.text.content.isdigit()) == (n, d) for s in scenes)
        for n in (1, 2, 3)
        for d in (0, 1)
    ]
    assert min(counts) > 60


def test_written_strings_stay_in_the_picture():
    for scene in scenes_of("word")[:200]:
        bare = replace(scene, text=None)
        changed = (render(scene, 64) != render(bare, 64)).any(-1)
        assert boxes_xywh(changed[None])[0][3] >= 0.25 * 64
        fill = (np.abs(render(scene, 64).astype(int) - scene.text.rgb).max(-1) < 40) & changed
        assert fill.sum() > 30
        assert not fill[[0, -1]].any()
        assert not fill[:, [0, -1]].any()


def test_crowds_overlap_but_leave_enough_to_see():
    num_overlapping = 0
    scenes = scenes_of("crowd")
    for scene in scenes:
        assert len(scene.objects) in (4, 5)
        visible = masks(scene, 64)
        whole = np.stack([masks(_alone(scene, k), 64)[0] for k in range(len(scene.objects))])
        shares = visible.sum((1, 2)) / whole.sum((1, 2))
        assert shares[0] >= 0.6, scene.key
        assert shares.min() >= 0.4, scene.key
        num_overlapping += shares.min() < 1
    assert num_overlapping > 200
    assert 0.15 < sum(scene.text is not None for scene in scenes) / len(scenes) < 0.4


def test_objects_lie_within_the_picture():
    for level in LEVELS:
        for obj in (obj for scene in scenes_of(level) for obj in scene.objects):
            reach = obj.radius - 1e-9
            assert reach <= min(obj.center_x, obj.center_y)
            assert max(obj.center_x, obj.center_y) <= 1 - reach


def test_masks_do_not_overlap_and_boxes_are_tight():
    for scene in scenes_of("crowd")[:200]:
        visible = masks(scene, 40)
        assert visible.sum(0).max() <= 1
        for mask, (left, top, width, height) in zip(visible, boxes_xywh(visible).astype(int), strict=True):
            inside = mask[top : top + height, left : left + width]
            assert inside.sum() == mask.sum() > 0
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_written_strings_hide_what_lies_behind_them():
    num_hidden = 0
    for scene in (scene for scene in scenes_of("crowd") if scene.text):
        bare = replace(scene, text=None)
        # the string covers a pixel fully where the picture's value no longer depends on what was there before
        fill = (render(scene, 64) == scene.text.rgb).all(-1) & (render(bare, 64) != scene.text.rgb).any(-1)
        assert not (masks(scene, 64) & fill).any()
        num_hidden += (masks(bare, 64) & fill).any()
    assert num_hidden > 15


def test_masks_are_where_the_colours_are():
    # solid objects on their own: every pixel well inside the mask has the object's shade, none far outside
    for scene in scenes_of("three")[:150]:
        picture, visible = render(scene, 96).astype(int), masks(scene, 96)
        for obj, mask in zip(scene.objects, visible, strict=True):
            if obj.texture == "solid":
                exact = (np.abs(picture - obj.rgb).max(-1) <= 1) & mask
                assert exact.sum() > 0.6 * mask.sum()


def test_background_noise_cannot_be_taken_for_another_named_colour():
    means = {}
    for scene in scenes_of("one"):
        outside = render(scene, 48)[~masks(scene, 48)[0]]
        means.setdefault(scene.background.color, []).append(outside.mean(0))
    centers = {name: np.mean(values, 0) for name, values in means.items()}
    for name, values in means.items():
        nearest = [min(centers, key=lambda other: np.abs(centers[other] - value).sum()) for value in values]
        assert nearest.count(name) >= 0.97 * len(nearest)


def test_boxes_by_hand():
    visible = np.zeros((2, 6, 8), dtype=bool)
    visible[0, 2:4, 3:7] = True  # rows 2 and 3, columns 3 to 6
    assert boxes_xywh(visible).tolist() == [[3, 2, 4, 2], [0, 0, 0, 0]]


def test_labels_are_uniform_and_independent():
    num = 6400
    table = np.zeros((8, 8))
    for index in range(num):
        scene = draw_scene(11, "train", index, ALL)
        assert SHAPES[scene.largest_shape_label] == scene.objects[0].shape
        assert COLORS[scene.largest_color_label] == scene.objects[0].color
        table[scene.largest_shape_label, scene.largest_color_label] += 1
    # 63 degrees of freedom: mean 63, standard deviation 11.2; four of them above
    expected = num / 64
    assert ((table - expected) ** 2 / expected).sum() < 63 + 4 * math.sqrt(2 * 63)


def test_largest_shape_does_not_tell_the_size():
    large = {shape: [0, 0] for shape in SHAPES}
    for scene in (scene for level in ("two", "three", "crowd") for scene in scenes_of(level)):
        counts = large[scene.largest.shape]
        counts[0] += scene.largest.size == "large"
        counts[1] += 1
    total = sum(c[0] for c in large.values()) / sum(c[1] for c in large.values())
    # about 225 scenes a shape: standard deviation 0.033
    assert all(abs(c[0] / c[1] - total) < 0.14 for c in large.values())


@pytest.mark.parametrize("img_size", [16, 32, 57, 112])
def test_render_is_uint8_rgb_of_the_size_asked_for(img_size):
    picture = render(draw_scene(0, "train", 3, ALL), img_size)
    assert picture.shape == (img_size, img_size, 3)
    assert picture.dtype == np.uint8


def test_sizes_show_the_same_scene():
    for scene in (draw_scene(0, "test", k, {"three": 1}) for k in range(60)):
        small, big = render(scene, 32).astype(float), render(scene, 128).astype(float)
        reduced = big.reshape(32, 4, 32, 4, 3).mean((1, 3))
        if scene.background.kind in ("plain", "gradient"):
            assert np.abs(reduced - small).mean() < 3


def test_unknown_level_is_one_line_that_lists_the_known():
    with pytest.raises(UserError) as error:
        draw_scene(0, "train", 0, {"threee": 1})
    message = str(error.value)
    assert "\n" not in message
    assert "'threee'" in message
    assert all(level in message for level in LEVELS)


@pytest.mark.parametrize(
    ("split", "index", "weights"),
    [
        ("dev", 0, {"one": 1}),
        ("train", -1, {"one": 1}),
        ("train", 0, {}),
        ("train", 0, {"one": 0}),
        ("train", 0, {"one": -1}),
    ],
)
def test_bad_arguments_are_user_errors(split, index, weights):
    with pytest.raises(UserError):
        draw_scene(0, split, index, weights)


def test_too_small_a_picture_is_a_user_error():
    scene = draw_scene(0, "train", 0, ALL)
    for function in (render, masks):
        with pytest.raises(UserError, match="img_size 8"):
            function(scene, 8)
