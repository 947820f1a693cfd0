"""Shards by URL (s3://, gs://, https://, ... through fsspec): indexed where they lie, read from a bounded folder of copies."""

import glob
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.core import url_to_fs

from pretrain.data.storage import one_line
from pretrain.types import UserError

#: Bytes that are asked for at once while headers are read.
_BLOCK_BYTES = 2**20
#: What stores call the mark of a file's content, best first: ETags, then times.
_MARKS = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "created")
#: Age in seconds at which a half fetched copy belongs to nobody any more.
_ABANDONED_S = 24 * 3600


@dataclass(frozen=True)
class Stamp:
    """What an index was made of: a shard with another size or time is read again.

    Attributes:
        size: bytes.
        version: time of the last change in nanoseconds, or the store's own mark (an ETag); "" for an index beside its
            shard, which may have been copied with it.
    """

    size: int
    version: str


def is_remote(path: str) -> bool:
    return "://" in path


@contextmanager
def store_errors(path: str) -> Iterator[None]:
    """Whatever a remote store's package raises comes out as OSError, as for a local file."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # each of these packages has errors of its own (aiohttp's are no OSErrors)
        if not is_remote(path):
            raise
        raise OSError(one_line(error)) from error


def open_shard(path: str) -> BinaryIO:
    """A shard, local or remote, as a file that can be searched. Raises OSError."""
    if not is_remote(path):
        return open(path, "rb")
    with store_errors(path):
        return fsspec.open(path, "rb", cache_type="readahead", block_size=_BLOCK_BYTES).open()


def shard_stamp(path: str) -> Stamp:
    """Size in bytes, and what changes when the content does: the time of the last change, or the store's own mark.

    Raises OSError.
    """
    if not is_remote(path):
        stat = os.stat(path)
        return Stamp(stat.st_size, str(stat.st_mtime_ns))
    with store_errors(path):
        system, name = url_to_fs(path)
        info = system.info(name)
    mark = next((info[field] for field in _MARKS if info.get(field)), "")
    return Stamp(int(info["size"] or 0), str(mark))


def has_magic(url: str) -> bool:
    """Whether a remote URL is a glob. The question mark of a web address starts its query (signed URLs have one)."""
    return glob.has_magic(url.replace("?", "") if url.startswith("http") else url)


def glob_remote(pattern: str) -> list[str]:
    """URLs that a glob on a remote store matches, sorted. Raises OSError."""
    with store_errors(pattern):
        system, name = url_to_fs(pattern)
        return sorted(system.unstrip_protocol(found) for found in system.glob(name))


def check_protocol(url: str) -> None:
    """Raise UserError where fsspec does not know the URL's protocol, or needs a package that is not installed for it."""
    try:
        url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"urls: {url!r} cannot be opened ({one_line(error)})") from error


class ShardCopies:
    """Local copies of remote shards, fetched whole when first read; the least recently used go when the folder is full.

    Several processes may share a folder: a copy is written beside its place and moved there. A shard that changes in its
    store is another copy.

    Args:
        folder: where they lie.
        max_gib: bound of the folder's size in GiB, beyond which copies are removed.
    """

    def __init__(self, folder: str | Path, *, max_gib: float) -> None:
        self.folder, self.max_bytes = Path(folder), int(max_gib * 2**30)
        self._fetching: dict[Path, threading.Thread] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_fetching": {}}  # threads stay in their process

    def _place(self, url: str, stamp: Stamp) -> Path:
        name = f"{url} {stamp.size} {stamp.version}"
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.tar"

    def local(self, url: str, stamp: Stamp) -> str:
        """Path of the copy, fetched if it is not there.

        Args:
            url: the shard's.
            stamp: the shard's when it was indexed.

        Raises:
            OSError: it cannot be fetched, or is another one by now.
        """
        place = self._place(url, stamp)
        thread = self._fetching.pop(place, None)
        if thread is not None:
            thread.join()
        try:
            os.utime(place)  # used just now: the last to go
        except FileNotFoundError:
            self._fetch(url, stamp)
        except PermissionError:  # another user's copy can be read, if not marked
            pass
        return str(place)

    def prefetch(self, url: str, stamp: Stamp) -> None:
        """Start to fetch a copy that is going to be read."""
        place = self._place(url, stamp)
        if place in self._fetching or place.exists():
            return

        def fetch() -> None:
            with suppress(OSError):  # whoever reads it tries again, and reports
                self._fetch(url, stamp)

        self._fetching[place] = thread = threading.Thread(target=fetch, daemon=True)
        thread.start()

    def _fetch(self, url: str, stamp: Stamp) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self._place(url, stamp)
        beside = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            with store_errors(url):
                system, name = url_to_fs(url)
                system.get_file(name, str(beside))
            size = beside.stat().st_size
            if stamp.size and size != stamp.size:
                raise OSError(f"{size} bytes came, {stamp.size} were there when it was indexed")
            os.replace(beside, place)
        finally:
            beside.unlink(missing_ok=True)
        self._make_room(place)

    def _make_room(self, newest: Path) -> None:
        copies, now = [], time.time()
        for path in [*self.folder.glob("*.tar"), *self.folder.glob(".*.tmp")]:
            with suppress(OSError):  # another process removed it
                stat = path.stat()
                if path.suffix == ".tar":
                    copies.append((stat.st_mtime, stat.st_size, path))
                elif now - stat.st_mtime > _ABANDONED_S:
                    path.unlink()
        total = sum(size for _, size, _ in copies)
        for used, size, path in sorted(copies):
            # one that is being read now stays, however small the bound is
            if total <= self.max_bytes or path == newest or now - used < 1:
                continue
            path.unlink(missing_ok=True)
            total -= size
