import io
import json
import pickle
import struct
import warnings
import zlib
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.data.sources import (
    BadSample,
    CocoCaptionSource,
    FolderSource,
    RawSample,
    Source,
    TableSource,
    as_captions,
    decode_image,
)
from pretrain.data.storage import PackedStrings, RangeReader, spread_order
from pretrain.types import Fault, UserError

SHARED = Path(__file__).parents[3].parent / "shared/data"


def _encoded(image, kind="PNG", **arguments):
    buffer = io.BytesIO()
    image.save(buffer, kind, **arguments)
    return buffer.getvalue()


def _noise(width=40, height=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _fault(function, *arguments):
    with pytest.raises(BadSample) as error:
        function(*arguments)
    assert "\n" not in error.value.fault.detail
    return error.value.fault


# decode_image


def test_png_is_decoded_exactly():
    image = decode_image(_encoded(_noise()), "a")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(_noise()))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("RGBA", "WEBP")],
)
def test_other_modes_become_rgb(mode, kind):
    grey = Image.new("RGB", (8, 8), (120, 120, 120))
    pixels = np.asarray(decode_image(_encoded(grey.convert(mode), kind), "a")).astype(int)
    assert pixels.shape == (8, 8, 3)
    if mode != "1":
        assert np.abs(pixels - 120).max() <= 6


def test_palette_with_transparency_keeps_its_colours_without_a_warning():
    image = _noise(8, 8).quantize(4)
    data = _encoded(image, transparency=bytes([0, 128, 255, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(decode_image(data, "a")), np.asarray(image.convert("RGB")))


def test_16_bit_grey_is_scaled_not_clipped():
    levels = np.array([[0, 257, 32896, 65279, 65535]], dtype=np.uint16)
    image = decode_image(_encoded(Image.fromarray(levels)), "a")
    assert np.asarray(image)[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [254] * 3, [255] * 3]


def test_mode_without_a_range_is_bad():
    fault = _fault(decode_image, _encoded(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF"), "a")
    assert (fault.kind, fault.key) == ("corrupt", "a")
    assert "mode F" in fault.detail


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees
    image = decode_image(_encoded(_noise(40, 30), exif=exif), "a")
    assert np.array_equal(np.asarray(image), np.rot90(np.asarray(_noise(40, 30)), -1))


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
def test_damaged_exif_does_not_lose_the_picture():
    data = _encoded(_noise(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xffgarbage")
    assert decode_image(data, "a").size == (40, 30)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_pictures_are_corrupt(kind, share):
    data = _encoded(_noise(200, 150), kind)
    assert _fault(decode_image, data[: int(len(data) * share)], "a.jpg").kind == "corrupt"


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(50), bytes(range(256)) * 40])
def test_bytes_that_are_no_picture(data):
    assert _fault(decode_image, data, "a.jpg").kind == "corrupt"


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
def test_flipped_bytes_never_raise_anything_else():
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP"):
        whole = np.frombuffer(_encoded(_noise(), kind), dtype=np.uint8)
        for _ in range(60):
            data = whole.copy()
            data[rng.integers(0, min(len(data), 200), 4)] = rng.integers(0, 256, 4)
            with suppress(BadSample):
                decode_image(data.tobytes(), "a")


def test_decompression_bomb_is_corrupt():
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)  # 900 megapixels in 100 bytes
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    fault = _fault(decode_image, data, "bomb.png")
    assert fault.kind == "corrupt"
    assert "900000000" in fault.detail


def test_absent_file_is_missing(tmp_path):
    fault = _fault(decode_image, tmp_path / "x.jpg", "x.jpg")
    assert (fault.kind, fault.key) == ("missing", "x.jpg")
    assert _fault(decode_image, tmp_path, "folder").kind == "missing"
    assert _fault(decode_image, "a\0b", "nul").kind == "missing"


def test_bad_sample_survives_pickling():
    error = pickle.loads(pickle.dumps(BadSample(Fault("corrupt", "a.jpg", "cut"))))
    assert error.fault == Fault("corrupt", "a.jpg", "cut")
    assert str(error) == "corrupt: a.jpg: cut"


# captions and storage


@pytest.mark.parametrize(
    ("value", "captions"),
    [("a dog", ["a dog"]), (["a", " ", "b"], ["a", "b"]), (None, []), ("", []), ([], [])],
)
def test_as_captions(value, captions):
    assert as_captions(value, "a") == captions


@pytest.mark.parametrize("value", [3, {"a": 1}, ["a", None], [["a"]]])
def test_values_that_are_no_captions(value):
    assert _fault(as_captions, value, "a").kind == "bad_caption"


def test_packed_strings():
    strings = ["a", "", "größe", "日本", "x\udcff"]  # the last as os.walk gives a name that is not UTF-8
    packed = pickle.loads(pickle.dumps(PackedStrings(strings)))
    assert [packed[i] for i in range(len(packed))] == strings
    assert packed[-1] == strings[-1]
    with pytest.raises(IndexError):
        packed[5]
    assert len(PackedStrings([])) == 0


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 97, 1000])
def test_spread_order_is_a_permutation(count):
    assert sorted(spread_order(count)) == list(range(count))


def test_beginning_of_spread_order_covers_the_range():
    beginning = [index for index, _ in zip(spread_order(1000), range(50))]
    assert max(np.diff(sorted(beginning))) < 60


def test_range_reader_keeps_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.data.storage._MAX_OPEN_FILES", 2)
    for i in range(5):
        (tmp_path / str(i)).write_text(f"file {i}")
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    reader = RangeReader()
    for i in (0, 1, 2, 3, 4, 0, 3):
        assert reader.read(str(tmp_path / str(i)), 5, 10) == str(i).encode()
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before + 2
    assert pickle.loads(pickle.dumps(reader)).read(str(tmp_path / "1"), 0, 4) == b"file"


def test_choose_caption_draws_each_and_none():
    source = _Two()
    sample, rng = source.load(0), np.random.default_rng(0)
    assert {source.choose_caption(sample, rng) for _ in range(30)} == {"a", "b"}
    assert source.choose_caption(RawSample(sample.image, [], "k"), rng) == ""


class _Two(Source):
    def __len__(self):
        return 1

    def load(self, index):
        return RawSample(Image.new("RGB", (2, 2)), ["a", "b"], "k")

    read = load

    def iter_captions(self, limit=None):
        yield from ("a", "b")


# FolderSource


def test_folder(tmp_path):
    (tmp_path / "b/c").mkdir(parents=True)
    for i, name in enumerate(["z.PNG", "b/a.png", "b/c/x.png"]):
        (tmp_path / name).write_bytes(_encoded(_noise(seed=i)))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "._z.png").write_bytes(b"left by a Mac")
    (tmp_path / "bad.jpg").write_bytes(b"broken")
    (tmp_path / "b/up").symlink_to(tmp_path)  # a loop
    source = pickle.loads(pickle.dumps(FolderSource(tmp_path)))
    assert len(source) == 4
    bad, first, *rest = range(4)
    assert _fault(source.load, bad) == Fault("corrupt", "bad.jpg", "6 bytes that are no picture Pillow knows")
    sample = source.load(first)
    assert (sample.key, sample.captions, sample.label) == ("z.PNG", [], None)
    assert np.array_equal(np.asarray(sample.image), np.asarray(_noise(seed=0)))
    assert [source.load(i).key for i in rest] == ["b/a.png", "b/c/x.png"]
    assert list(source.iter_captions()) == []
    with pytest.raises(IndexError):
        source.load(4)


