import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.data import shard_index, tar_members
from pretrain.data.index_command import main
from pretrain.data.shard_index import beside_path, build_index, default_cache, index_shard, load_index
from pretrain.data.shards import ShardSource
from pretrain.data.storage import BadSample
from pretrain.types import UserError


def _png(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write(path, names, *, records=None):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, name in enumerate(names):
            record = records[number] if records else {"caption": f"picture {name}"}
            for suffix, data in (("png", _png(number)), ("json", json.dumps(record).encode())):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


def _keys(source):
    return [source.load(index).key for index in range(len(source))]


@pytest.fixture
def no_headers(monkeypatch):
    """From here on, reading a tar's headers is an error."""

    def forbid():
        def fail(path):
            raise AssertionError(f"{path} is indexed again")

        monkeypatch.setattr(shard_index, "build_index", fail)

    return forbid


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        _write(folder / f"{shard}.tar", [f"{shard}{number}" for number in range(4)])
    return folder


# when an index serves


def test_second_start_reads_no_tar(shards, tmp_path, no_headers):
    first = ShardSource(shards, index_cache=tmp_path / "cache")
    no_headers()
    second = ShardSource(shards, index_cache=tmp_path / "cache")
    assert _keys(second) == _keys(first) == [f"{shard}{number}" for shard in range(3) for number in range(4)]
    with pytest.raises(AssertionError, match="indexed again"):
        ShardSource(shards, index_cache=tmp_path / "other")


def test_index_goes_to_the_users_cache_and_never_beside_the_shard(shards):
    summary = index_shard(str(shards / "0.tar"))
    assert os.path.dirname(summary.index_path) == str(default_cache())
    assert sorted(os.listdir(shards)) == ["0.tar", "1.tar", "2.tar"]


def test_faults_are_kept_in_the_index(shards, no_headers):
    path = shards / "0.tar"
    with path.open("r+b") as file:
        file.truncate(3000)
    faults = ShardSource(shards).faults
    no_headers()
    assert [fault.kind for fault in faults] == ["truncated_tar"]
    assert ShardSource(shards).faults == faults


@pytest.mark.parametrize("same_size", [True, False])
def test_changed_shard_is_indexed_again(shards, same_size):
    assert _keys(ShardSource(shards / "1.tar")) == ["10", "11", "12", "13"]
    names = ["x0", "x1", "x2", "x3"] if same_size else ["x0"] * 40
    _write(shards / "1.tar", names)
    os.utime(shards / "1.tar", ns=(1, 10**18))
    assert _keys(ShardSource(shards / "1.tar")) == names


def test_damaged_index_is_made_again(shards, no_headers):
    path = str(shards / "0.tar")
    place = index_shard(path).index_path
    whole = Path(place).read_bytes()
    damaged = [bytearray(whole) for _ in range(2)]
    for content, name in zip(damaged, (b"about.npy", b"members.npy")):  # members are not read at the start
        content[whole.index(name) + 200] ^= 255
    for content in (b"", whole[: len(whole) // 2], b"no index" * 100, *map(bytes, damaged)):
        Path(place).write_bytes(content)
        assert _keys(ShardSource(path)) == ["00", "01", "02", "03"]
    assert load_index(place).headers_crc32 == build_index(path).headers_crc32
    no_headers()
    assert _keys(ShardSource(path)) == ["00", "01", "02", "03"]


def test_index_of_another_version_is_made_again(shards, monkeypatch):
    path = str(shards / "0.tar")
    index_shard(path)
    monkeypatch.setattr(shard_index, "_VERSION", 99)
    assert index_shard(path).built
    assert not index_shard(path).built


def test_index_that_is_removed_or_replaced_after_the_start(shards):
    path = str(shards / "0.tar")
    source = ShardSource(path)
    place = source._summaries[0].index_path
    os.remove(place)
    assert source.load(0).key == "00"
    source = ShardSource(path)
    _write(shards / "0.tar", ["a"] * 3)
    index_shard(path)
    with pytest.raises(UserError, match=r"0.tar' or its index was changed after the start"):
        source.load(0)


# beside the shards


def test_index_beside_a_copied_shard_serves(shards, tmp_path, no_headers):
    summary = index_shard(str(shards / "0.tar"), beside=True)
    assert summary.index_path == beside_path(str(shards / "0.tar"))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("0.tar", "0.tar.index"):
        shutil.copyfile(shards / name, copy / name)  # a new time
    no_headers()
    assert _keys(ShardSource(copy)) == ["00", "01", "02", "03"]


def test_shard_written_after_the_index_beside_it_is_indexed_again(shards):
    path = str(shards / "0.tar")
    index_shard(path, beside=True)
    size = os.path.getsize(path)
    _write(path, ["x0", "x1", "x2", "x3"])
    assert os.path.getsize(path) == size
    later = os.stat(beside_path(path)).st_mtime_ns + 1_000_000
    os.utime(path, ns=(later, later))
    assert _keys(ShardSource(path)) == ["x0", "x1", "x2", "x3"]


def test_index_beside_a_remote_shard_is_an_error():
    with pytest.raises(UserError, match=r"--beside: 'memory://a\.tar' is remote"):
        shard_index.rebuild_index("memory://a.tar", beside=True)


# errors


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere; the case of a file in the way is tested below")
def test_folder_without_permission(shards, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written to"):
        ShardSource(shards, index_cache=tmp_path / "closed")


def test_cache_that_cannot_be_written(shards, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"the index of .*0.tar' cannot be written to .*; name a folder") as error:
        ShardSource(shards, index_cache=tmp_path / "file")
    assert "\n" not in str(error.value)


def test_failing_disk_is_an_error_and_no_truncated_shard(shards, monkeypatch):
    """Kept in the index, it would leave samples out for good."""
    path = str(shards / "0.tar")

    class Failing(io.BufferedReader):
        def read(self, size=-1):
            if self.tell() > 2000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with monkeypatch.context() as patch:
        patch.setattr(tar_members, "open_shard", lambda path: Failing(io.FileIO(path)))
        with pytest.raises(UserError, match=r"0.tar' cannot be read: \[Errno 5\] Input/output error"):
            index_shard(path)
    assert len(ShardSource(path)) == 4


def test_header_that_leads_before_the_start_is_damage(shards):
    path = shards / "0.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[4].offset
    data[offset + 124 : offset + 136] = b"\xff" * 11 + b"\x00"  # size: a negative number in base 256
    data[offset + 148 : offset + 156] = b" " * 8
    checksum = sum(data[offset : offset + 512])
    data[offset + 148 : offset + 156] = f"{checksum:06o}\0 ".encode()
    path.write_bytes(data)
    source = ShardSource(path)
    assert _keys(source) == ["00", "01"]
    assert [fault.kind for fault in source.faults] == ["truncated_tar"]


# checksum


def test_checksum_is_of_the_headers(shards, tmp_path):
    path = str(shards / "0.tar")
    index = build_index(path)
    _write(tmp_path / "same.tar", ["00", "01", "02", "03"])
    assert build_index(str(tmp_path / "same.tar")).headers_crc32 == index.headers_crc32
    _write(tmp_path / "name.tar", ["00", "01", "02", "0x"])
    assert build_index(str(tmp_path / "name.tar")).headers_crc32 != index.headers_crc32
    assert load_index(index_shard(path).index_path).headers_crc32 == index.headers_crc32


# python -m pretrain index


def _tamper(path):
    """Another name in a header; size and time stay as they are."""
    stat = os.stat(path)
    _write(path, ["00", "01", "02", "0x"])
    assert os.stat(path).st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _cells(text, name):
    return next(line.split("│")[2].strip() for line in text.splitlines() if f"│ {name} " in line)


def test_command_builds_checks_and_verifies(shards, tmp_path, capsys):
    cache = ["--cache", str(tmp_path / "cache")]
    with (shards / "2.tar").open("r+b") as file:
        file.truncate(3000)
    assert main([str(shards), *cache]) == 0
    text = capsys.readouterr().out
    assert _cells(text, "shards") == "3 (3 indexed now)"
    assert (_cells(text, "samples"), _cells(text, "faults")) == ("9", "1 truncated_tar")
    assert "found while indexing: 1 truncated tar (2.tar)" in text
    assert str(tmp_path / "cache") in text
    assert main([str(shards), *cache, "--verify"]) == 0
    assert "3 of 3 shards are as their index says" in capsys.readouterr().out
    _tamper(shards / "0.tar")
    assert main([str(shards), *cache]) == 0  # not to be seen without reading the headers
    capsys.readouterr()
    assert main([str(shards), *cache, "--verify"]) == 1
    output = capsys.readouterr()
    assert "2 of 3 shards" in output.out
    assert "indexed anew" in output.err
    assert str(shards / "0.tar") in output.err
    assert _keys(ShardSource(shards / "0.tar", index_cache=tmp_path / "cache"))[-1] == "0x"
    assert main([str(shards), *cache, "--verify"]) == 0


def test_command_beside(shards, capsys):
    assert main([str(shards / "{0..1}.tar"), "--beside"]) == 0
    assert sorted(os.listdir(shards)) == ["0.tar", "0.tar.index", "1.tar", "1.tar.index", "2.tar"]
    _tamper(shards / "0.tar")
    assert main([str(shards / "0.tar"), "--verify"]) == 1
    assert main([str(shards / "0.tar"), "--verify"]) == 0
    assert _keys(ShardSource(shards / "0.tar"))[-1] == "0x"


def test_command_errors(tmp_path, capsys):
    assert main([str(tmp_path / "none.tar")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: urls: ")


# kinds of caption


_KINDS = [
    {"alt": "alt", "long": ["one", "two"]},
    {"alt": None, "long": ["three"]},
    {"other": "x"},
    {"alt": "alone", "long": []},
    {"alt": 3},
]


def _drawn(source, index, count):
    sample, rng = source.load(index), np.random.default_rng(index)
    return [source.choose_caption(sample, rng) for _ in range(count)]


def test_weights_of_caption_kinds(tmp_path):
    path = _write(tmp_path / "a.tar", list("abcde"), records=_KINDS)
    source = ShardSource(path, caption_weights={"alt": 0.3, "long": 0.7})
    count = 20_000
    drawn = _drawn(source, 0, count)
    for caption, share in {"alt": 0.3, "one": 0.35, "two": 0.35}.items():
        sigma = (count * share * (1 - share)) ** 0.5
        assert abs(drawn.count(caption) - count * share) < 3 * sigma
    # a kind that is missing gives its weight to the others
    assert set(_drawn(source, 1, 100)) == {"three"}
    assert set(_drawn(source, 3, 100)) == {"alone"}
    for index, detail in {2: "no 'alt' or 'long' among its fields other", 4: "3 is neither a caption"}.items():
        with pytest.raises(BadSample) as error:
            source.load(index)
        assert error.value.fault.kind == "bad_caption"
        assert detail in error.value.fault.detail
    assert list(source.iter_captions()) == ["alt", "one", "two", "three", "alone"]


def test_txt_is_a_kind(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        members = [("a.png", _png()), ("a.json", b'{"alt": "alt"}'), ("a.txt", b"text")]
        members += [("b.png", _png()), ("b.txt", b"text"), ("c.png", _png()), ("c.json", b'{"alt": "alt"}')]
        for name, data in [*members, ("d.png", _png())]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = ShardSource(tmp_path / "a.tar", caption_weights={"txt": 3.0, "alt": 1.0})
    assert [source.read_captions(index) for index in range(3)] == [["text", "alt"], ["text"], ["alt"]]
    assert source.load(0).caption_weights == [3.0, 1.0]
    with pytest.raises(BadSample, match="no 'txt' or 'alt' among its fields"):
        source.load(3)
