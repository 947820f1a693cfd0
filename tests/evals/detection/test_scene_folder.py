"""Scenes written once in the official layouts."""

import json
import pickle
from dataclasses import replace
from threading import Barrier, Thread

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import evals.detection.scene_folder as module
from evals.detection.canvas import tight_boxes
from evals.detection.coco_set import CocoSet
from evals.detection.scene_folder import SceneFolder, scene_folder
from pretrain.data.datamodule import VAL_SEED
from pretrain.data.scene_render import render
from pretrain.data.scenes import draw_scene
from pretrain.types import UserError

SETTINGS = SceneFolder(counts={"train": 6, "test": 4}, levels={"two": 0.5, "crowd": 0.5})


def test_both_layouts_are_there_and_agree(tmp_path):
    folder = scene_folder(SETTINGS, root=tmp_path / "data")
    for split, count in SETTINGS.counts.items():
        dataset = CocoSet(
            folder / f"annotations/instances_{split}.json", folder / f"images/{split}", name="scenes", split=split
        )
        assert len(dataset) == count
        assert dataset.repaired == {}
        assert dataset.classes[:2] == ("circle", "square")
        for index in range(count):
            image, objects = dataset.load(index)
            assert image.size == (32, 32)
            assert torch.equal(tight_boxes(objects.mask_NHW), objects.box_N4)
    instances = json.loads((folder / "refcoco/instances.json").read_text())
    refs = pickle.loads((folder / "refcoco/refs(unc).p").read_bytes())
    assert len(instances["images"]) == 10
    assert {ref["split"] for ref in refs} <= {"train", "test"}
    assert all((folder / "images" / image["file_name"]).is_file() for image in instances["images"])
    assert json.loads((folder / "settings.json").read_text())["counts"] == {"train": 6, "test": 4}


def test_a_folder_is_found_again(tmp_path, monkeypatch):
    folder = scene_folder(SETTINGS, root=tmp_path)
    monkeypatch.setattr(module, "write_layouts", None)  # would fail
    assert scene_folder(SETTINGS, root=tmp_path) == folder
    same = SceneFolder(counts={"test": 4, "train": 6}, levels={"crowd": 0.5, "one": 0, "two": 0.5})
    assert scene_folder(same, root=tmp_path) == folder


def test_whatever_decides_the_scenes_decides_the_folder(monkeypatch):
    others = [
        replace(SETTINGS, counts={"train": 6, "test": 5}),
        replace(SETTINGS, levels={"two": 0.5, "crowd": 0.4}),
        replace(SETTINGS, img_size=48),
        replace(SETTINGS, seed=1),
    ]
    names = {settings.identity() for settings in (SETTINGS, *others)}
    assert len(names) == 5
    seen = []
    monkeypatch.setattr(module, "source_hash", lambda *places: seen.extend(places) or "another renderer")
    assert SETTINGS.identity() not in names
    assert {"pretrain/data/scenes.py", "pretrain/data/scene_render.py", "pretrain/data/scene_layouts.py"} <= set(seen)


def test_an_interruption_leaves_nothing_half(tmp_path, monkeypatch):
    write = module.write_layouts

    def interrupted(folder, seed, split, *rest):
        if split == "test":
            raise KeyboardInterrupt
        return write(folder, seed, split, *rest)

    monkeypatch.setattr(module, "write_layouts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scene_folder(SETTINGS, root=tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    monkeypatch.setattr(module, "write_layouts", write)
    folder = scene_folder(SETTINGS, root=tmp_path)
    # a process that was killed could not clean up: what it left is no part of the next one's
    (tmp_path / "elsewhere").mkdir()
    left = tmp_path / "elsewhere" / f".{folder.name}.partial"
    (left / "images/train").mkdir(parents=True)
    (left / "images/train/old.png").touch()
    again = scene_folder(SETTINGS, root=tmp_path / "elsewhere")
    assert sorted(p.name for p in (again / "images/train").iterdir()) == sorted(
        p.name for p in (folder / "images/train").iterdir()
    )
    assert not left.exists()


def test_two_that_want_the_same_folder_write_it_once(tmp_path, monkeypatch):
    write, calls, both, found = module.write_layouts, [], Barrier(2), []
    monkeypatch.setattr(module, "write_layouts", lambda *args: calls.append(args) or write(*args))

    def want():
        both.wait()
        found.append(scene_folder(SETTINGS, root=tmp_path))

    threads = [Thread(target=want) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 2  # one for each split
    assert len(found) == 2
    assert found[0] == found[1]


def test_no_picture_is_one_of_pre_training_s(tmp_path):
    """With pre-training's levels, its seeds 0 to 2 and its validation set; with its seed they would be the very same."""
    with open(module._REPOSITORY / "configs/pretrain/aimv2_nano_scenes.yaml") as file:
        levels = yaml.safe_load(file)["data"]["train"]["levels"]
    folder = scene_folder(SceneFolder(counts={"train": 6, "val": 6, "test": 6}, levels=levels), root=tmp_path)
    same = scene_folder(SceneFolder(counts={"train": 6}, levels=levels, seed=0), root=tmp_path)

    def pictures(where):
        return {np.asarray(Image.open(path)).tobytes() for path in where.rglob("images/*/*.png")}

    drawn = {
        render(draw_scene(seed, split, index, levels), 32).tobytes()
        for seed, split in [(0, "train"), (1, "train"), (2, "train"), (VAL_SEED, "val"), (0, "test")]
        for index in range(6)
    }
    assert len(pictures(folder)) == 18
    assert not pictures(folder) & drawn
    assert pictures(same) <= drawn


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": {}}, "counts: none given; give a number of scenes for one or more of train, val, test"),
        ({"counts": {"tset": 3}}, "counts: 'tset' given"),
        ({"counts": {"test": 0}}, "counts: test=0 scenes; give 1 or more"),
        ({"levels": {"five": 1}}, "scene level 'five' is unknown"),
        ({"img_size": 16}, "img_size: 16 pixels are too few"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        scene_folder(replace(SETTINGS, **change), root=tmp_path)
    assert list(tmp_path.iterdir()) == []
