import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from rich.progress import Progress

from pretrain.data import write_shards
from pretrain.data.shard_state import load_state, note_removed, read_removed, trim_removed
from pretrain.data.shards import ShardSource
from pretrain.data.shards_command import main
from pretrain.data.sources import FolderSource, TableSource
from pretrain.data.write_shards import ShardWriter
from pretrain.types import UserError


def _encoded(seed=0, kind="JPEG", size=(20, 16), **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Ten pictures, 0.jpg to 9.jpg."""
    path = tmp_path / "pictures"
    path.mkdir()
    for number in range(10):
        (path / f"{number}.jpg").write_bytes(_encoded(number))
    return path


@pytest.fixture
def table(folder):
    """The ten pictures with two captions each."""
    rows = [{"image": f"{n}.jpg", "caption": [f"picture {n}", f"größe {n}"]} for n in range(10)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "t.jsonl"


def _run(source, out, **options):
    with Progress(disable=True) as progress:
        writer = ShardWriter(source, out, made_from={"kind": "test"}, **options)
        writer.run(progress)
    return writer


def _members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def _tars(out):
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def _cells(text, name):
    return next(line.split("│")[2].strip() for line in text.splitlines() if f"│ {name} " in line)


# what is in a shard


def test_samples_as_they_are_stored(table, tmp_path):
    _run(TableSource(table), tmp_path / "out", per_shard=4)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "shards.json",
        *(f"train-{n:06d}.tar{suffix}" for n in range(3) for suffix in ("", ".index")),
    ]
    members = _members(out / "train-000001.tar")
    assert list(members)[:3] == ["000000004.jpg", "000000004.json", "000000004.txt"]
    assert members["000000004.jpg"] == _encoded(4)
    assert json.loads(members["000000004.json"]) == {"captions": ["picture 4", "größe 4"], "key": "4.jpg"}
    assert members["000000004.txt"] == b"picture 4"
    source = ShardSource(out)
    assert (source.shard_counts, source.faults) == ([4, 4, 2], [])
    assert [summary.built for summary in source._summaries] == [False] * 3  # the index is there
    for index in range(10):
        stored = source.read(index)
        assert (stored.data, stored.captions.texts) == (_encoded(index), [f"picture {index}", f"größe {index}"])


def test_webdataset_reads_them(table, tmp_path):
    _run(TableSource(table), tmp_path / "out", per_shard=4)
    paths = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == [f"{n:09d}" for n in range(10)]
    for number, sample in enumerate(samples):
        assert sample["json"]["captions"] == [f"picture {number}", f"größe {number}"]
        assert sample["txt"] == f"picture {number}"
        assert np.array_equal(np.asarray(sample["jpg"]), np.asarray(Image.open(io.BytesIO(_encoded(number)))))


@pytest.mark.parametrize(
    ("name", "data", "suffix", "kept"),
    [
        ("a.png", _encoded(kind="PNG"), "png", True),
        ("a.webp", _encoded(kind="WEBP"), "webp", True),
        ("a.png", _encoded(kind="JPEG"), "jpg", True),  # its bytes tell, not its name
        ("a.bmp", _encoded(kind="BMP"), "png", False),
        ("a.tif", _encoded(kind="TIFF"), "png", False),
    ],
)
def test_formats(tmp_path, name, data, suffix, kept):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(data)
    _run(FolderSource(folder), tmp_path / "out")
    members = _members(tmp_path / "out/train-000000.tar")
    assert list(members) == [f"000000000.{suffix}", "000000000.json"]  # no caption, no .txt
    assert json.loads(members["000000000.json"]) == {"captions": [], "key": name}
    written = members[f"000000000.{suffix}"]
    assert (written == data) is kept
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(written))), np.asarray(Image.open(io.BytesIO(data))))
    assert ShardSource(tmp_path / "out").load(0).captions == []


def test_shards_from_shards_keep_keys_and_fields(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        records = [
            {"alt": "alt", "long": ["one", "two"], "url": "http://x"},
            {"alt": None, "long": "three", "url": "http://y"},
        ]
        for number, record in enumerate(records):
            for suffix, data in (("png", _encoded(number, "PNG")), ("json", json.dumps(record)), ("txt", f"t{number}")):
                info = tarfile.TarInfo(f"dir/k{number}.{suffix}")
                data = data if isinstance(data, bytes) else data.encode()
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    weights = {"alt": 0.5, "long": 0.25, "txt": 0.25}
    before = ShardSource(tmp_path / "a.tar", caption_weights=weights)
    _run(before, tmp_path / "out")
    members = _members(tmp_path / "out/train-000000.tar")
    assert list(members) == [f"dir/k{n}.{suffix}" for n in range(2) for suffix in ("png", "json", "txt")]
    assert json.loads(members["dir/k0.json"]) == {
        "captions": ["alt", "one", "two", "t0"],
        "alt": ["alt"],
        "long": ["one", "two"],
        "url": "http://x",
    }
    assert members["dir/k1.txt"] == b"t1"
    after = ShardSource(tmp_path / "out", caption_weights=weights)
    for index in range(2):
        one, two = before.load(index), after.load(index)
        assert (one.captions, one.caption_weights, one.key) == (two.captions, two.caption_weights, two.key)
    assert ShardSource(tmp_path / "out").load(1).captions == ["three", "t1"]


def test_names_that_stand_side_by_side(tmp_path):
    """In a tar they would run together to one sample."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.png", "a.txt", "a.txt", "a.jpg"):
            data = b"x" if name.endswith("txt") else _encoded(0, "PNG" if name.endswith("png") else "JPEG")
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    _run(ShardSource(tmp_path / "a.tar"), tmp_path / "out")
    after = ShardSource(tmp_path / "out")
    assert [after.load(index).key for index in range(2)] == ["a", "a_000000001"]


