"""Grounding data sets by name: shipped configs, the official folders, generated scenes, and what is told of wrong ones."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from ref_cases import annotation, instances, ref, refs, write_release

import evals.grounding.datasets as module
from evals.detection.scene_folder import SCENE_SEED
from evals.grounding.datasets import load_ref_config, ref_names
from pretrain.data.scene_render import render
from pretrain.data.scenes import draw_scene
from pretrain.types import UserError

NEEDED = {"kind": "release", "split_rule": "as it is", "source": "own", "license": "own", "images": ["train2014"]}
SCENES = {"counts": {"train": 6, "val": 4, "test": 5}, "levels": {"two": 0.5, "three": 0.5}}


@pytest.fixture
def config_file(tmp_path):
    def write(**content):
        path = tmp_path / "mine.yaml"
        content = {key: value for key, value in (NEEDED | content).items() if value is not None}
        path.write_text(json.dumps(content))  # JSON is YAML
        return str(path)

    return write


@pytest.fixture
def scene_file(config_file):
    def write(**content):
        return config_file(**({"kind": "scenes", "images": None, "scored": ["test"]} | SCENES | content))

    return write


def error_of(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_shipped_config_is_read():
    assert ref_names() == ["refcoco", "refcoco+", "refcoco_mini", "refcocog", "scenes"]
    for name in ref_names():
        config = load_ref_config(name)
        assert config.name == name
        assert (config.kind == "scenes") == (name == "scenes")
        assert config.reported in (None, *config.scored)


@pytest.mark.parametrize(
    ("name", "split_by", "scored"),
    [
        # the release's own splits; the reference's section 7, Table 4 reports val of all three
        ("refcoco", "unc", ["val", "testA", "testB"]),
        ("refcoco+", "unc", ["val", "testA", "testB"]),
        ("refcocog", "umd", ["val", "test"]),
    ],
)
def test_official_releases(tmp_path, name, split_by, scored):
    entries = refs()[:3]
    content = instances()
    for number, split in enumerate(scored[1:]):
        content["annotations"].append(annotation(50 + number, 1, [number, 3, 5, 7]))
        entries.append(ref(50 + number, 50 + number, 1, split, f"{split} man"))
    folder, _ = write_release(tmp_path, content=content, entries=entries, split_by=split_by)
    folder.rename(tmp_path / name)
    notes = []
    data = load_ref_config(name, path=str(tmp_path)).build(img_size=224, note=notes.append)
    assert (data.name, data.synthetic, data.reported) == (name, False, "val")
    assert (data.train.split, data.watch.split) == ("train", "val")
    assert [part.split for part in data.scored] == scored
    assert [part.split for part in data.splits()] == ["train", *scored]
    assert [len(part) for part in data.splits()] == [3, 2] + [1] * len(scored[1:])
    assert data.watch is data.scored[0]
    assert data.leaks.num_samples == 0
    assert notes == [f"{name} train: 1 boxes reach outside their picture and are clipped"]


@pytest.mark.parametrize("place", ["train2014", "images/train2014", "images/mscoco/images/train2014", "../train2014"])
def test_pictures_are_looked_for_where_they_usually_lie(tmp_path, place):
    root = tmp_path / "root"
    _, images = write_release(root, entries=[*refs(), ref(5, 16, 94, "testB", "shoe")])
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    images.rename(root / place)
    data = load_ref_config("refcoco", path=str(root)).build(img_size=224)
    assert data.train.folder.resolve() == (root / place).resolve()
    assert data.train.load(581857).size == (40, 30)


def test_another_folder_of_pictures_and_none(tmp_path, config_file):
    root = tmp_path / "root"
    _, images = write_release(root)
    images.rename(tmp_path / "elsewhere")
    config = load_ref_config(config_file(path=str(root), annotations="refcoco"))
    text = error_of(config.build, img_size=224)
    assert text.startswith("mine: ")
    assert (
        "has no folder of pictures (train2014); wanted: train2014 of COCO 2014, or name the folder with --images"
        in text
    )
    assert config.build(img_size=224, images=str(tmp_path / "elsewhere")).train.folder == tmp_path / "elsewhere"
    text = error_of(config.build, img_size=224, images=str(tmp_path / "nowhere"))
    assert "nowhere' is not there; wanted: the folder that holds 'COCO_train2014_000000581857.jpg'" in text
    text = error_of(config.build, img_size=224, images=str(root))
    assert "lacks the pictures that instances.json names" in text


def test_data_that_is_not_there(tmp_path, config_file):
    config = load_ref_config("refcoco", path=str(tmp_path / "nowhere"))
    text = error_of(config.build, img_size=224)
    assert "nowhere' is not a folder; wanted: refcoco with instances.json and refs(unc).p, and the pictures" in text
    write_release(tmp_path)
    assert "refs(umd).p' is not there (did you mean 'refs(unc).p'?)" in error_of(
        load_ref_config(config_file(path=str(tmp_path), annotations="refcoco", split_by="umd")).build, img_size=224
    )
    text = error_of(
        load_ref_config(config_file(path=str(tmp_path), annotations="refcoco", scored=["testB"])).build, img_size=224
    )
    assert "mine: " in text
    assert "has no split 'testB' (did you mean 'testA'?); it has testA, train, val" in text


def test_google_s_split_divides_objects_so_training_goes_without_val_s_pictures(tmp_path, config_file):
    entries = [*refs()[:3], ref(5, 16, 94, "train", "shoe", "old shoe")]
    write_release(tmp_path, entries=entries, split_by="google")
    notes = []
    config = load_ref_config(config_file(path=str(tmp_path), annotations="refcoco", split_by="google"))
    data = config.build(img_size=224, note=notes.append)
    assert data.train.image_ids.tolist() == [581857]
    assert (data.leaks.num_pictures, data.leaks.num_samples) == (1, 2)
    assert notes[-1] == (
        "mine: 1 training pictures (2 expressions) are left out: they are in splits that are held out or scored (1 in mine val)"
    )


def test_what_is_watched_is_kept_out_of_training_even_where_it_is_not_scored(tmp_path, config_file):
    entries = [*refs(), ref(5, 16, 94, "train", "shoe")]
    write_release(tmp_path, entries=entries)
    config = load_ref_config(config_file(path=str(tmp_path), annotations="refcoco", watch="val", scored=["testA"]))
    data = config.build(img_size=224, note=lambda _: None)
    assert data.train.image_ids.tolist() == [581857]
    assert [part.split for part in data.splits()] == ["train", "val", "testA"]
    assert data.reported == "testA"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "path is needed with kind release; name the data's folder with --data"),
        ({"path": "x", "images": []}, "images is needed with kind release"),
        ({"path": "x", "counts": {"train": 3}}, "counts={'train': 3} is not used by kind release; leave it out"),
        ({"path": "x", "scored": []}, "scored names no split; give one or more"),
        ({"path": "x", "reported": "test"}, "reported='test' is none of the splits that are scored, ['val']"),
        ({"path": "x", "train": "val"}, "train='val' is watched or scored too; name another split"),
        ({"path": "x", "scored": ["train"]}, "train='train' is watched or scored too"),
        ({"path": "x", "split_by": "berkeley"}, "berkeley"),
        ({"path": "x", "kind": "vqa"}, "vqa"),
        ({"path": "x", "source": None}, "source"),
        ({"path": "x", "seed": "one"}, "one"),
        ({"path": "x", "splitby": "umd"}, "field 'splitby' is unknown; known are kind"),
    ],
)
def test_configs_that_cannot_be_meant(config_file, change, told):
    text = error_of(load_ref_config, config_file(**change))
    assert "mine.yaml" in text
    assert told in text


def test_names_and_files_that_there_are_not(tmp_path):
    assert "dataset: 'refcocoplus' is unknown; give one of refcoco, refcoco+," in error_of(
        load_ref_config, "refcocoplus"
    )
    assert "is no file" in error_of(load_ref_config, str(tmp_path / "x.yaml"))


def test_scenes_are_neither_read_from_a_folder_nor_with_other_pictures(tmp_path):
    assert "--data=here: scenes are drawn, not read" in error_of(load_ref_config, "scenes", path="here")
    assert "--images=here: scenes are drawn, not read" in error_of(
        load_ref_config("scenes").build, img_size=32, images="here"
    )


def test_scenes_of_a_config_that_lacks_what_they_are(scene_file):
    assert "levels is needed with kind scenes" in error_of(load_ref_config, scene_file(levels=None))
    assert "path='x' is not used by kind scenes" in error_of(load_ref_config, scene_file(path="x"))


def test_scenes_are_written_once_and_read_as_a_release(tmp_path, monkeypatch, scene_file):
    monkeypatch.setattr(module, "DATA_ROOT", tmp_path / "data")
    config = load_ref_config(scene_file())
    notes = []
    data = config.build(img_size=16, note=notes.append)
    assert (data.name, data.synthetic, data.reported, notes) == ("mine", True, "test", [])
    assert data.leaks.num_samples == 0
    levels = SCENES["levels"]
    for part, split in zip(data.splits(), ("train", "val", "test"), strict=True):
        assert part.split == split
        assert len(part.image_ids) <= SCENES["counts"][split]
        assert len(part) >= len(part.image_ids) >= 2
        for expression in part.expressions:
            # picture number n of a split is its scene n - 1; splits are a million apart (pretrain/data/scene_layouts.py)
            scene = draw_scene(SCENE_SEED, split, (expression.image_id - 1) % 1_000_000, levels)
            assert np.array_equal(np.asarray(part.load(expression.image_id)), render(scene, 32))
            assert list(expression.box) in part.objects(expression.image_id).tolist()
            assert len(part.objects(expression.image_id)) == len(scene.objects) > 1
    assert len(list((tmp_path / "data").glob("scenes-*"))) == 1
    before = data.train.identity()
    assert config.build(img_size=32).train.identity() == before
    assert len(list((tmp_path / "data").glob("scenes-*"))) == 1
    assert config.build(img_size=48).train.load(1).size == (48, 48)
    assert replace(config, seed=3).build(img_size=32).train.identity() != before


def test_the_shipped_scenes_with_fewer_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DATA_ROOT", tmp_path)
    config = replace(load_ref_config("scenes"), counts={"train": 4, "val": 3, "test": 3})
    data = config.build(img_size=32, note=lambda _: None)
    assert [part.split for part in data.splits()] == ["train", "val", "test"]
    assert [part.split for part in data.scored] == ["test"]
    for part in data.splits():
        assert all(len(part.objects(image_id)) > 1 for image_id in part.image_ids.tolist())


@pytest.mark.shared_data
def test_the_shared_release_by_its_config(shared_data, tmp_path):
    """76 of the 150 photographs are for training and in no other split; a val photograph given to training is dropped."""
    config = load_ref_config("refcoco_mini", path=str(shared_data / "refcoco_mini"))
    notes = []
    data = config.build(img_size=224, note=notes.append)
    assert [(part.split, len(part), len(part.image_ids)) for part in data.splits()] == [
        ("train", 586, 76),
        ("val", 176, 53),
        ("testA", 148, 48),
        ("testB", 180, 52),
    ]
    assert notes == []
    assert data.leaks.num_samples == 0
    assert data.leaks.by_split == {"refcoco_mini val": 0, "refcoco_mini testA": 0, "refcoco_mini testB": 0}
    own = tmp_path / "refcoco_mini" / "refcoco"
    own.mkdir(parents=True)
    (own / "instances.json").write_bytes((shared_data / "refcoco_mini/refcoco/instances.json").read_bytes())
    entries = pickle.loads((shared_data / "refcoco_mini/refcoco/refs(unc).p").read_bytes())  # ours
    moved = next(entry for entry in entries if entry["split"] == "val")
    also = [entry["split"] for entry in entries if entry["image_id"] == moved["image_id"] and entry is not moved]
    moved["split"] = "train"
    (own / "refs(unc).p").write_bytes(pickle.dumps(entries))
    config = load_ref_config("refcoco_mini", path=str(own.parent))
    data = config.build(img_size=224, images=str(shared_data / "coco_mini"), note=notes.append)
    assert also  # it is still scored
    assert len(data.train) == 586
    assert (data.leaks.num_pictures, data.leaks.num_samples) == (1, len(moved["sentences"]))
    assert len(notes) == 1
