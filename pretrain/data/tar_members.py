"""What lies where in a WebDataset shard, from the tar's headers.

Consecutive members of a tar whose names agree up to the first dot of the last path component form a sample:
`a/0001.jpg`, `a/0001.json`, `a/0001.txt` (https://github.com/webdataset/webdataset, "The WebDataset Format").
"""

import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from pretrain.data.remote import open_shard, store_errors
from pretrain.data.storage import PackedStrings, one_line
from pretrain.types import Fault, UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
#: Columns of the members' table.
IMAGE, JSON, TEXT = 0, 1, 2
_COLUMNS = {**dict.fromkeys(IMAGE_SUFFIXES, IMAGE), "json": JSON, "txt": TEXT}
_BLOCK = tarfile.BLOCKSIZE


@dataclass
class ShardIndex:
    """Places in one shard.

    Attributes:
        members: int64 [samples, (image, json, txt), (start, size)] in bytes; -1 where there is none.
        keys: the samples' names.
        faults: what is wrong with the shard, and samples without a picture.
        headers_crc32: checksum of the tar's headers, in order.
    """

    members: np.ndarray
    keys: PackedStrings
    faults: list[Fault]
    headers_crc32: int


@dataclass
class _Sample:
    key: str
    names: list[str] = field(default_factory=list)
    members: np.ndarray = field(default_factory=lambda: np.full((3, 2), -1, dtype=np.int64))

    def has(self, column: int) -> bool:
        return bool(self.members[column, 0] >= 0)


class _Headers:
    """A shard as `tarfile` reads it: what is read are headers, and their checksum is taken on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.crc32 = file, 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.crc32 = zlib.crc32(data, self.crc32)
        return data

    def seek(self, position: int) -> int:
        if not 0 <= position < 2**62:  # said by a damaged header; the system's answer would look like a failing disk
            raise ValueError(f"a header leads to byte {position}")
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()


def read_members(path: str) -> tuple[list[tarfile.TarInfo], Fault | None, int]:
    """Members of a tar that are whole, what is wrong with the tar, if anything, and the checksum of its headers.

    tarfile stops in silence at a header that is cut or damaged and where the file ends between two members, and does
    not look whether the last member is all there. Hence the comparison with the file's size and the look at the end
    marker.

    Raises:
        UserError: the file cannot be read. That is no fault of the tar's: an index would keep it for good.
    """
    name, members = os.path.basename(path), []
    try:
        with store_errors(path), open_shard(path) as file:
            file_size = file.seek(0, os.SEEK_END)
            file.seek(0)
            headers = _Headers(file)
            try:
                tar = tarfile.open(fileobj=headers, mode="r:")  # noqa: SIM115 (`file` is what has to be closed)
                while (member := tar.next()) is not None:
                    if member.offset_data + member.size > file_size:
                        detail = (
                            f"{member.name} is cut: {member.offset_data + member.size} bytes needed, {file_size} there"
                        )
                        return members, Fault("truncated_tar", name, detail), headers.crc32
                    members.append(member)
                    tar.members.clear()  # it would keep every one a second time
            except (tarfile.TarError, ValueError, OverflowError) as error:
                kind = "corrupt" if not members and file_size >= _BLOCK else "truncated_tar"
                return members, Fault(kind, name, one_line(error)), headers.crc32
            file.seek(tar.offset)
            if file.read(2 * _BLOCK) != bytes(2 * _BLOCK):
                detail = f"no header and no end marker at byte {tar.offset} of {file_size}"
                return members, Fault("truncated_tar", name, detail), headers.crc32
    except OSError as error:
        raise UserError(f"urls: {path!r} cannot be read: {one_line(error)}") from error
    return members, None, headers.crc32


def _group(members: Iterable[tarfile.TarInfo]) -> Iterator[_Sample]:
    sample: _Sample | None = None
    for member in members:
        match = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", member.name, re.DOTALL)
        if not match or not member.isreg() or member.issparse():
            continue
        key, suffix = match.group(1), match.group(2)
        column = _COLUMNS.get(suffix.lower())
        # The same name again is another sample, as where a shard was put together from several.
        if sample is None or key != sample.key or member.name in sample.names:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        sample.names.append(member.name)
        if column is not None and not sample.has(column):
            sample.members[column] = member.offset_data, member.size
    if sample is not None:
        yield sample


def build_index(path: str) -> ShardIndex:
    """Read a shard's headers.

    Raises:
        UserError: the shard cannot be read.
    """
    members, fault, crc32 = read_members(path)
    samples, faults = list(_group(members)), [fault] if fault else []
    if fault and samples and not (samples[-1].has(IMAGE) and (samples[-1].has(JSON) or samples[-1].has(TEXT))):
        samples.pop()  # its captions or picture lay behind the break
    usable = []
    for sample in samples:
        if sample.has(IMAGE):
            usable.append(sample)
        else:
            wanted = f"no .{', .'.join(IMAGE_SUFFIXES)} (the name ends at its first dot)"
            faults.append(
                Fault("no_image", f"{os.path.basename(path)}/{sample.key}", f"{', '.join(sample.names)}: {wanted}")
            )
    table = np.stack([sample.members for sample in usable]) if usable else np.empty((0, 3, 2), dtype=np.int64)
    return ShardIndex(table, PackedStrings(sample.key for sample in usable), faults, crc32)
