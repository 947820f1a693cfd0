"""Detection data sets by name."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from evals.detection.datasets import detection_names, load_detection_config
from pretrain.types import UserError


def write_split(folder, split, *, count=2, categories=((1, "cat"), (2, "dog"))):
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir()
    images = []
    for k in range(count):
        Image.new("RGB", (4, 3)).save(folder / split / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "width": 4, "height": 3})
    segmentation = [[1, 0, 3, 0, 3, 2, 1, 2]]
    annotation = {"id": 1, "image_id": 0, "category_id": 2, "bbox": [1, 0, 2, 2], "area": 4, "iscrowd": 0}
    content = {
        "images": images,
        "annotations": [{**annotation, "segmentation": segmentation}],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture
def own(tmp_path):
    write_split(tmp_path, "train", count=3)
    write_split(tmp_path, "val")
    return tmp_path


@pytest.fixture
def config_file(tmp_path):
    def write(**content):
        path = tmp_path / "mine.yaml"
        needed = {"kind": "coco", "split_rule": "as it is", "source": "own", "license": "own"}
        path.write_text(json.dumps({**needed, **content}))  # JSON is YAML
        return str(path)

    return write


def test_every_shipped_config_is_read():
    assert detection_names() == ["coco2017", "coco_mini", "folder", "lvis_v1", "scenes"]
    for name in detection_names():
        config = load_detection_config(name, path="somewhere" if name == "folder" else None)
        assert config.name == name
        assert config.synthetic == (name == "scenes")


def test_coco_s_sizes_are_expected():
    # cocodataset.org: 118,287 and 5,000 pictures, 80 classes
    config = load_detection_config("coco2017")
    assert (config.num_train, config.num_test, config.num_classes) == (118287, 5000, 80)


def test_the_user_s_own_folder(own):
    train, test = load_detection_config("folder", path=str(own)).build(with_masks=True)
    assert (train.name, train.split, test.split) == ("folder", "train", "test")
    assert (len(train), len(test)) == (3, 2)
    assert train.classes == test.classes == ("cat", "dog")
    assert train.load(0)[1].mask_NHW is not None
    train, _ = load_detection_config("folder", path=str(own)).build(with_masks=False)
    assert train.load(0)[1].mask_NHW is None
    with pytest.raises(UserError, match=r"dataset folder.yaml: path is needed with kind coco; name the data's folder"):
        load_detection_config("folder")


def test_files_named_in_a_config(own, config_file):
    names = {"train_annotations": "annotations/instances_train.json", "train_images": "train"}
    names |= {"test_annotations": "annotations/instances_val.json", "test_images": "val"}
    config = load_detection_config(config_file(path=str(own), num_train=3, **names))
    assert config.name == "mine"
    assert len(config.build(with_masks=True)[0]) == 3
    with pytest.raises(
        UserError, match=r"mine: path: '.*nowhere' is not a folder; wanted: annotations/instances_train"
    ):
        replace(config, path=str(own / "nowhere")).build(with_masks=True)
    with pytest.raises(UserError, match=r"mine: path: '.*val2' is not a folder; wanted: the pictures"):
        replace(config, test_images="val2").build(with_masks=True)
    with pytest.raises(UserError, match=r"mine: path: .*instances_vla.json' is not there .did you mean 'instances_val"):
        replace(config, test_annotations="annotations/instances_vla.json").build(with_masks=True)
    wrong = load_detection_config(config_file(path=str(own), num_train=4, **names))
    with pytest.raises(UserError, match="mine: its train annotations name 3 pictures, 4 are expected; complete"):
        wrong.build(with_masks=True)
    allowed = load_detection_config(config_file(path=str(own), num_train=4, **names), allow_sizes=True)
    assert len(allowed.build(with_masks=True)[0]) == 3
    with pytest.raises(UserError, match="mine: 2 classes are there, 5 are expected"):
        replace(allowed, num_classes=5).build(with_masks=True)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (((1, "cat"), (2, "cow")), "category 2 is 'dog' in the training annotations, 'cow' in those for the test"),
        (((1, "cat"), (2, "dog"), (5, "cow")), "category 5 is not there in the training annotations, 'cow'"),
    ],
)
def test_two_files_with_different_classes(tmp_path, categories, message):
    write_split(tmp_path, "train")
    write_split(tmp_path, "val", categories=categories)
    with pytest.raises(UserError, match=f"folder: {message}"):
        load_detection_config("folder", path=str(tmp_path)).build(with_masks=True)


@pytest.mark.shared_data
def test_coco_mini(shared_data):
    train, test = load_detection_config("coco_mini", path=str(shared_data / "coco_mini")).build(with_masks=True)
    assert (len(train), len(test), len(train.classes)) == (80, 79, 80)
    assert not train.synthetic
    with pytest.raises(UserError, match="coco2017: its train annotations name 80 pictures, 118,287 are expected"):
        load_detection_config("coco2017", path=str(shared_data / "coco_mini")).build(with_masks=False)


def test_scenes(tmp_path):
    config = replace(load_detection_config("scenes"), num_train=5, num_test=3)
    train, test = config.build(with_masks=True, root=tmp_path)
    assert (len(train), len(test), len(train.classes)) == (5, 3, 8)
    assert train.synthetic
    assert train.load(0)[0].size == (32, 32)
    assert train.identity() == config.build(with_masks=True, root=tmp_path)[0].identity()
    with pytest.raises(UserError, match=r"dataset scenes.yaml: path='x': scenes are generated"):
        load_detection_config("scenes", path="x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pth": "x"}, "field 'pth' is unknown; known are"),
        ({"num_train": "many"}, "dataset mine.yaml: .*num_train.* many"),
        ({"kind": "voc"}, "dataset mine.yaml: .*kind.* voc"),
        ({"path": "x"}, "dataset mine.yaml: train_annotations is needed with kind coco"),
        ({"kind": "scenes", "num_train": 2}, "dataset mine.yaml: levels is needed with kind scenes"),
        (
            {"kind": "scenes", "num_train": 2, "num_test": 2, "levels": {"one": 1}, "test_images": "x"},
            "dataset mine.yaml: test_images='x' is not used by kind scenes; leave it out",
        ),
        (
            {"kind": "scenes", "num_train": 2, "num_test": 2, "levels": {"ten": 1}},
            "dataset mine.yaml: scene level 'ten' is unknown",
        ),
        ({"num_classes": 0, "path": "x"}, "dataset mine.yaml: train_annotations is needed"),
    ],
)
def test_configs_that_are_wrong(config_file, content, message):
    with pytest.raises(UserError, match=message) as error:
        load_detection_config(config_file(**content))
    assert "\n" not in str(error.value)


def test_unknown_names(tmp_path):
    with pytest.raises(
        UserError, match="dataset: 'coco' is unknown; give one of coco2017, coco_mini, folder, lvis_v1, scenes"
    ):
        load_detection_config("coco")
    with pytest.raises(UserError, match=r"dataset: '.*none.yaml' is no file"):
        load_detection_config(str(tmp_path / "none.yaml"))
    (tmp_path / "half.yaml").write_text("kind: coco\n")
    with pytest.raises(UserError, match=r"dataset half.yaml: .*split_rule, source, license"):
        load_detection_config(str(tmp_path / "half.yaml"))
