import glob
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pretrain.data.find_files import expand_braces, find_shards
from pretrain.data.shards import ShardSource
from pretrain.data.sources import BadSample
from pretrain.types import UserError

SHARED = Path(__file__).parents[3].parent / "shared/data/flickr1k"


def _png(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write(path, members, format=tarfile.PAX_FORMAT):
    """A tar of {name: bytes}; returns [(start of the header, start, size)] of each member."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return [(member.offset, member.offset_data, member.size) for member in tar]


def _pairs(count, first=0):
    members = []
    for i in range(first, first + count):
        members += [(f"{i:04d}.png", _png(i)), (f"{i:04d}.txt", f"caption {i}".encode())]
    return members


def _cut(path, size):
    with open(path, "r+b") as file:
        file.truncate(size)


def _keys(source):
    return [source.load(i).key for i in range(len(source))]


def _fault(function, *arguments):
    with pytest.raises(BadSample) as error:
        function(*arguments)
    return error.value.fault


# whole shards


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_by_index(tmp_path, format):
    long = "folder/" + "x" * 80 if format == tarfile.USTAR_FORMAT else "größe/" * 20 + "y" * 120
    _write(tmp_path / "a.tar", _pairs(3), format)
    _write(tmp_path / "b.tar", [(f"{long}.png", _png(9)), (f"{long}.txt", "größe".encode())], format)
    source = pickle.loads(pickle.dumps(ShardSource(tmp_path)))
    assert source.faults == []
    assert len(source) == 4
    assert _keys(source) == ["0000", "0001", "0002", long]
    last = source.load(3)
    assert last.captions == ["größe"]
    assert np.array_equal(np.asarray(last.image), np.asarray(Image.open(io.BytesIO(_png(9)))))
    assert list(source.iter_captions()) == ["caption 0", "caption 1", "caption 2", "größe"]
    assert sorted(source.iter_captions(4)) == sorted(source.iter_captions())
    assert len(list(source.iter_captions(2))) == 2
    for index in (4, -1):
        with pytest.raises(IndexError):
            source.load(index)


def test_members_are_grouped_as_webdataset_groups_them(tmp_path):
    names = [
        "a/1.png",
        "a/1.seg.png",
        "a/1.txt",
        "b/1.PNG",
        "b/1.json",
        "v1.0/2.jpg",
        "v1.0/2.txt",
        ".hidden",
        "README",
    ]
    names += ["3.txt", "4.webp", "5.thumb.jpg", "5.jpeg"]
    content = {"json": b'{"caption": "x"}', "txt": b"x"}
    _write(tmp_path / "a.tar", [(name, content.get(name.rsplit(".")[-1], _png())) for name in names])
    wanted = [
        sample["__key__"]
        for sample in webdataset.WebDataset([str(tmp_path / "a.tar")], shardshuffle=False)
        if {"jpg", "jpeg", "png", "webp"} & set(sample)
    ]
    source = ShardSource(tmp_path)
    assert _keys(source) == wanted == ["a/1", "b/1", "v1.0/2", "4", "5"]
    assert [(fault.kind, fault.key) for fault in source.faults] == [("no_image", "a.tar/3")]
    assert source.load(3).captions == []


def test_name_again_is_another_sample(tmp_path):
    twice = [*_pairs(1), ("0000.png", _png(5)), ("0000.txt", b"other")]
    _write(tmp_path / "a.tar", twice)
    source = ShardSource(tmp_path)
    assert _keys(source) == ["0000", "0000"]
    assert [source.load(i).captions for i in range(2)] == [["caption 0"], ["other"]]


def test_folders_and_links_are_no_members(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in [("x.png", tarfile.DIRTYPE), ("y.png", tarfile.SYMTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "0000.png"
            tar.addfile(info)
        for name, data in _pairs(1):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = ShardSource(tmp_path)
    assert (_keys(source), source.faults) == (["0000"], [])


@pytest.mark.parametrize(
    ("files", "field", "captions"),
    [
        ({"json": '{"captions": ["a", "", "b"], "caption": "c"}', "txt": "t"}, None, ["a", "b"]),
        ({"json": '{"caption": "c"}', "txt": "t"}, None, ["c"]),
        ({"json": '{"caption": null}'}, None, []),
        ({"json": '{"text": ["x"], "caption": "c"}'}, "text", ["x"]),
        ({"json": '{"width": 3}', "txt": "t"}, None, ["t"]),
        ({"json": '{"caption": "c"}', "txt": "t"}, "text", ["t"]),
        ({"txt": "two\nlines"}, None, ["two\nlines"]),
        ({"txt": " "}, None, []),
        ({}, None, []),
    ],
)
def test_captions(tmp_path, files, field, captions):
    _write(tmp_path / "a.tar", [("a.png", _png()), *((f"a.{k}", v.encode()) for k, v in files.items())])
    source = ShardSource(tmp_path, caption_field=field)
    assert source.load(0).captions == captions
    assert list(source.iter_captions()) == captions


@pytest.mark.parametrize(
    ("name", "data", "detail"),
    [
        ("a.json", b"{", "Expecting property name"),
        ("a.json", b"[1]", "not a JSON object"),
        ("a.json", b'{"caption": 3}', "neither a caption nor a list"),
        ("a.json", b'{"captoin": "x", "id": 1}', "no 'captions' or 'caption' in its .json, which has captoin, id"),
        ("a.json", b"\xff\xfe\xfa", "codec can't decode"),
        ("a.txt", b"caf\xe9", "codec can't decode"),
    ],
)
def test_bad_captions(tmp_path, name, data, detail):
    _write(tmp_path / "a.tar", [("a.png", _png()), (name, data)])
    source = ShardSource(tmp_path)
    fault = _fault(source.load, 0)
    assert (fault.kind, fault.key) == ("bad_caption", "a.tar/a")
    assert detail in fault.detail
    assert list(source.iter_captions()) == []


def test_picture_that_cannot_be_decoded(tmp_path):
    _write(tmp_path / "a.tar", [("a.png", _png()[:100]), ("a.txt", b"x")])
    fault = _fault(ShardSource(tmp_path).load, 0)
    assert (fault.kind, fault.key) == ("corrupt", "a.tar/a")


def test_shard_that_changes_after_the_start(tmp_path):
    _write(tmp_path / "a.tar", _pairs(2))
    source = ShardSource(tmp_path)
    _cut(tmp_path / "a.tar", 700)
    assert _fault(source.load, 1).kind == "truncated_tar"
    source = pickle.loads(pickle.dumps(source))
    (tmp_path / "a.tar").unlink()
    assert _fault(source.load, 0).kind == "missing"


class _Loaded(Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        sample = self.source.load(index)
        return sample.key, np.asarray(sample.image).copy()


def test_forked_workers_do_not_disturb_each_other(tmp_path):
    _write(tmp_path / "a.tar", _pairs(40))
    source = ShardSource(tmp_path)
    source.load(0)  # opens the shard, so that the workers share the descriptor
    loader = DataLoader(_Loaded(source), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for index, (key, pixels) in enumerate(loader):
        assert key == f"{index:04d}"
        assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(_png(index)))))


# broken shards; samples 0..3 of a .png and a .txt each, members 0..7


@pytest.mark.parametrize(
    ("where", "usable"),
    [
        (lambda m: m[4][0], 2),  # between two samples
        (lambda m: m[4][0] + 200, 2),  # in the header of a picture
        (lambda m: m[4][1], 2),  # after that header
        (lambda m: m[4][1] + m[4][2] // 2, 2),  # in the picture
        (lambda m: m[5][0], 2),  # between a picture and its caption
        (lambda m: m[5][0] + 100, 2),  # in the header of a caption
        (lambda m: m[5][1] + 3, 2),  # in the caption
        (lambda m: m[5][1] + m[5][2], 3),  # after the caption, before the padding of its block
        (lambda m: m[7][1] + 1, 3),  # in the last member's data
        (lambda m: m[7][1] + 512, 4),  # the end marker is missing
        (lambda m: m[7][1] + 1024, 4),  # half of it is missing
    ],
)
def test_truncated_tar_gives_what_is_before_the_break(tmp_path, where, usable):
    path = tmp_path / "a.tar"
    members = _write(path, _pairs(4))
    assert members[1][2] < 512  # a caption fills one block
    _cut(path, where(members))
    source = ShardSource(path)
    assert [(fault.kind, fault.key) for fault in source.faults] == [("truncated_tar", "a.tar")]
    assert "\n" not in source.faults[0].detail
    assert _keys(source) == [f"{i:04d}" for i in range(usable)]
    assert list(source.iter_captions()) == [f"caption {i}" for i in range(usable)]


def test_tar_cut_at_every_block_is_noticed(tmp_path):
    path = tmp_path / "a.tar"
    members = _write(path, _pairs(3), tarfile.GNU_FORMAT)
    whole, end = path.read_bytes(), members[-1][1] + 512
    for size in range(512, end + 1024, 512):
        path.write_bytes(whole[:size])
        try:
            source = ShardSource(path)
        except UserError:
            assert size < members[2][0]  # no sample is whole
            continue
        assert [fault.kind for fault in source.faults] == ["truncated_tar"]
        assert all(source.load(i).captions for i in range(len(source)))
    path.write_bytes(whole[: end + 1024])
    assert ShardSource(path).faults == []


def test_cut_last_caption_leaves_other_shards_alone(tmp_path):
    members = _write(tmp_path / "a.tar", _pairs(2))
    _cut(tmp_path / "a.tar", members[3][1] + 1)
    _write(tmp_path / "b.tar", _pairs(2, first=2))
    source = ShardSource(tmp_path)
    assert _keys(source) == ["0000", "0002", "0003"]
    assert len(source.faults) == 1


def test_damaged_header_in_the_middle(tmp_path):
    path = tmp_path / "a.tar"
    members = _write(path, _pairs(4))
    data = bytearray(path.read_bytes())
    data[members[4][0] : members[4][0] + 512] = b"\xaa" * 512
    path.write_bytes(data)
    source = ShardSource(path)
    assert len(source) == 2
    assert source.faults[0].kind == "truncated_tar"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "truncated_tar"),
        (bytes(100), "truncated_tar"),
        (np.random.default_rng(0).bytes(5000), "corrupt"),
        (b"no tar" * 500, "corrupt"),
    ],
)
def test_files_that_are_no_tar(tmp_path, data, kind):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"a.tar' and 0 more shards hold no sample \(a.tar: "):
        ShardSource(tmp_path / "a.tar")
    _write(tmp_path / "b.tar", _pairs(1))
    source = ShardSource(tmp_path)
    assert [(fault.kind, fault.key) for fault in source.faults] == [(kind, "a.tar")]
    assert _keys(source) == ["0000"]


def test_compressed_tar_is_no_tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes() + bytes(600))
    _write(tmp_path / "b.tar", _pairs(1))
    assert [fault.kind for fault in ShardSource(tmp_path).faults] == ["corrupt"]


# naming shards


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("a.tar", ["a.tar"]),
        ("x-{008..011}.tar", ["x-008.tar", "x-009.tar", "x-010.tar", "x-011.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
    ],
)
def test_braces(pattern, expanded):
    assert list(expand_braces(pattern)) == expanded


@pytest.mark.parametrize("pattern", ["{a}", "{}", "{0..}", "{a..c}"])
def test_braces_that_are_no_range(pattern):
    with pytest.raises(UserError, match="neither a range"):
        list(expand_braces(pattern))


@pytest.fixture
def shards(tmp_path):
    for name in ("a-0.tar", "a-1.tar", "b-{x}.tar"):
        _write(tmp_path / name, _pairs(1))
    (tmp_path / "notes.txt").write_text("x")
    return tmp_path


def test_ways_to_name_shards(shards):
    def names(urls):
        return [Path(path).name for path in find_shards(urls)]

    assert names(shards) == names(str(shards)) == ["a-0.tar", "a-1.tar", "b-{x}.tar"]
    assert names(shards / "a-1.tar") == ["a-1.tar"]
    assert names(str(shards / "a-*.tar")) == names(str(shards / "a-{0..1}.tar")) == ["a-0.tar", "a-1.tar"]
    assert names([str(shards / "b-{x}.tar"), shards / "a-{1,0}.tar"]) == ["b-{x}.tar", "a-1.tar", "a-0.tar"]


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        (["none.tar"], "none.tar' does not exist"),
        (["a-{0..2}.tar"], "a-2.tar' does not exist"),
        (["c-*.tar"], r"c-\*.tar' matches no file"),
        (["a-0.tar", "a-*.tar"], "a-0.tar' is named twice"),
        (["a-0.tar", "../{folder}/a-0.tar"], "named twice"),
        ([], "no shard is named"),
    ],
)
def test_wrong_names(shards, urls, message):
    with pytest.raises(UserError, match=message) as error:
        find_shards([str(shards / url.replace("{folder}", shards.name)) for url in urls])
    assert str(error.value).startswith("urls: ")


@pytest.mark.parametrize(
    ("url", "message"),
    [("s3://bucket/a.tar", "s3fs"), ("nowhere://x/{0..3}.tar", "nowhere"), ("pipe:cat a.tar", "copy or mount")],
)
def test_urls_that_cannot_be_opened(url, message):
    with pytest.raises(UserError, match=message):
        find_shards(url)


def test_folder_without_shards(tmp_path):
    with pytest.raises(UserError, match=r"holds no \.tar file"):
        ShardSource(tmp_path)


def test_shards_without_pictures(tmp_path):
    _write(tmp_path / "a.tar", [("a.txt", b"x")])
    with pytest.raises(UserError, match=r"hold no sample \(a.tar/a: a.txt: no .jpg"):
        ShardSource(tmp_path)


# real shards


@pytest.mark.shared_data
@pytest.mark.parametrize(("split", "count"), [("train", 875), ("val", 125)])
def test_flickr1k(split, count):
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent")
    source = ShardSource(f"{SHARED}/{split}-*.tar")
    assert (len(source), source.faults) == (count, [])
    assert all(len(source.read_captions(index)) == 5 for index in range(count))
    assert min(source.load(count - 1).image.size) > 50


@pytest.mark.shared_data
def test_flickr1k_equals_webdataset():
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent")
    paths = sorted(glob.glob(f"{SHARED}/val-*.tar"))
    source = ShardSource(paths)
    theirs = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert len(theirs) == len(source)
    for index, wanted in enumerate(theirs):
        assert [source.read_member(index, column) for column in range(3)] == [wanted[k] for k in ("jpg", "json", "txt")]
        assert source.load(index).key == wanted["__key__"]
        assert source.read_captions(index) == json.loads(wanted["json"])["captions"]
