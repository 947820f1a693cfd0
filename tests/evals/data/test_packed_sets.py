"""Labels of parquet files and of WebDataset shards."""

import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from evals.data.config import build_set, load_dataset_config
from evals.data.imagenet import class_names
from evals.data.labelled import BadSample
from evals.data.packed import LabelledShards, ParquetSet
from pretrain.types import UserError

NAMES = {"name": "mine", "split": "train"}


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 5), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def write_parquet(path, labels, *, column="label", metadata=None, first=0):
    images = [{"bytes": png(first + index), "path": f"{index}.png"} for index in range(len(labels))]
    table = pa.table({"image": images, column: labels})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=2)


def features(names) -> dict[str, str]:
    """Schema metadata as the `datasets` package writes it."""
    label = {"names": names, "_type": "ClassLabel"}
    return {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})}


class TestParquet:
    def test_files_in_order_with_names_of_the_schema(self, tmp_path):
        write_parquet(tmp_path / "train-00001.parquet", [0, 1], metadata=features(["cat", "dog", "owl"]), first=100)
        write_parquet(tmp_path / "train-00000.parquet", [2, 0, 1], metadata=features(["cat", "dog", "owl"]))
        write_parquet(tmp_path / "test-00000.parquet", [1])
        train = ParquetSet(tmp_path, own_split="train-*.parquet", **NAMES)
        assert train.label_N.tolist() == [2, 0, 1, 0, 1]
        assert train.classes == ("cat", "dog", "owl")
        assert [train.load(index).getpixel((0, 0))[0] for index in range(5)] == [0, 1, 2, 100, 101]
        assert pickle.loads(pickle.dumps(train)).load(4).getpixel((0, 0))[0] == 101
        assert train.label_N.dtype == np.int64

    @pytest.mark.parametrize(("file", "text"), [("classes.txt", "a\nb\n"), ("classes.json", '{"0": "a", "1": "b"}')])
    def test_names_beside_the_data_win_over_the_schema(self, tmp_path, file, text):
        write_parquet(tmp_path / "x.parquet", [0, 1], metadata=features(["cat", "dog"]))
        (tmp_path / file).write_text(text)
        assert ParquetSet(tmp_path, own_split="x.parquet", **NAMES).classes == ("a", "b")
        assert ParquetSet(tmp_path, own_split="x.parquet", classes=["c", "d"], **NAMES).classes == ("c", "d")

    def test_identity_follows_the_bytes(self, tmp_path):
        def identity(labels, first=0):
            write_parquet(tmp_path / "x.parquet", labels, first=first)
            return ParquetSet(tmp_path, own_split="x.parquet", num_classes=9, **NAMES).pictures_identity()

        assert identity([0, 1, 2]) == identity([0, 1, 2])
        assert identity([0, 1, 2]) != identity([0, 1])
        assert identity([0, 1, 2]) != identity([0, 1, 2], first=5), "the same rows and sizes, other pictures"

    @pytest.mark.parametrize(
        ("labels", "options", "message"),
        [
            ([0, -1], {"num_classes": 2}, "label -1 of row 1 is no class; labels are 0 to 1"),
            ([0, 2], {"num_classes": 2}, "label 2 of row 1 is no class"),
            ([0, None], {"num_classes": 2}, "label_column: 1 rows of x.parquet have no 'label'"),
            ([0.5, 1.0], {"num_classes": 2}, "label_column: 'label' of x.parquet holds double"),
            ([0, 1], {}, "nothing names the classes"),
            ([0, 1], {"label_column": "labell"}, r"no column 'labell' \(did you mean 'label'"),
            ([0, 1], {"image_column": "img"}, "image_column: x.parquet has no column 'img'"),
            ([0, 1], {"own_split": "y*.parquet"}, "matches no file"),
        ],
    )
    def test_errors(self, tmp_path, labels, options, message):
        write_parquet(tmp_path / "x.parquet", labels)
        with pytest.raises(UserError, match=message):
            ParquetSet(tmp_path, **({"own_split": "x.parquet"} | options), **NAMES)

    @pytest.mark.parametrize("text", ['{"0": "a", "2": "b"}', "[1, 2]", "{", '"ab"'])
    def test_a_broken_file_of_names(self, tmp_path, text):
        write_parquet(tmp_path / "x.parquet", [0, 1])
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(UserError, match=r"classes: .*classes.json' is no list of names"):
            ParquetSet(tmp_path, own_split="x.parquet", **NAMES)

    @pytest.mark.shared_data
    def test_cifar10(self, shared_data):
        config = load_dataset_config("cifar10_parquet", path=str(shared_data / "cifar10"))
        train, test = (build_set(config, split, img_size=32) for split in ("train", "test"))
        assert (len(train), len(test)) == (50_000, 10_000)
        assert np.bincount(train.label_N).tolist() == [5_000] * 10
        assert np.bincount(test.label_N).tolist() == [1_000] * 10
        assert train.classes == test.classes
        assert (train.classes[0], train.classes[9]) == ("airplane", "truck")
        assert not train.synthetic
        image = test.load(9_999)
        assert (image.size, image.mode) == ((32, 32), "RGB")
        # another way to the same row: pyarrow alone
        table = pq.read_table(shared_data / "cifar10" / "test-00000-of-00001.parquet").slice(1234, 1).to_pylist()[0]
        theirs = np.asarray(Image.open(io.BytesIO(table["img"]["bytes"])).convert("RGB"))
        assert np.array_equal(np.asarray(test.load(1234)), theirs)
        assert test.label_N[1234] == table["label"]


