"""Sets in files: class folders, ImageNet's official folders, tables and lists."""

import json
import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evals.data.config import build_set, load_dataset_config
from evals.data.folders import folder_set
from evals.data.imagenet import class_names, imagenet_set, wnids
from evals.data.labelled import BadSample
from evals.data.tables import inaturalist_set, table_set
from pretrain.types import UserError

NAMES = {"name": "mine", "split": "train"}


def picture(path, color=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), color).save(path)


@pytest.fixture
def folders(tmp_path):
    """Two classes; b comes first in time, a first by name."""
    for split, names in {"train": ("b/1.png", "b/0.png", "a/x.jpg"), "test": ("a/y.png", "b/z.png")}.items():
        for name in names:
            picture(tmp_path / split / name)
    return tmp_path


def both(root, **options):
    return [
        folder_set(root, own_split=split, train_split="train", name="mine", split=split, **options)
        for split in ("train", "test")
    ]


class TestFolders:
    def test_classes_and_pictures_are_sorted(self, folders):
        train, test = both(folders)
        assert train.classes == test.classes == ("a", "b")
        assert train.label_N.tolist() == [0, 1, 1]
        assert [train.key(index) for index in range(3)] == ["train/a/x.jpg", "train/b/0.png", "train/b/1.png"]
        assert test.label_N.tolist() == [0, 1]
        image = train.load(1)
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (6, 4), (10, 20, 30))
        assert len(train) == 3

    def test_given_order_of_classes(self, folders):
        assert both(folders, classes=["b", "a"])[0].label_N.tolist() == [0, 0, 1]

    def test_identity_is_that_of_names_and_bytes(self, folders, tmp_path):
        train, test = both(folders)
        assert train.pictures_identity() == both(folders)[0].pictures_identity() != test.pictures_identity()
        assert pickle.loads(pickle.dumps(train)).pictures_identity() == train.pictures_identity()
        picture(folders / "train/b/0.png", color=(11, 20, 30))
        assert both(folders)[0].pictures_identity() != train.pictures_identity()

    def test_unreadable_pictures_are_bad_samples(self, folders):
        (folders / "train/a/x.jpg").write_bytes(b"nonsense")
        train = both(folders)[0]
        with pytest.raises(BadSample, match=r"corrupt: train/a/x.jpg"):
            train.load(0)
        (folders / "train/a/x.jpg").unlink()
        with pytest.raises(BadSample, match=r"missing: train/a/x.jpg"):
            train.load(0)

    def test_other_files_are_told(self, folders, caplog):
        (folders / "train/a/Thumbs.db").write_bytes(b"")
        with caplog.at_level(logging.WARNING):
            assert len(both(folders)[0]) == 3
        assert "1 files are no pictures: a/Thumbs.db" in caplog.text

    def test_errors(self, folders, tmp_path):
        with pytest.raises(UserError, match=r"gone' is not a folder; wanted: train/CLASS/picture"):
            both(tmp_path / "gone")
        with pytest.raises(UserError, match=r"has no folder 'tests' \(did you mean 'test'\?\); it holds test, train"):
            folder_set(folders, own_split="tests", train_split="train", **NAMES)
        (folders / "test/c").mkdir()
        with pytest.raises(UserError, match="test' has folders that are none of the 2 classes: c"):
            both(folders)
        (folders / "test/c").rmdir()
        (folders / "test/a/y.png").unlink()
        with pytest.raises(UserError, match="test': 1 classes have no picture: a"):
            both(folders)
        (folders / "test/a").rmdir()
        with pytest.raises(UserError, match="test' lacks 1 of 2 class folders: a"):
            both(folders)
        (folders / "none").mkdir()
        with pytest.raises(UserError, match="none' holds no class folders"):
            folder_set(folders, own_split="none", train_split="train", **NAMES)


@pytest.fixture(scope="module")
def imagenet_root(tmp_path_factory):
    """1,000 classes of one picture each, in both splits."""
    root = tmp_path_factory.mktemp("imagenet")
    picture(root / "one.JPEG")
    data = (root / "one.JPEG").read_bytes()
    for wnid in wnids():
        for split in ("train", "val"):
            (root / split / wnid).mkdir(parents=True)
            (root / split / wnid / f"{wnid}_1.JPEG").write_bytes(data)
    return root