def test_picture_removed_after_the_start_is_missing(tmp_path):
    (tmp_path / "a.png").write_bytes(_encoded(_noise()))
    source = FolderSource(tmp_path)
    (tmp_path / "a.png").unlink()
    assert _fault(source.load, 0).kind == "missing"


def test_folder_errors(tmp_path):
    with pytest.raises(UserError, match=r"path: .*/none' is not a folder"):
        FolderSource(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds no picture \(\.bmp, \.jpeg"):
        FolderSource(tmp_path)


# CocoCaptionSource


def _coco(folder, content):
    path = folder / "captions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_coco(tmp_path):
    (tmp_path / "1.png").write_bytes(_encoded(_noise()))
    images = [{"id": 7, "file_name": "1.png"}, {"id": 3, "file_name": "2.png"}]
    captions = [(3, "two"), (7, "one"), (7, "one more"), (9, "nobody")]
    content = {"images": images, "annotations": [{"image_id": i, "caption": c} for i, c in captions]}
    source = pickle.loads(pickle.dumps(CocoCaptionSource(_coco(tmp_path, content), tmp_path)))
    assert len(source) == 2
    sample = source.load(0)
    assert (sample.key, sample.captions) == ("1.png", ["one", "one more"])
    assert _fault(source.load, 1).kind == "missing"
    assert list(source.iter_captions()) == ["one", "one more", "two"]
    assert len(list(source.iter_captions(2))) == 2
    assert [(fault.kind, fault.key) for fault in source.faults] == [("missing", "captions.json: image 9")]


def test_coco_caption_that_is_no_text(tmp_path):
    content = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, "caption": 5}]}
    source = CocoCaptionSource(_coco(tmp_path, content), tmp_path)
    assert _fault(source.load, 0).kind == "bad_caption"
    assert list(source.iter_captions()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        ({"images": []}, "has no field 'annotations'"),
        ({"images": [{"id": 1}], "annotations": []}, "has no field 'file_name'"),
        ({"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1}]}, "has no field 'caption'"),
        ({"images": [], "annotations": []}, "names no picture"),
    ],
)
def test_coco_errors(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
        CocoCaptionSource(_coco(tmp_path, content), tmp_path)
    assert "captions.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_coco_paths(tmp_path):
    with pytest.raises(UserError, match=r"annotations: .*none.json' is not a file"):
        CocoCaptionSource(tmp_path / "none.json", tmp_path)
    with pytest.raises(UserError, match=r"images: .*none' is not a folder"):
        CocoCaptionSource(_coco(tmp_path, "{}"), tmp_path / "none")


# TableSource


def _table(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for i in range(2):
        (folder / f"{i}.png").write_bytes(_encoded(_noise(seed=i)))
    return path


def test_csv(tmp_path):
    rows = [
        "\ufeffimage,note,caption",
        '0.png,x,"a ""big"", old',
        'dog"',
        "",
        "1.png,,",
        "0.png,only two",
        ",x,no picture",
    ]
    text = "\r\n".join(rows) + "\r\n"
    source = pickle.loads(pickle.dumps(TableSource(_table(tmp_path, "t.csv", text))))
    assert len(source) == 4
    sample = source.load(0)
    assert (sample.key, sample.captions) == ("0.png", ['a "big", old\r\ndog'])
    assert np.array_equal(np.asarray(sample.image), np.asarray(_noise(seed=0)))
    assert source.load(1).captions == []
    assert "2 cells, 3 in the header" in _fault(source.load, 2).detail
    assert _fault(source.load, 3).kind == "missing"
    assert list(source.iter_captions()) == ['a "big", old\r\ndog', "no picture"]
    with pytest.raises(IndexError):
        source.load(4)


def test_tsv_with_other_columns_and_folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    _table(tmp_path / "pictures", "x", "")
    absolute = tmp_path / "pictures/1.png"
    path = _table(tmp_path, "t.TSV", f"title\tfile\na, b\t0.png\nc\t{absolute}\nd\tnone.png")
    source = TableSource(path, tmp_path / "pictures", image_column="file", caption_column="title")
    assert source.load(0).captions == ["a, b"]
    assert source.load(1).key == str(absolute)
    assert _fault(source.load, 2).kind == "missing"


def test_jsonl(tmp_path):
    rows = [
        '{"image": "0.png"}',
        '{"image": "1.png", "caption": ["é", "b"]}',
        "  ",
        '{"image": "1.png", "caption": "one"}',
        '{"image": "1.png", "caption": 3}',
        '{"image": ',
        "[1]",
        '{"image": null, "caption": "x"}',
    ]
    text = "\n".join(rows).encode() + b'\n{"image": "1.png", "caption": "\xff"}\n'
    source = pickle.loads(pickle.dumps(TableSource(_table(tmp_path, "t.jsonl", text))))
    assert len(source) == 8
    assert [source.load(i).captions for i in range(3)] == [[], ["é", "b"], ["one"]]
    assert [_fault(source.load, i).kind for i in range(3, 8)] == ["bad_caption"] * 3 + ["missing", "bad_caption"]
    assert list(source.iter_captions()) == ["é", "b", "one", "x"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.parquet", "x", r"ends in '\.parquet'; a table is a \.csv, \.tsv, \.jsonl file"),
        ("t.csv", "", "has no rows"),
        ("t.csv", "image,caption\n", "has no rows"),
        ("t.csv", "file,caption\na,b\n", "image_column: t.csv has no column 'image'; it has file, caption"),
        ("t.csv", "image,text\na,b\n", "caption_column: t.csv has no column 'caption'; it has image, text"),
        ("t.csv", 'image,caption\na,b\nc,"open\nd,e\n', "t.csv, row 3: unexpected end of data"),
        ("t.csv", 'image,caption\na,"b" c\nd,e\n', "t.csv, row 2: .* expected after"),
        ("t.jsonl", '{"file": "a", "caption": "b"}\n', "image_column: t.jsonl .* it has file, caption"),
        ("t.jsonl", "broken\n", "image_column"),
        ("t.jsonl", "\n\n", "has no rows"),
    ],
)
def test_table_errors(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as error:
        TableSource(_table(tmp_path, name, text))
    assert "\n" not in str(error.value)


def test_table_paths(tmp_path):
    with pytest.raises(UserError, match=r"path: .*none.csv' is not a file"):
        TableSource(tmp_path / "none.csv")
    with pytest.raises(UserError, match=r"images: .*none' is not a folder"):
        TableSource(_table(tmp_path, "t.csv", "image,caption\na,b\n"), tmp_path / "none")


# real pictures


@pytest.mark.shared_data
@pytest.mark.parametrize(("split", "count"), [("train", 80), ("val", 79)])
def test_coco_mini(split, count):
    folder = SHARED / "coco_mini"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    path = folder / f"annotations/captions_{split}2017.json"
    source = CocoCaptionSource(path, folder / f"{split}2017")
    assert len(source) == count
    assert source.faults == []
    wanted = {}
    for annotation in json.loads(path.read_text())["annotations"]:
        wanted.setdefault(f"{annotation['image_id']:012d}.jpg", []).append(annotation["caption"])
    for index in range(0, count, 10):
        sample = source.load(index)
        assert sample.captions == wanted[sample.key]
        assert min(sample.image.size) > 100
    assert sorted(source.iter_captions()) == sorted(chain(*wanted.values()))
    assert len(FolderSource(folder / f"{split}2017")) == count