def test_size_of_shards(folder, tmp_path):
    for number in range(10):
        (folder / f"{number}.jpg").write_bytes(_encoded(number, size=(60, 50 + 40 * (number % 3))))
    bound = 40 * 1024
    writer = _run(FolderSource(folder), tmp_path / "out", per_shard=5, max_bytes=bound)
    shards = writer.state.shards
    assert sum(shard.samples for shard in shards) == 10
    assert all(shard.bytes <= bound for shard in shards)
    assert len(shards) > 2
    with pytest.MonkeyPatch.context() as patch:  # names that take a header more
        patch.setattr(ShardWriter, "_key", lambda self, item: f"größe{item.index}")
        named = _run(FolderSource(folder), tmp_path / "named", max_bytes=bound)
    assert all(shard.bytes <= bound for shard in named.state.shards)
    tiny = _run(FolderSource(folder), tmp_path / "tiny", max_bytes=1)  # each is larger, each has its own
    assert [shard.samples for shard in tiny.state.shards] == [1] * 10


# what cannot be used


def test_unusable_samples_are_counted_and_left_out(table, folder, tmp_path):
    (folder / "3.jpg").write_bytes(_encoded(3)[:200])
    (folder / "8.jpg").unlink()
    writer = _run(TableSource(table), tmp_path / "out", per_shard=4)
    assert writer.log.counts == {"corrupt": 1, "missing": 1}
    assert [(shard.first, shard.end, shard.samples) for shard in writer.state.shards] == [(0, 5, 4), (5, 10, 4)]
    keys = [json.loads(json.dumps(ShardSource(tmp_path / "out").read(i).record))["key"] for i in range(8)]
    assert keys == [f"{n}.jpg" for n in (0, 1, 2, 4, 5, 6, 7, 9)]


def test_too_many_unusable_samples(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number:03d}.jpg").write_bytes(b"broken" if number >= 100 else _encoded(0))
    with pytest.raises(UserError, match=r"--max-fault-share: 150 of the last 250 .* 150 corrupt \(100.jpg"):
        _run(FolderSource(folder), tmp_path / "out", per_shard=50, max_fault_share=0.05)
    assert len(_tars(tmp_path / "out")) == 1  # the second shard was not finished
    writer = _run(FolderSource(folder), tmp_path / "out", per_shard=50, max_fault_share=1.0)
    assert (writer.num_kept, writer.log.attempts, writer.log.counts) == (1, 300, {"corrupt": 200})


def test_source_without_a_usable_sample(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"broken")
    writer = _run(FolderSource(tmp_path / "in"), tmp_path / "out")
    assert _tars(tmp_path / "out") == {}
    assert writer.state.complete
    _run(FolderSource(tmp_path / "in"), tmp_path / "out")


# going on


class _Stop(Exception):
    pass


def _stopping_at(monkeypatch, number):
    """The run stops when sample `number` is about to be written."""
    whole = write_shards._add

    def add(tar, members):
        if members[0][0] == f"{number:09d}.jpg":
            raise _Stop
        whole(tar, members)

    monkeypatch.setattr(write_shards, "_add", add)