class TestImageNet:
    def test_the_official_list(self):
        """Well known: 0 is tench n01440764, 1 goldfish, 999 toilet tissue n15075141; sorted; two classes are cranes."""
        assert (len(wnids()), wnids()[0], wnids()[999]) == (1000, "n01440764", "n15075141")
        assert list(wnids()) == sorted(wnids())
        assert class_names()[0].startswith("tench")
        assert class_names()[999].startswith("toilet tissue")
        assert len(set(class_names())) == 1000

    def test_a_thousand_classes_of_one_picture(self, imagenet_root):
        config = load_dataset_config("imagenet1k", path=str(imagenet_root), allow_sizes=True)
        train, test = (build_set(config, split, img_size=32) for split in ("train", "test"))
        assert train.label_N.tolist() == test.label_N.tolist() == list(range(1000))
        assert train.key(999) == "train/n15075141/n15075141_1.JPEG"
        assert test.key(0) == "val/n01440764/n01440764_1.JPEG"
        assert test.load(5).size == (6, 4)

    def test_other_sizes_are_an_error(self, imagenet_root):
        config = load_dataset_config("imagenet1k", path=str(imagenet_root))
        with pytest.raises(UserError, match=r"train split has 1,000 pictures in .*, 1,281,167 are expected"):
            build_set(config, "train", img_size=32)
        with pytest.raises(UserError, match=r"test split has 1,000 pictures in .*, 50,000 are expected"):
            build_set(config, "test", img_size=32)

    def test_wrong_classes(self, imagenet_root):
        def build(own_split="train"):
            return imagenet_set(imagenet_root, own_split=own_split, **NAMES)

        train = imagenet_root / "train"
        moved = train / "n01440764"
        moved.rename(train / "n01440765")
        with pytest.raises(UserError, match=r"none of the 1000 classes: n01440765 \(did you mean 'n01440764'"):
            build()
        (train / "n01440765").rename(imagenet_root / "aside")
        with pytest.raises(UserError, match="lacks 1 of 1000 class folders: n01440764"):
            build()
        moved.mkdir()
        with pytest.raises(UserError, match="1 classes have no picture: n01440764"):
            build()
        moved.rmdir()
        (imagenet_root / "aside").rename(moved)
        assert len(build()) == 1000
        with pytest.raises(UserError, match=r"has no folder 'vall' \(did you mean 'val'\?\)"):
            build("vall")
        (imagenet_root / "empty").mkdir()
        with pytest.raises(UserError, match="holds no class folders; wanted: ImageNet-1k's official folders"):
            build("empty")

    @pytest.mark.parametrize(
        ("name", "order", "message"),
        [
            ("classes.txt", lambda w: "\n".join(f"{x} word" for x in w), None),
            ("class_index.json", lambda w: json.dumps({str(i): [x, "word"] for i, x in enumerate(w)}), None),
            ("class_index.json", lambda w: json.dumps(list(w)), None),
            (
                "classes.txt",
                lambda w: "\n".join([w[1], w[0], *w[2:]]),
                r"has 'n01443537' as class 0, the official order has n01440764",
            ),
            (
                "class_index.json",
                lambda w: json.dumps({str(i): [x] for i, x in enumerate(reversed(w))}),
                "has 'n15075141' as class 0",
            ),
            ("classes.txt", lambda w: "\n".join(w[:-1]), "lists 999 classes, ImageNet-1k has 1000"),
            ("class_index.json", lambda w: "{", "is no list of classes"),
            ("class_index.json", lambda w: '{"1": ["a"]}', "is no list of classes"),
        ],
    )
    def test_a_file_that_tells_the_order(self, imagenet_root, name, order, message):
        (imagenet_root / name).write_text(order(wnids()))
        try:
            if message is None:
                assert len(imagenet_set(imagenet_root, own_split="val", **NAMES)) == 1000
            else:
                with pytest.raises(UserError, match=message):
                    imagenet_set(imagenet_root, own_split="val", **NAMES)
        finally:
            (imagenet_root / name).unlink()

    def test_the_flat_val_folder(self, tmp_path):
        """Picture k is of class 999 - k."""
        picture(tmp_path / "one.JPEG")
        data = (tmp_path / "one.JPEG").read_bytes()
        (tmp_path / "val").mkdir()
        lines = ["ImageId,PredictionString"]
        for number, wnid in enumerate(reversed(wnids())):
            name = f"ILSVRC2012_val_{number + 1:08d}"
            (tmp_path / "val" / f"{name}.JPEG").write_bytes(data)
            lines.append(f"{name},{wnid} 85 1 499 272 {wnid} 1 2 3 4 ")
        with pytest.raises(UserError, match=r"LOC_val_solution.csv' is not there; wanted: .* beside a flat val folder"):
            imagenet_set(tmp_path, own_split="val", **NAMES)
        solution = tmp_path / "LOC_val_solution.csv"
        solution.write_text("\n".join(lines))
        val = imagenet_set(tmp_path, own_split="val", **NAMES)
        assert val.label_N.tolist() == list(range(999, -1, -1))
        assert val.key(0) == "val/ILSVRC2012_val_00000001.JPEG"
        solution.write_text("\n".join(lines[:-1]))
        with pytest.raises(UserError, match=r"has no row for ILSVRC2012_val_00001000.JPEG"):
            imagenet_set(tmp_path, own_split="val", **NAMES)
        solution.write_text("\n".join(lines).replace("n01440764", "n00000000"))
        with pytest.raises(UserError, match="names n00000000, none of ImageNet-1k's classes"):
            imagenet_set(tmp_path, own_split="val", **NAMES)
        solution.write_text("\n".join(lines).replace("n01440764", "n15075141"))
        with pytest.raises(UserError, match="1 classes have no picture: n01440764"):
            imagenet_set(tmp_path, own_split="val", **NAMES)
        solution.write_text("a,b\n")
        with pytest.raises(UserError, match="wanted: ImageId,PredictionString"):
            imagenet_set(tmp_path, own_split="val", **NAMES)


