"""Indices of WebDataset shards: read once from the tars' headers, kept in files, loaded when they are needed.

An index holds the place of each sample's picture, `.json` and `.txt`, the samples' names, what was wrong with the tar, its
size and time, and a checksum of its headers. It is looked for beside the shard (`x.tar.index`), then in a cache folder.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from pretrain.data.remote import Stamp, is_remote, shard_stamp
from pretrain.data.storage import PackedStrings, one_line
from pretrain.data.tar_members import ShardIndex, build_index, read_members
from pretrain.files import atomic_file
from pretrain.types import Fault, UserError

_VERSION = 1
#: Shards that are read at a time; more of them hide the latency of a network, not of Python.
THREADS = 8


@dataclass(frozen=True)
class ShardSummary:
    """What a run needs to know of a shard before it reads from it.

    Attributes:
        index_path: the file of its index.
        count: samples.
        faults: what is wrong with it.
        stamp: its size and version when it was last looked at.
        built: whether the index was made just now.
    """

    index_path: str
    count: int
    faults: list[Fault]
    stamp: Stamp
    built: bool = False


def save_index(index: ShardIndex, path: str | Path, stamp: Stamp) -> None:
    """Write an index, whole or not at all. It is a zip file, which carries a checksum of each of its parts."""
    about = {
        "version": _VERSION,
        "stamp": asdict(stamp),
        "count": len(index.members),
        "headers_crc32": index.headers_crc32,
        "faults": [asdict(fault) for fault in index.faults],
    }
    ends, blob = index.keys.parts()
    with atomic_file(path) as file:
        np.savez(
            file,
            about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
            members=index.members,
            key_ends=ends,
            keys=np.frombuffer(blob, dtype=np.uint8),
        )


_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


def _read_about(path: str | Path) -> dict[str, Any] | None:
    """The head of an index file; None where there is none, or one that is damaged or of another version."""
    try:
        with np.load(path) as file:
            about = json.loads(file["about"].tobytes())
        return about if about["version"] == _VERSION else None
    except _DAMAGED:
        return None


def load_index(path: str | Path) -> ShardIndex | None:
    """The index in `path`; None where it is gone or damaged."""
    try:
        with np.load(path) as file:
            about = json.loads(file["about"].tobytes())
            keys = PackedStrings.from_parts(file["key_ends"], file["keys"].tobytes())
            faults = [Fault(**fault) for fault in about["faults"]]
            return ShardIndex(file["members"], keys, faults, about["headers_crc32"])
    except _DAMAGED:
        return None


def beside_path(path: str) -> str:
    return f"{path}.index"


def default_cache() -> Path:
    """Folder of the indices of shards that have none beside them."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "aimv2_suite" / "shards"


def _cache_path(path: str, cache: Path) -> Path:
    real = path if is_remote(path) else os.path.realpath(path)
    digest = hashlib.sha256(real.encode("utf-8", "surrogateescape")).hexdigest()[:20]
    return cache / f"{Path(path).stem[:60]}-{digest}.index"


def stamp_of(path: str) -> Stamp:
    """Size and version of a shard as it is now. Raises UserError where it cannot be found."""
    try:
        return shard_stamp(path)
    except OSError as error:
        raise UserError(f"urls: {path!r} cannot be read: {one_line(error)}") from error


def _candidates(path: str, stamp: Stamp, cache: Path) -> Iterator[tuple[str, Stamp]]:
    """Where an index may lie, and what it has to be made of."""
    if not is_remote(path):
        beside = beside_path(path)
        try:
            # a shard that was written after the index beside it is another one, even where it is as long
            if os.stat(beside).st_mtime_ns >= int(stamp.version):
                yield beside, Stamp(stamp.size, "")
        except OSError:
            pass  # there is none
    yield str(_cache_path(path, cache)), stamp


def find_index(path: str, *, cache: Path | None = None) -> ShardSummary | None:
    """The summary of the index that a shard has, beside it or in the cache; None where none fits."""
    stamp = stamp_of(path)
    for place, wanted in _candidates(path, stamp, cache or default_cache()):
        about = _read_about(place)
        if about is not None and Stamp(**about["stamp"]) == wanted:
            return ShardSummary(place, about["count"], [Fault(**fault) for fault in about["faults"]], stamp)
    return None


def index_shard(path: str, *, cache: Path | None = None, beside: bool = False) -> ShardSummary:
    """The summary of a shard's index, which is made first where there is none that fits.

    Args:
        path: a local path or a URL.
        cache: folder for indices; :func:`default_cache` where not given.
        beside: write `x.tar.index` beside the shard instead.

    Raises:
        UserError: the shard cannot be read, or its index cannot be written.
    """
    found = find_index(path, cache=cache)
    if found is not None and not (beside and found.index_path != beside_path(path)):
        return found
    return rebuild_index(path, cache=cache, beside=beside)


def rebuild_index(path: str, *, cache: Path | None = None, beside: bool = False) -> ShardSummary:
    """:func:`index_shard` whether there is an index or not."""
    if beside and is_remote(path):
        raise UserError(f"--beside: {path!r} is remote, nothing can be written beside it; leave --beside out")
    stamp = stamp_of(path)  # before its headers are read: one that changes meanwhile is read again next time
    index = build_index(path)
    place = beside_path(path) if beside else str(_cache_path(path, cache or default_cache()))
    try:
        save_index(index, place, Stamp(stamp.size, "") if beside else stamp)
    except OSError as error:
        wanted = "leave --beside out" if beside else "name a folder that can be (data.index_cache, --cache)"
        raise UserError(
            f"the index of {path!r} cannot be written to {place!r} ({one_line(error)}); {wanted}"
        ) from error
    return ShardSummary(place, len(index.members), index.faults, stamp, built=True)


def renew_index(path: str, summary: ShardSummary) -> ShardSummary:
    """Make the index of a shard again, where it was."""
    is_beside = summary.index_path == beside_path(path)
    return rebuild_index(path, cache=None if is_beside else Path(summary.index_path).parent, beside=is_beside)


def verify_index(path: str, summary: ShardSummary) -> bool:
    """Whether the headers of a shard are those that its index was made of; reads them all."""
    index = load_index(summary.index_path)
    return index is not None and read_members(path)[2] == index.headers_crc32


def iter_indices(paths: Sequence[str], *, cache: Path | None = None, beside: bool = False) -> Iterator[ShardSummary]:
    """:func:`index_shard` of each, several at a time, in order."""

    def one(path: str) -> ShardSummary:
        return index_shard(path, cache=cache, beside=beside)

    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(one, paths)


def index_shards(paths: Sequence[str], *, cache: Path | None = None) -> list[ShardSummary]:
    """:func:`iter_indices`, with a progress bar where it takes a while."""
    summaries = iter_indices(paths, cache=cache)
    quiet = len(paths) < 50
    return list(track(summaries, description="indexing shards", total=len(paths), transient=True, disable=quiet))
