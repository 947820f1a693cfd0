import http.server
import io
import os
import re
import shutil
import tarfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pretrain.data import remote, shard_index
from pretrain.data.find_files import find_shards
from pretrain.data.parquet import ParquetSource
from pretrain.data.remote import ShardCopies, shard_stamp
from pretrain.data.shards import ShardSource
from pretrain.data.storage import BadSample
from pretrain.types import UserError


def _png(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write(path, count=3, first=0):
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            for suffix, data in (("png", _png(number)), ("txt", f"picture {number}".encode())):
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files with ranges, which Python's own handler has not; `server.broken` says what goes wrong with a path."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.requests.append((path, self.headers.get("Range")))
        how = self.server.broken.get(path)
        if how == "error":
            self.send_error(500)
            return
        file = Path(self.translate_path(path))
        if not file.is_file():
            super().do_GET()
            return
        data = file.read_bytes()
        start, end = 0, len(data)
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(len(data), int(match[2]) + 1 if match[2] else len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.send_header("Last-Modified", self.date_time_string(file.stat().st_mtime))
        self.end_headers()
        if how == "cut":
            end = start + (end - start) // 2
            self.close_connection = True
        with suppress(BrokenPipeError, ConnectionResetError):  # a reader that has enough
            self.wfile.write(data[start:end])


@pytest.fixture
def server(tmp_path):
    """A folder of shards behind http://127.0.0.1:PORT."""
    folder = tmp_path / "served"
    folder.mkdir()
    for shard in range(3):
        _write(folder / f"a-{shard}.tar", first=3 * shard)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    server.requests, server.broken = [], {}
    server.folder, server.url = folder, f"http://127.0.0.1:{server.server_port}"
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(params=["http", "memory", "file"])
def store(request, tmp_path):
    """URL of a folder that holds a-0.tar, a-1.tar and a-2.tar."""
    if request.param == "http":
        yield request.getfixturevalue("server").url
        return
    folder = tmp_path / "stored"
    folder.mkdir()
    for shard in range(3):
        _write(folder / f"a-{shard}.tar", first=3 * shard)
    if request.param == "file":
        yield f"file://{folder}"
        return
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), f"/{tmp_path.name}", recursive=True)
    yield f"memory://{tmp_path.name}"
    memory.rm(f"/{tmp_path.name}", recursive=True)


def _keys(source):
    return [source.load(index).key for index in range(len(source))]


def _fault(function, *arguments):
    with pytest.raises(BadSample) as error:
        function(*arguments)
    return error.value.fault


def _copies(folder):
    return sorted(path.name for path in Path(folder).glob("*"))


# reading


@pytest.mark.parametrize("name", ["a-{0..2}.tar", "a-*.tar"])
def test_shards_by_url(store, name, tmp_path):
    source = ShardSource(f"{store}/{name}", index_cache=tmp_path / "cache")
    assert source.faults == []
    assert _keys(source) == [f"{number:04d}" for number in range(9)]
    for index in (0, 4, 8):
        sample = source.load(index)
        assert sample.captions == [f"picture {index}"]
        assert np.array_equal(np.asarray(sample.image), np.asarray(Image.open(io.BytesIO(_png(index)))))
    assert len(_copies(tmp_path / "cache/copies")) == 3


def test_ways_to_name_them(store):
    def names(urls):
        return [path.rsplit("/", 1)[1] for path in find_shards(urls)]

    assert names(f"{store}/a-1.tar") == ["a-1.tar"]
    assert names([f"{store}/a-{{1,0}}.tar", f"{store}/a-2.tar"]) == ["a-1.tar", "a-0.tar", "a-2.tar"]
    for urls in ([f"{store}/a-0.tar", f"{store}/a-0.tar"], [f"{store}/a-0.tar", f"{store}/a-{{0..1}}.tar"]):
        with pytest.raises(UserError, match=r"a-0.tar' is named twice"):
            find_shards(urls)
    with pytest.raises(UserError, match=r"b-\*.tar' matches no file"):
        find_shards(f"{store}/b-*.tar")