@pytest.mark.parametrize("stop", [0, 2, 3, 7, 9])
def test_interrupted_run_goes_on_to_the_same_bytes(table, folder, tmp_path, monkeypatch, stop):
    (folder / "4.jpg").unlink()
    unbroken = _run(TableSource(table), tmp_path / "unbroken", per_shard=3)
    with monkeypatch.context() as patch:
        _stopping_at(patch, stop)
        with pytest.raises(_Stop):
            _run(TableSource(table), tmp_path / "out", per_shard=3)
    finished = _tars(tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))
    writer = _run(TableSource(table), tmp_path / "out", per_shard=3)
    assert writer.num_kept == len(finished) == (0 if stop < 3 else 1 if stop < 7 else 2)
    assert _tars(tmp_path / "out") == _tars(tmp_path / "unbroken")
    assert (
        (writer.log.attempts, writer.log.counts) == (unbroken.log.attempts, unbroken.log.counts) == (10, {"missing": 1})
    )
    assert writer.state == unbroken.state


def test_finished_shards_are_not_written_again(table, tmp_path, monkeypatch):
    _run(TableSource(table), tmp_path / "out", per_shard=3)
    monkeypatch.setattr(write_shards, "_members", lambda *_, **__: pytest.fail("written again"))
    assert _run(TableSource(table), tmp_path / "out", per_shard=3).num_kept == 4


def test_lost_shard_is_written_again(table, folder, tmp_path):
    (folder / "4.jpg").unlink()
    _run(TableSource(table), tmp_path / "out", per_shard=3)
    whole = _tars(tmp_path / "out")
    (tmp_path / "out/train-000001.tar").write_bytes(b"cut")
    (tmp_path / "out/train-000002.tar").unlink()
    writer = _run(TableSource(table), tmp_path / "out", per_shard=3)
    assert _tars(tmp_path / "out") == whole
    assert (writer.log.attempts, writer.log.counts) == (10, {"missing": 1})  # each counted once
    (tmp_path / "out/train-000000.tar").unlink()
    (folder / "0.jpg").unlink()
    with pytest.raises(UserError, match=r"train-000000.tar' is gone, and its source has changed since"):
        _run(TableSource(table), tmp_path / "out", per_shard=3)


