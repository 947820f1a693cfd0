import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import pretrain.data.parquet as parquet
from pretrain.data.parquet import ParquetSource
from pretrain.data.storage import BadSample
from pretrain.types import UserError


def _png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(seed):
    return np.asarray(Image.open(io.BytesIO(_png(seed))))


def _write(path, count=20, *, rows_per_group=6, change=lambda rows: rows):
    """Rows of a picture, its path, captions of two kinds and a label; `change` gets all of them."""
    rows = [
        {
            "image": {"bytes": _png(number), "path": f"{number}.png"},
            "alt": f"alt {number}",
            "long": [f"first {number}", f"second {number}"],
            "label": number % 3,
        }
        for number in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(change(rows)), path, row_group_size=rows_per_group)
    return path


def _fault(function, *arguments):
    with pytest.raises(BadSample) as error:
        function(*arguments)
    return error.value.fault


def test_rows_of_several_row_groups(tmp_path):
    source = ParquetSource(_write(tmp_path / "a.parquet"), caption_column="alt")
    assert source.shard_counts == [6, 6, 6, 2]
    for index in (0, 5, 6, 17, 18, 19, 0):
        sample = source.load(index)
        assert (sample.key, sample.captions, sample.label) == (f"{index}.png", [f"alt {index}"], index % 3)
        assert np.array_equal(np.asarray(sample.image), _pixels(index))
        stored = source.read(index)
        assert (stored.data, stored.key, stored.name) == (_png(index), f"{index}.png", f"a.parquet/{index}")
    for index in (20, -1):
        with pytest.raises(IndexError):
            source.load(index)


def test_files_are_one_after_the_other(tmp_path):
    for number, name in enumerate(("a", "b")):
        _write(
            tmp_path / f"{name}.parquet", 8, change=lambda rows, n=number: [{**row, "alt": f"{n}"} for row in rows[n:]]
        )
    source = ParquetSource(tmp_path, caption_column="alt")
    assert (len(source), source.shard_counts) == (15, [6, 2, 6, 1])
    assert [source.read_captions(index) for index in (7, 8)] == [["0"], ["1"]]
    assert source.load(8).key == "1.png"
    assert list(source.iter_captions()) == ["0"] * 8 + ["1"] * 7
    assert len(list(source.iter_captions(4))) == 4
    assert source.identity() != ParquetSource(tmp_path / "a.parquet").identity()


@pytest.mark.parametrize("binary", [True, False], ids=["bytes", "struct without path"])
def test_keys_where_there_is_no_path(tmp_path, binary):
    def change(rows):
        pictures = [row["image"]["bytes"] for row in rows]
        return [{"image": data if binary else {"bytes": data, "path": None}} for data in pictures]

    source = ParquetSource(_write(tmp_path / "a.parquet", 3, change=change))
    sample = source.load(2)
    assert (sample.key, sample.captions, sample.label) == ("a.parquet/2", [], None)
    assert np.array_equal(np.asarray(sample.image), _pixels(2))


def test_several_kinds_of_caption(tmp_path):
    def change(rows):
        rows[1]["long"], rows[2]["alt"] = None, " "
        return rows

    path = _write(tmp_path / "a.parquet", 4, change=change)
    source = ParquetSource(path, caption_weights={"alt": 1.0, "long": 3.0})
    assert [source.load(index).captions for index in range(3)] == [
        ["alt 0", "first 0", "second 0"],
        ["alt 1"],
        ["first 2", "second 2"],
    ]
    assert source.load(0).caption_weights == [1.0, 1.5, 1.5]
    assert source.read(0).captions.kinds == {"alt": ["alt 0"], "long": ["first 0", "second 0"]}


def test_rows_that_cannot_be_used(tmp_path):
    def change(rows):
        rows[1]["image"] = None
        rows[2]["image"] = {"bytes": None, "path": "elsewhere.png"}
        rows[3]["image"]["bytes"] = _png(3)[:100]
        return rows

    source = ParquetSource(_write(tmp_path / "a.parquet", 6, change=change), caption_column="alt")
    faults = [_fault(source.load, index) for index in (1, 2, 3)]
    assert [(fault.kind, fault.key) for fault in faults] == [
        ("missing", "a.parquet/1"),
        ("missing", "elsewhere.png"),
        ("corrupt", "a.parquet/3"),
    ]
    assert source.load(4).key == "4.png"


