"""torchvision's sets on small copies of their official layouts.

Their own checksums are off for CIFAR; HDF5 is a stand-in, as h5py is not among the dependencies.
"""

import hashlib
import json
import pickle
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import PCAM, cifar

from evals.data.config import build_set, load_dataset_config
from evals.data.labelled import BadSample
from evals.data.torchvision_sets import LAYOUTS, torchvision_set
from pretrain.types import UserError


def picture(path, color=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), color).save(path)


def shipped(name, root, *, num_classes):
    """Both splits by the shipped config; the copy has fewer classes, which is all that is changed."""
    config = replace(load_dataset_config(name, path=str(root), allow_sizes=True), num_classes=num_classes)
    return [build_set(config, split, img_size=32) for split in ("train", "test")]


def cifar_copy(root, name, keys):
    """Picture i of a file is all of grey level i."""
    folder = root / keys["folder"]
    folder.mkdir(parents=True)
    for number, file in enumerate(keys["files"]):
        labels = [(number + index) % 3 for index in range(4)]
        data = np.repeat(np.arange(4, dtype=np.uint8)[:, None], 3072, axis=1) + number * 10
        (folder / file).write_bytes(pickle.dumps({"data": data.astype(np.uint8), keys["label"]: labels}))
    (folder / keys["meta"]).write_bytes(pickle.dumps({keys["names"]: ["cat", "dog", "owl"]}))


@pytest.mark.parametrize(
    ("name", "keys", "num_train"),
    [
        (
            "cifar10",
            {
                "folder": "cifar-10-batches-py",
                "files": [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"],
                "label": "labels",
                "meta": "batches.meta",
                "names": "label_names",
            },
            20,
        ),
        (
            "cifar100",
            {
                "folder": "cifar-100-python",
                "files": ["train", "test"],
                "label": "fine_labels",
                "meta": "meta",
                "names": "fine_label_names",
            },
            4,
        ),
    ],
)
def test_cifar(tmp_path, monkeypatch, name, keys, num_train):
    cifar_copy(tmp_path, name, keys)
    with pytest.raises(UserError, match=r"torchvision finds no CIFAR.* wanted: cifar-10"):
        shipped(name, tmp_path, num_classes=3)  # the checksums are wrong
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: True)
    train, test = shipped(name, tmp_path, num_classes=3)
    assert (len(train), len(test), train.classes) == (num_train, 4, ("cat", "dog", "owl"))
    assert train.label_N[:4].tolist() == [0, 1, 2, 0]
    assert train.load(3).getpixel((0, 0)) == (3, 3, 3)
    number = len(keys["files"]) - 1
    assert test.load(2).getpixel((5, 5)) == (number * 10 + 2,) * 3
    assert train.pictures_identity() != test.pictures_identity()
    assert pickle.loads(pickle.dumps(test)).identity() == test.identity()


def test_food101(tmp_path):
    root = tmp_path / "food-101"
    for split in ("train", "test"):
        (root / "meta").mkdir(parents=True, exist_ok=True)
        lists = {"waffles": [f"waffles/{split}1"], "apple_pie": [f"apple_pie/{split}2", f"apple_pie/{split}3"]}
        (root / "meta" / f"{split}.json").write_text(json.dumps(lists))
    picture(root / "images/apple_pie/test3.jpg", (200, 0, 0))
    train, test = shipped("food101", tmp_path, num_classes=2)
    assert train.classes == test.classes == ("apple_pie", "waffles")
    assert test.label_N.tolist() == [1, 0, 0]
    assert test.key(2) == "food-101/images/apple_pie/test3.jpg"
    assert test.load(2).getpixel((0, 0))[0] > 190
    with pytest.raises(BadSample, match=r"missing: food-101/images/waffles/train1.jpg"):
        train.load(0)


def test_dtd_trains_on_train_and_val(tmp_path):
    root = tmp_path / "dtd/dtd"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for partition in (1, 2):
        for split in ("train", "val", "test"):
            lines = [f"{name}/{name}_{split}{partition}.jpg" for name in ("banded", "woven")]
            (root / "labels" / f"{split}{partition}.txt").write_text("\n".join(lines) + "\n")
    train, test = shipped("dtd", tmp_path, num_classes=2)
    names = [train.key(index).split("/")[-1] for index in range(4)]
    assert names == ["banded_train1.jpg", "woven_train1.jpg", "banded_val1.jpg", "woven_val1.jpg"]
    assert (train.label_N.tolist(), test.label_N.tolist()) == ([0, 1, 0, 1], [0, 1])
    assert test.key(0).endswith("banded_test1.jpg")
    (root / "labels" / "val1.txt").write_text("banded/x.jpg\n")
    with pytest.raises(UserError, match=r"the splits that make it up in .* have different classes"):
        shipped("dtd", tmp_path, num_classes=2)


def test_pets(tmp_path):
    """Columns: name, class from 1, species, breed of the species."""
    root = tmp_path / "oxford-iiit-pet"
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for split in ("trainval", "test"):
        text = "Abyssinian_100 1 1 1\namerican_bulldog_7 2 2 1\nAbyssinian_3 1 1 1\n"
        (root / "annotations" / f"{split}.txt").write_text(text)
    picture(root / "images/american_bulldog_7.jpg")
    train, test = shipped("pets", tmp_path, num_classes=2)
    assert train.classes == ("Abyssinian", "American Bulldog")
    assert train.label_N.tolist() == test.label_N.tolist() == [0, 1, 0]
    assert test.load(1).size == (6, 4)
    assert test.key(1) == "oxford-iiit-pet/images/american_bulldog_7.jpg"