def test_what_a_killed_run_left_is_cleared(table, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.train-000000.tar.77.tmp").write_bytes(b"half")
    _run(TableSource(table), tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


def test_run_that_differs_is_refused(table, tmp_path):
    _run(TableSource(table), tmp_path / "out", per_shard=3)
    with pytest.raises(UserError, match="was begun with per_shard=3, this command has per_shard=4: give the same"):
        _run(TableSource(table), tmp_path / "out", per_shard=4)
    with pytest.raises(UserError, match="max_bytes=None, this command has max_bytes=9"):
        _run(TableSource(table), tmp_path / "out", per_shard=3, max_bytes=9)


def test_folders_that_cannot_be_written_to(table, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds other things and no shards.json: give an empty or a new folder"):
        load_state(tmp_path, {})
    with pytest.raises(UserError, match="holds other things"):
        load_state(tmp_path / "notes.txt", {})
    for content in ("{", "[]", '{"version": 0}', '{"version": 1, "what": 3}'):
        (tmp_path / "shards.json").write_text(content)
        with pytest.raises(UserError, match=r"shards.json' cannot be read"):
            load_state(tmp_path, {})


@pytest.mark.parametrize("options", [dict(per_shard=0), dict(max_bytes=0), dict(prefix="a/b"), dict(prefix="")])
def test_wrong_sizes(table, tmp_path, options):
    with pytest.raises(UserError, match=f"--{next(iter(options)).replace('_', '-')} "):
        _run(TableSource(table), tmp_path / "out", **options)


def test_rows_of_an_unfinished_shard_are_taken_back(tmp_path):
    note_removed(tmp_path, [{"index": 3, "key": "ä"}, {"index": 7, "key": "\udcff"}])
    with (tmp_path / "removed.jsonl").open("a") as file:
        file.write('{"index": 1, "ke')
    trim_removed(tmp_path, end=9)
    assert read_removed(tmp_path) == [{"index": 3, "key": "ä"}, {"index": 7, "key": "\udcff"}]
    trim_removed(tmp_path, end=7)
    assert read_removed(tmp_path) == [{"index": 3, "key": "ä"}]


# python -m pretrain shards


def _command(out, *args):
    return main([str(out), *map(str, args)])


def test_scenes(tmp_path, capsys):
    flags = ["--from", "scenes", "--num", 7, "--levels", "one", "crowd=2", "--captions", "short=0.7", "full"]
    assert _command(tmp_path / "out", *flags, "--img-size", 32, "--per-shard", 3) == 0
    assert _cells(capsys.readouterr().out, "samples") == "7 of 7"
    source = ShardSource(tmp_path / "out", caption_weights={"short": 0.7, "full": 1.0})
    assert source.shard_counts == [3, 3, 1]
    sample = source.load(6)
    assert sample.key.startswith("scene_s0_train_00000006_")
    assert (sample.image.size, len(sample.captions), sample.caption_weights) == ((32, 32), 2, [0.7, 1.0])
    assert source.read(6).data.startswith(b"\x89PNG")
    assert _command(tmp_path / "again", *flags, "--img-size", 32, "--per-shard", 3) == 0
    assert _tars(tmp_path / "again") == _tars(tmp_path / "out")
    assert _command(tmp_path / "out", *flags, "--img-size", 64, "--per-shard", 3) == 2
    assert "img_size=32, this command has img_size=64" in capsys.readouterr().err


def test_other_sources(table, folder, tmp_path, capsys):
    rows = [{"img": {"bytes": _encoded(n), "path": None}, "label": n, "alt": f"alt {n}"} for n in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    parquet = ["--from", "parquet", "--path", tmp_path / "a.parquet", "--image-column", "img", "--captions", "alt"]
    assert _command(tmp_path / "p", *parquet) == 0
    stored = ShardSource(tmp_path / "p").read(2)
    assert stored.record == {"captions": ["alt 2"], "alt": ["alt 2"], "key": "a.parquet/2", "label": 2}
    assert _command(tmp_path / "t", "--from", "table", "--path", table, "--prefix", "val", "--per-shard", 4) == 0
    assert list(_tars(tmp_path / "t")) == [f"val-{n:06d}.tar" for n in range(3)]
    coco = {"images": [{"id": 1, "file_name": "5.jpg"}], "annotations": [{"image_id": 1, "caption": "five"}]}
    (tmp_path / "c.json").write_text(json.dumps(coco))
    assert _command(tmp_path / "c", "--from", "coco", "--path", tmp_path / "c.json", "--images", folder) == 0
    assert ShardSource(tmp_path / "c").load(0).captions == ["five"]
    assert ShardSource(tmp_path / "c").read(0).data == _encoded(5)
    assert _command(tmp_path / "s", "--from", "shards", "--path", tmp_path / "c", tmp_path / "t") == 0
    assert len(ShardSource(tmp_path / "s")) == 11
    capsys.readouterr()


def test_source_that_changed_is_refused(folder, tmp_path, capsys):
    assert _command(tmp_path / "out", "--from", "folder", "--path", folder) == 0
    (folder / "0.jpg").rename(folder / "00.jpg")
    assert _command(tmp_path / "out", "--from", "folder", "--path", folder) == 2
    assert "was begun with files=" in capsys.readouterr().err


def test_interrupt_is_one_line(folder, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardWriter, "_write", interrupt)
    assert _command(tmp_path / "out", "--from", "folder", "--path", folder) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("interrupted; what is finished is kept")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--from", "folder"], "--path is needed with --from folder"),
        (["--from", "coco", "--path", "x"], "--images is needed with --from coco"),
        (["--from", "folder", "--path", "x", "--images", "y"], "--images='y' is not used by --from folder"),
        (["--from", "folder", "--path", "x", "--seed", "3"], "--seed is not used by --from folder"),
        (["--from", "folder", "--path", "x", "y"], "--path must be one path with --from folder"),
        (["--from", "shards", "--path", "x", "--captions", "a=0"], "give each field of captions a weight above 0"),
        (["--from", "shards", "--path", "x", "--captions", "a=b"], "--captions a=b: 'b' is no number"),
        (["--from", "shards", "--path", "x", "--captions", "a", "a"], "--captions: 'a' is given twice"),
        (["--from", "scenes", "--num", "3", "--captions", "short"], "--levels is needed with --from scenes"),
        (["--from", "scenes", "--levels", "one", "--captions", "short"], "--num is needed with --from scenes"),
        (["--from", "scenes", "--num", "3", "--levels", "x", "--captions", "short"], "level 'x' is unknown"),
    ],
)
def test_wrong_flags(tmp_path, capsys, flags, message):
    assert _command(tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.shared_data
def test_flickr1k(shared_data, tmp_path, capsys):
    pattern = str(shared_data / "flickr1k/val-*.tar")
    assert _command(tmp_path / "out", "--from", "shards", "--path", pattern, "--per-shard", 50) == 0
    before, after = ShardSource(pattern), ShardSource(tmp_path / "out")
    assert after.shard_counts == [50, 50, 25]
    for index in range(125):
        one, two = before.read(index), after.read(index)
        assert (one.data, one.key, one.captions) == (two.data, two.key, two.captions)
    assert Path(after.paths[0]).name == "train-000000.tar"