def test_shard_that_is_not_there(store):
    with pytest.raises(UserError, match=r"none.tar' cannot be read") as error:
        ShardSource(f"{store}/none.tar")
    assert "\n" not in str(error.value)


def test_query_of_a_web_address_is_no_glob(server):
    source = ShardSource(f"{server.url}/a-1.tar?signature=abc")
    assert _keys(source) == ["0003", "0004", "0005"]


def test_parquet_by_url(server):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"image": _png(number), "caption": f"picture {number}"} for number in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), server.folder / "a.parquet", row_group_size=2)
    source = ParquetSource(f"{server.url}/a.parquet")
    assert [source.load(index).captions for index in range(5)] == [[f"picture {number}"] for number in range(5)]
    server.broken["/a.parquet"] = "error"
    with pytest.raises(UserError, match=r"a.parquet' cannot be read as parquet \(.*500"):
        ParquetSource(f"{server.url}/a.parquet")


class _Loaded(Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source.load(index).key


def test_forked_workers_fetch(server, tmp_path):
    source = ShardSource(f"{server.url}/a-*.tar", index_cache=tmp_path / "cache")
    source.load(0)
    loader = DataLoader(_Loaded(source), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert list(loader) == [f"{number:04d}" for number in range(9)]


# indexing


def test_headers_are_read_by_ranges_and_only_once(server, tmp_path, monkeypatch):
    path = server.folder / "big.tar"
    with tarfile.open(path, "w") as tar:
        for name, size in (("a.png", 6 * 2**20), ("b.png", 100)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    ShardSource(f"{server.url}/big.tar", index_cache=tmp_path / "cache")
    read = 0
    for name, bounds in server.requests:
        if name == "/big.tar" and bounds:
            first, last = map(int, re.findall(r"\d+", bounds))
            read += last + 1 - first
    assert 0 < read < 5 * 2**20  # not the picture of 6 MiB
    monkeypatch.setattr(shard_index, "build_index", lambda path: pytest.fail("indexed again"))
    assert len(ShardSource(f"{server.url}/big.tar", index_cache=tmp_path / "cache")) == 2


def test_changed_shard_is_indexed_and_fetched_again(server, tmp_path):
    url, path = f"{server.url}/a-0.tar", server.folder / "a-0.tar"
    old = ShardSource(url, index_cache=tmp_path)
    assert old.load(0).key == "0000"
    size = path.stat().st_size
    _write(path, first=40)
    assert path.stat().st_size == size
    os.utime(path, (10**9, 10**9))
    source = ShardSource(url, index_cache=tmp_path)
    assert [source.load(index).captions for index in range(3)] == [[f"picture {number}"] for number in (40, 41, 42)]
    assert old.load(1).captions == ["picture 1"]  # its own copy


def test_server_that_fails_while_headers_are_read(server, tmp_path):
    server.broken["/a-1.tar"] = "error"
    with pytest.raises(UserError, match=r"a-1.tar' cannot be read: .*500"):
        ShardSource(f"{server.url}/a-1.tar", index_cache=tmp_path)
    server.broken.clear()
    assert len(ShardSource(f"{server.url}/a-1.tar", index_cache=tmp_path)) == 3


def test_mark_of_a_shard(server):
    first = shard_stamp(f"{server.url}/a-0.tar")
    assert first.size == (server.folder / "a-0.tar").stat().st_size
    assert first.version
    os.utime(server.folder / "a-0.tar", (10**9, 10**9))
    assert shard_stamp(f"{server.url}/a-0.tar").version != first.version


# copies


@pytest.fixture
def copies(server, tmp_path):
    """A folder with room for two of the three shards, and the shards' URLs and stamps."""
    size = (server.folder / "a-0.tar").stat().st_size
    folder = ShardCopies(tmp_path / "copies", max_gib=2.5 * size / 2**30)
    urls = [f"{server.url}/a-{number}.tar" for number in range(3)]
    return folder, [(url, shard_stamp(url)) for url in urls]


def _fetched(server):
    return [name for name, bounds in server.requests if bounds is None]


def test_least_recently_used_copy_goes_and_is_fetched_again(server, copies):
    folder, shards = copies
    places = []
    for number in (0, 1):
        places.append(folder.local(*shards[number]))
    for age, place in zip((100, 200), places):  # 1 was used before 0
        os.utime(place, (time.time() - age,) * 2)
    folder.local(*shards[2])
    assert [os.path.exists(place) for place in places] == [True, False]
    server.requests.clear()
    assert Path(folder.local(*shards[0])).read_bytes() == (server.folder / "a-0.tar").read_bytes()
    assert _fetched(server) == []
    os.utime(places[0], (time.time() - 100,) * 2)
    assert Path(folder.local(*shards[1])).read_bytes() == (server.folder / "a-1.tar").read_bytes()
    assert _fetched(server) == ["/a-1.tar"]
    assert not os.path.exists(places[0])


def test_copy_that_was_used_just_now_stays(copies):
    folder, shards = copies
    folder.max_bytes = 0
    places = [folder.local(*shard) for shard in shards]
    assert all(map(os.path.exists, places))


def test_source_reads_on_while_copies_come_and_go(server, copies, tmp_path):
    folder, _ = copies
    source = ShardSource(f"{server.url}/a-*.tar", index_cache=tmp_path / "cache", copies=folder)
    for index in np.random.default_rng(0).integers(0, 9, 40).tolist():
        for path in folder.folder.glob("*.tar"):
            os.utime(path, (time.time() - 100,) * 2)
        assert source.load(index).captions == [f"picture {index}"]
        assert len(list(folder.folder.glob("*.tar"))) <= 2


@pytest.mark.parametrize("how", ["error", "cut", "gone", "changed"])
def test_download_that_fails(server, tmp_path, how):
    source = ShardSource(f"{server.url}/a-*.tar", index_cache=tmp_path)
    path = server.folder / "a-1.tar"
    kept = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "changed":
        _write(path, count=30)
    else:
        server.broken["/a-1.tar"] = how
    fault = _fault(source.load, 4)
    assert (fault.kind, fault.key) == ("missing", "a-1.tar/0004")
    assert fault.detail
    assert "\n" not in fault.detail
    assert source.load(0).key == "0000"
    assert len(_copies(tmp_path / "copies")) == 1  # of shard 0; no half file of shard 1
    path.write_bytes(kept)
    server.broken.clear()
    assert source.load(4).key == "0004"


def test_prefetched_copy_is_there(server, copies):
    folder, shards = copies
    folder.prefetch(*shards[0])
    folder.prefetch(*shards[0])  # asked for twice, fetched once
    place = folder.local(*shards[0])
    assert Path(place).read_bytes() == (server.folder / "a-0.tar").read_bytes()
    folder.prefetch(*shards[0])
    assert _fetched(server) == ["/a-0.tar"]
    server.broken["/a-1.tar"] = "error"
    folder.prefetch(*shards[1])
    with pytest.raises(OSError, match="500"):
        folder.local(*shards[1])


def test_source_prefetches_only_remote_shards(server, tmp_path):
    assert not ShardSource(server.folder).prefetches
    source = ShardSource(f"{server.url}/a-*.tar", index_cache=tmp_path)
    assert source.prefetches
    server.requests.clear()
    source.prefetch(8)
    source.load(6)
    assert _fetched(server) == ["/a-2.tar"]


def test_half_files_of_killed_processes_go_after_a_day(copies):
    folder, shards = copies
    folder.folder.mkdir()
    old, new = folder.folder / ".x.tar.1.1.tmp", folder.folder / ".y.tar.1.1.tmp"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 2 * remote._ABANDONED_S,) * 2)
    folder.local(*shards[0])
    assert not old.exists()
    assert new.exists()


def test_folder_of_copies_that_cannot_be_written(server, tmp_path):
    source = ShardSource(f"{server.url}/a-0.tar", index_cache=tmp_path)
    shutil.rmtree(tmp_path / "copies", ignore_errors=True)
    (tmp_path / "copies").write_text("in the way")
    assert _fault(source.load, 0).kind == "missing"