def test_captions_of_another_type(tmp_path):
    path = _write(tmp_path / "a.parquet", 3)
    fault = _fault(ParquetSource(path, caption_column="label").load, 0)
    assert (fault.kind, fault.key) == ("bad_caption", "a.parquet/0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image_column="img"), "image_column: a.parquet has no column 'img'; it has image, alt, long, label"),
        (dict(caption_column="text"), "caption_column: a.parquet has no column 'text'"),
        (dict(caption_weights={"alt": 1.0, "short": 1.0}), "captions: a.parquet has no column 'short'"),
    ],
)
def test_missing_column(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        ParquetSource(_write(tmp_path / "a.parquet", 2), **options)


def test_files_that_are_no_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet" * 10)
    with pytest.raises(UserError, match=r"path: .*a.parquet' cannot be read as parquet"):
        ParquetSource(tmp_path)
    _write(tmp_path / "a.parquet", 2, change=lambda rows: rows)
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="hold no row"):
        ParquetSource(tmp_path)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match=r"holds no \.parquet file"):
        ParquetSource(tmp_path)


def test_file_that_is_cut_after_the_start(tmp_path):
    path = _write(tmp_path / "a.parquet")
    source = ParquetSource(path, caption_column="alt")
    with path.open("r+b") as file:
        file.truncate(100)
    fault = _fault(source.load, 19)
    assert (fault.kind, fault.key) == ("corrupt", "a.parquet: row 19")


class _Loaded(Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source.load(index).key, self.source.read(index).data


def test_forked_workers_read_the_right_bytes(tmp_path):
    source = ParquetSource(_write(tmp_path / "a.parquet", 40, rows_per_group=3), caption_column="alt")
    source.load(0)  # opens the file, so that the workers share the descriptor
    loader = DataLoader(_Loaded(source), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for index, (key, data) in enumerate(loader):
        assert (key, data) == (f"{index}.png", _png(index))


def test_memory_of_row_groups_is_bounded(tmp_path, monkeypatch):
    source = pickle.loads(pickle.dumps(ParquetSource(_write(tmp_path / "a.parquet"), caption_column="alt")))
    source.load(0)
    one = source._num_bytes
    monkeypatch.setattr(parquet, "_MAX_BYTES", int(2.5 * one))
    for index in (0, 6, 12, 18, 0, 6):
        assert source.load(index).key == f"{index}.png"
        assert source._num_bytes == sum(table.nbytes for table in source._tables.values()) <= 2.5 * one
    assert list(source._tables)[-2:] == [0, 1]  # the latest used stay
    monkeypatch.setattr(parquet, "_MAX_BYTES", 0)
    assert source.load(12).key == "12.png"
    assert len(source._tables) == 1


@pytest.mark.shared_data
def test_cifar10(shared_data):
    folder = shared_data / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    source = ParquetSource(folder / "test-00000-of-00001.parquet", image_column="img")
    assert len(source) == 10_000
    sample = source.load(9_999)
    assert (sample.image.size, sample.captions) == ((32, 32), [])
    labels = [source.load(index).label for index in range(0, 10_000, 20)]
    assert set(labels) == set(range(10))
    assert source.read(3).data.startswith(b"\xff\xd8")  # as it is stored


def labelled(path, labels):
    rows = {"image": [{"bytes": b"x", "path": f"{number}.png"} for number in range(len(labels))], "label": labels}
    pq.write_table(pa.table(rows), path)
    return path


def test_captions_of_class_names(tmp_path):
    path = labelled(tmp_path / "a.parquet", [1, 0, 2])
    (tmp_path / "names.txt").write_text("cat\nfire truck\n")
    source = ParquetSource(path, class_names=tmp_path / "names.txt")
    assert source.read_captions(0) == ["a photo of a fire truck"]
    assert source.read(1).captions.texts == ["a photo of a cat"]
    with pytest.raises(BadSample, match="label 2 is none of the 2 classes"):
        source.read(2)


def test_class_names_that_cannot_be_used(tmp_path):
    path = labelled(tmp_path / "a.parquet", [0])
    (tmp_path / "names.txt").write_text("cat\n\ndog\n")
    for names, message in ((tmp_path / "none.txt", "cannot be read"), (tmp_path / "names.txt", "a name in every line")):
        with pytest.raises(UserError, match=rf"class_names: .*{message}"):
            ParquetSource(path, class_names=names)
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "b.parquet")
    (tmp_path / "names.txt").write_text("cat\n")
    with pytest.raises(UserError, match=r"class_names: b.parquet has no column 'label'"):
        ParquetSource(tmp_path / "b.parquet", class_names=tmp_path / "names.txt")