def test_cars(tmp_path):
    root = tmp_path / "stanford_cars"
    for folder in ("cars_train", "cars_test", "devkit"):
        (root / folder).mkdir(parents=True)
    savemat(root / "devkit/cars_meta.mat", {"class_names": np.array(["AM General Hummer", "Acura RL"], dtype=object)})
    entry = np.dtype([("class", "i4"), ("fname", "O")])
    for path, names in [
        ("devkit/cars_train_annos.mat", ["00001.jpg", "00002.jpg"]),
        ("cars_test_annos_withlabels.mat", ["00007.jpg", "00008.jpg"]),
    ]:
        savemat(root / path, {"annotations": np.array([(2, names[0]), (1, names[1])], dtype=entry)})
    picture(root / "cars_test/00008.jpg")
    train, test = shipped("cars", tmp_path, num_classes=2)
    assert train.classes == ("AM General Hummer", "Acura RL")
    assert train.label_N.tolist() == test.label_N.tolist() == [1, 0]
    assert [test.key(1), train.key(0)] == ["stanford_cars/cars_test/00008.jpg", "stanford_cars/cars_train/00001.jpg"]
    assert test.load(1).size == (6, 4)


def test_eurosat_has_our_split(tmp_path):
    """10 and 20 pictures of two classes: 60% and 20% of each, in the order of the names' SHA-256, without overlap."""
    counts = {"Forest": 10, "River": 20}
    for name, count in counts.items():
        for number in range(count):
            picture(tmp_path / f"eurosat/2750/{name}/{name}_{number}.jpg")
    train, test = shipped("eurosat", tmp_path, num_classes=2)
    assert train.classes == ("Forest", "River")
    assert (np.bincount(train.label_N).tolist(), np.bincount(test.label_N).tolist()) == ([6, 12], [2, 4])

    def order(name):
        names = [f"{name}_{number}.jpg" for number in range(counts[name])]
        ordered = sorted(names, key=lambda file: hashlib.sha256(file.encode()).hexdigest())
        return [f"eurosat/2750/{name}/{file}" for file in ordered]

    assert [train.key(index) for index in range(18)] == order("Forest")[:6] + order("River")[:12]
    assert [test.key(index) for index in range(6)] == order("Forest")[8:] + order("River")[16:]
    for wrong in ("train", "60%-0%", "0%-101%"):
        with pytest.raises(UserError, match=f"'{wrong}' is no part of EuroSAT"):
            torchvision_set(tmp_path, dataset="EuroSAT", own_split=wrong, name="eurosat", split="train")


@pytest.fixture
def fake_h5py(monkeypatch):
    """h5py as far as torchvision's PCAM needs it, on .npz files."""

    class File(dict):
        def __init__(self, path):
            with np.load(path) as content:
                super().__init__(content)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    module = ModuleType("h5py")
    module.File = File
    monkeypatch.setitem(sys.modules, "h5py", module)


def test_pcam(tmp_path, fake_h5py):
    (tmp_path / "pcam").mkdir()
    for split, labels in {"train": [1, 0, 1], "test": [0, 1]}.items():
        files = PCAM._FILES[split]
        images = np.stack([np.full((8, 8, 3), 50 * number, dtype=np.uint8) for number in range(len(labels))])
        for kind, content in {"images": {"x": images}, "targets": {"y": np.reshape(labels, (-1, 1, 1, 1))}}.items():
            with (tmp_path / "pcam" / files[kind][0]).open("wb") as file:
                np.savez(file, **content)
    train, test = shipped("pcam", tmp_path, num_classes=2)
    assert (train.label_N.tolist(), test.label_N.tolist()) == ([1, 0, 1], [0, 1])
    assert train.load(2).getpixel((3, 3)) == (100, 100, 100)
    assert pickle.loads(pickle.dumps(train)).load(1).getpixel((0, 0)) == (50, 50, 50)
    assert train.pictures_identity() != test.pictures_identity()


def test_pcam_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"h5py is not found.*pip install h5py") as error:
        torchvision_set(tmp_path, dataset="PCAM", own_split="train", name="pcam", split="train")
    assert "\n" not in str(error.value)


def test_errors(tmp_path):
    def build(dataset, own_split="train", root=tmp_path):
        return torchvision_set(root, dataset=dataset, own_split=own_split, name="x", split="train")

    with pytest.raises(UserError, match=r"'Food11' is none of its sets \(did you mean 'Food101'"):
        build("Food11")
    with pytest.raises(UserError, match="CIFAR10 has the splits train and test, not 'val'"):
        build("CIFAR10", "val")
    with pytest.raises(UserError, match="gone' is not a folder; wanted: dtd/dtd/images"):
        build("DTD", root=tmp_path / "gone")
    for dataset in LAYOUTS:
        if dataset != "PCAM":
            with pytest.raises(UserError, match=f"torchvision finds no {dataset} in .*wanted: ") as error:
                build(dataset, "trainval" if dataset == "OxfordIIITPet" else "train")
            assert "\n" not in str(error.value)