def shipped(name, root):
    """Both splits of a shipped config on a small copy of its layout; the number of classes is the copy's."""
    config = replace(load_dataset_config(name, path=str(root), allow_sizes=True), num_classes=None)
    return [build_set(config, split, img_size=32) for split in ("train", "test")]


class TestTables:
    def test_camelyon17(self, tmp_path):
        """Rows by hand: two train (one each class), an id_val row, two of hospital 1 (test here), one of hospital 2."""
        (tmp_path / "metadata.csv").write_text(
            ",patient,node,x_coord,y_coord,tumor,slide,center,split\n"
            "0,004,4,3328,21792,1,0,0,0\n"
            "1,004,4,3200,22272,0,0,3,0\n"
            "2,004,4,3168,22272,1,0,0,1\n"
            "3,020,4,1,2,0,0,1,0\n"
            "4,020,4,3,4,1,0,1,1\n"
            "5,040,4,5,6,1,0,2,0\n"
        )
        picture(tmp_path / "patches/patient_004_node_4/patch_patient_004_node_4_x_3328_y_21792.png")
        train, test = shipped("camelyon17", tmp_path)
        assert (train.label_N.tolist(), test.label_N.tolist()) == ([1, 0], [0, 1])
        assert train.load(0).size == (6, 4)
        assert test.key(1) == "patches/patient_020_node_4/patch_patient_020_node_4_x_3_y_4.png"

    def test_rxrx1(self, tmp_path):
        """Ids 2 and 10 are sorted as numbers; site 2 of train is no training picture."""
        (tmp_path / "metadata.csv").write_text(
            "site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id\n"
            "x,x,HEPG2,train,HEPG2-01,1,B02,1,t,s,10\n"
            "x,x,HEPG2,train,HEPG2-01,1,B02,2,t,s,10\n"
            "x,x,HEPG2,train,HEPG2-01,1,B03,1,t,s,2\n"
            "x,x,HEPG2,val,HEPG2-08,2,C03,2,t,s,10\n"
            "x,x,HEPG2,val,HEPG2-08,2,C03,1,t,s,2\n"
            "x,x,HEPG2,test,HEPG2-09,2,C03,1,t,s,2\n"
        )
        train, test = shipped("rxrx1", tmp_path)
        assert train.classes == ("2", "10")
        assert (train.label_N.tolist(), test.label_N.tolist()) == ([1, 0], [1, 0])
        assert train.key(0) == "images/HEPG2-01/Plate1/B02_s1.png"

    def test_fmow(self, tmp_path):
        """The row's number counts all rows; the last day of 2012 trains, the first of 2013 does not, 2016 is not scored."""
        rows = [("train", "2012-12-31T23:59:59Z", "zoo"), ("train", "2013-01-01T00:00:00Z", "zoo")]
        rows += [("val", "2012-01-01T00:00:00Z", "zoo"), ("val", "2016-01-01T00:00:00Z", "zoo")]
        rows += [("val", "2013-01-01T00:00:00Z", "zoo"), ("val", "2015-12-31T00:00:00Z", "airport")]
        rows += [("train", "2002-01-01T00:00:00Z", "airport"), ("seq", "2014-01-01T00:00:00Z", "zoo")]
        lines = [f"{split},x,{category},{time}" for split, time, category in rows]
        (tmp_path / "rgb_metadata.csv").write_text("\n".join(["split,img_filename,category,timestamp", *lines]))
        train, test = shipped("fmow", tmp_path)
        assert train.classes == ("airport", "zoo")
        assert [train.key(index) for index in range(2)] == ["images/rgb_img_0.png", "images/rgb_img_6.png"]
        assert [test.key(index) for index in range(2)] == ["images/rgb_img_4.png", "images/rgb_img_5.png"]
        assert (train.label_N.tolist(), test.label_N.tolist()) == ([1, 0], [1, 0])

    def test_infograph(self, tmp_path):
        (tmp_path / "infograph_train.txt").write_text(
            "infograph/zebra/infograph_345_000001.jpg 344\ninfograph/ant/infograph_003_000002.jpg 2\n"
        )
        (tmp_path / "infograph_test.txt").write_text(
            "infograph/ant/infograph_003_000001.jpg 2\ninfograph/zebra/infograph_345_000003.jpg 344\n"
        )
        picture(tmp_path / "infograph/zebra/infograph_345_000001.jpg")
        train, test = shipped("infograph", tmp_path)
        assert train.classes == test.classes == ("ant", "zebra")
        assert (train.label_N.tolist(), test.label_N.tolist()) == ([1, 0], [0, 1])
        assert train.load(0).size == (6, 4)

    @pytest.mark.parametrize(
        ("text", "options", "message"),
        [
            ("a,b\n", {}, r"image: .*t.csv has no column 'file'; it has a, b"),
            ("file,labe\nx.png,1\n", {}, r"label: .*t.csv has no column 'label' \(did you mean 'labe'\?\)"),
            ("file,label\nx,1\n", {"train_rows": {"splt": 1}}, r"rows: .* has no column 'splt'"),
            ("file,label\nx,1\n", {"train_rows": {"label": 2}}, "has no row for the train split"),
            ("file,label\n", {}, "has no row for the train split"),
            ("file,label\nx\n", {}, r"t.csv, line 2: 1 cells, 2 wanted"),
            ('file,label\n"x,1\n', {}, r"t.csv, line 2: "),
            ("file,label\nx,3\n", {"classes": ["1", "2"]}, "label 3 is no class of the training split"),
            ("file,label\nx,cat\n", {"classes": ["cats", "dog"]}, r"label cat \(did you mean 'cats'"),
            ("file,label\nx,1\n", {"classes": ["1", "2"]}, "1 classes have no picture in train: 2"),
        ],
    )
    def test_errors(self, tmp_path, text, options, message):
        (tmp_path / "t.csv").write_text(text)
        layout = {"train": "t.csv", "test": "t.csv", "image": "{file}", "label": "label"}
        with pytest.raises(UserError, match=message):
            table_set(tmp_path, **layout, **options, **NAMES)

    def test_a_missing_table_names_the_nearest(self, tmp_path):
        (tmp_path / "metadata.csv").write_text("file,label\n")
        layout = {"train": "metadta.csv", "test": "t.csv", "image": "{file}", "label": "label"}
        with pytest.raises(UserError, match=r"metadta.csv' is not there \(did you mean 'metadata.csv'"):
            table_set(tmp_path, **layout, **NAMES)

    def test_inaturalist(self, tmp_path):
        """Images in another order than annotations; labels are category ids."""
        content = {
            "images": [{"id": 7, "file_name": "train_val2018/Aves/1/a.jpg"}, {"id": 5, "file_name": "b.jpg"}],
            "annotations": [
                {"id": 0, "image_id": 5, "category_id": 0},
                {"id": 1, "image_id": 7, "category_id": 1},
            ],
            "categories": [{"id": 0, "name": "owl"}, {"id": 1, "name": "gull"}],
        }
        path = tmp_path / "train2018.json"
        path.write_text(json.dumps(content))
        picture(tmp_path / "train_val2018/Aves/1/a.jpg")
        train = inaturalist_set(tmp_path, own_split="train2018.json", **NAMES)
        assert (train.classes, train.label_N.tolist()) == (("owl", "gull"), [1, 0])
        assert train.load(0).size == (6, 4)

        def broken(message, **changes):
            path.write_text(json.dumps(content | changes))
            with pytest.raises(UserError, match=message):
                inaturalist_set(tmp_path, own_split="train2018.json", **NAMES)

        broken("no annotation for train_val2018/Aves/1/a.jpg", annotations=content["annotations"][:1])
        one = [{"id": 0, "image_id": 5, "category_id": 0}, {"id": 0, "image_id": 7, "category_id": 0}]
        broken("1 classes have no picture: gull", annotations=one)
        broken("category ids must be 0 to 1", categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
        broken("annotations name category 1, which is not listed", categories=content["categories"][:1])
        broken("is no iNaturalist json", images=None)
        with pytest.raises(UserError, match=r"val2018.json' is not there \(did you mean 'train2018.json'"):
            inaturalist_set(tmp_path, own_split="val2018.json", **NAMES)


def test_labels_are_int64(folders):
    assert both(folders)[0].label_N.dtype == np.int64