def write_shard(path, samples):
    """Samples: key -> {suffix: bytes}."""
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def sample(level, label, **more):
    return {"cls": str(label).encode(), "png": png(level), "json": json.dumps({"y": label, **more}).encode()}


class TestShards:
    @pytest.mark.parametrize("field", ["cls", "y"])
    def test_labels_of_cls_and_json(self, tmp_path, field):
        """No captions are asked for: the .json has none."""
        write_shard(tmp_path / "train-0.tar", {"a": sample(1, 2), "b": sample(2, 0)})
        write_shard(tmp_path / "train-1.tar", {"a": sample(3, 1)})
        train = LabelledShards(tmp_path, own_split="train-*.tar", label_field=field, num_classes=3, **NAMES)
        assert train.label_N.tolist() == [2, 0, 1]
        assert train.classes == ("0", "1", "2")
        assert [train.load(index).getpixel((0, 0))[0] for index in range(3)] == [1, 2, 3]
        assert (train.key(1), train.key(2)) == ("train-0.tar/1", "train-1.tar/0")
        assert pickle.loads(pickle.dumps(train)).identity() == train.identity()

    def test_a_sample_without_a_picture_takes_no_label(self, tmp_path):
        write_shard(tmp_path / "x.tar", {"a": {"cls": b"0"}, "b": sample(2, 1)})
        train = LabelledShards(tmp_path, own_split="x.tar", num_classes=2, **NAMES)
        assert (train.label_N.tolist(), train.load(0).getpixel((0, 0))[0]) == ([1], 2)

    def test_a_damaged_picture_is_a_bad_sample(self, tmp_path):
        write_shard(tmp_path / "x.tar", {"a": {"jpg": b"nonsense", "cls": b"0"}, "b": sample(2, 1)})
        train = LabelledShards(tmp_path, own_split="x.tar", num_classes=2, **NAMES)
        with pytest.raises(BadSample, match=r"corrupt: x.tar/0"):
            train.load(0)

    def test_imagenet_shards(self, tmp_path):
        write_shard(tmp_path / "imagenet1k-train-0000.tar", {"n1": sample(1, 999), "n2": sample(2, 0)})
        config = load_dataset_config("imagenet1k_shards", path=str(tmp_path), allow_sizes=True)
        train = build_set(config, "train", img_size=32)
        assert (train.label_N.tolist(), train.classes) == ([999, 0], class_names())

    @pytest.mark.parametrize(
        ("members", "options", "message"),
        [
            ({"png": png(0)}, {}, r"label_field: .*x.tar: sample 'a' has no .cls"),
            ({"png": png(0), "cls": b"cat"}, {}, r"a.cls is b'cat', not a whole number"),
            ({"png": png(0), "cls": b"3"}, {}, "label 3 of row 0 is no class; labels are 0 to 1"),
            ({"png": png(0)}, {"label_field": "y"}, r"no field 'y' in the .json of sample x.tar/0; there is none"),
            ({"png": png(0), "json": b'{"z": 1}'}, {"label_field": "y"}, "it has z"),
            ({"png": png(0), "json": b'{"y": 1.5}'}, {"label_field": "y"}, r"'y' of sample x.tar/0 is 1.5"),
            ({"png": png(0), "json": b'{"y": true}'}, {"label_field": "y"}, "is True, not a whole number"),
            ({"png": png(0), "json": b"{"}, {"label_field": "y"}, r"label_field: .json of sample x.tar/0"),
            ({"png": png(0), "cls": b"0"}, {"num_classes": None}, "nothing names the classes"),
        ],
    )
    def test_errors(self, tmp_path, members, options, message):
        write_shard(tmp_path / "x.tar", {"a": members})
        with pytest.raises(UserError, match=message) as error:
            LabelledShards(tmp_path, own_split="x.tar", **({"num_classes": 2} | options), **NAMES)
        assert "\n" not in str(error.value)
