"""WebDataset shards, read at random: the headers are read once, members are then read where they lie.

Consecutive members of a tar whose names agree up to the first dot of the last path component form a sample:
`a/0001.jpg`, `a/0001.json`, `a/0001.txt` (https://github.com/webdataset/webdataset, "The WebDataset Format").
"""

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pretrain.data.sources import BadSample, FileSource, RawSample, as_captions, decode_image
from pretrain.data.storage import PackedStrings, RangeReader, one_line
from pretrain.types import Fault, UserError

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
#: Columns of the members' table.
_IMAGE, _JSON, _TEXT = 0, 1, 2
_COLUMNS = {**dict.fromkeys(_IMAGE_SUFFIXES, _IMAGE), "json": _JSON, "txt": _TEXT}
_CAPTION_FIELDS = ("captions", "caption")
_BLOCK = tarfile.BLOCKSIZE


def expand_braces(pattern: str) -> Iterator[str]:
    """`x-{000..012}.tar` and `{a,b}.tar` as a shell expands them: leading zeros are kept, braces side by side multiply.

    Raises:
        UserError: a brace holds neither a range of whole numbers nor a list.
    """
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        yield pattern
        return
    inside = match.group(1)
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = map(int, bounds.groups())
        width = max(map(len, bounds.groups())) if any(len(b) > 1 and b[0] == "0" for b in bounds.groups()) else 0
        step = 1 if last >= first else -1
        choices: Iterable[str] = (f"{number:0{width}d}" for number in range(first, last + step, step))
    elif "," in inside:
        choices = inside.split(",")
    else:
        raise UserError(f"urls: {{{inside}}} in {pattern!r} is neither a range such as {{000..012}} nor a list {{a,b}}")
    for choice in choices:
        yield from expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def find_shards(urls: str | Path | Sequence[str | Path]) -> list[str]:
    """Paths of the shards that a folder, a file, a glob, a brace range or a list of these names, in that order.

    Raises:
        UserError: something named does not exist, nothing matches, or a shard is named twice.
    """
    paths: list[str] = []
    for url in [urls] if isinstance(urls, str | Path) else urls:
        paths += _find(os.path.expanduser(str(url)))
    if not paths:
        raise UserError(
            "urls: no shard is named; give a folder, a glob, a range such as train-{000..012}.tar or a list"
        )
    seen: set[str] = set()
    for path in paths:
        if (real := os.path.realpath(path)) in seen:
            raise UserError(f"urls: the shard {path!r} is named twice; name each shard once")
        seen.add(real)
    return paths


def _find(url: str) -> list[str]:
    if os.path.isdir(url):
        if found := sorted(glob.glob(os.path.join(glob.escape(url), "*.tar"))):
            return found
        raise UserError(f"urls: the folder {url!r} holds no .tar file")
    if os.path.isfile(url):
        return [url]
    if "://" in url or url.startswith("pipe:"):
        raise UserError(f"urls: {url!r} is not on a local disk; shards are read at random: copy or mount them")
    paths: list[str] = []
    for pattern in expand_braces(url):
        if glob.has_magic(pattern):
            if not (found := sorted(glob.glob(pattern, recursive=True))):
                raise UserError(f"urls: {pattern!r} matches no file")
            paths += found
        elif os.path.isfile(pattern):
            paths.append(pattern)
        else:
            raise UserError(
                f"urls: {pattern!r} does not exist; give a folder, a glob, a brace range or a list of shards"
            )
    return paths


@dataclass
class _Sample:
    key: str
    names: list[str] = field(default_factory=list)
    #: start and size in bytes of the picture, .json and .txt; -1 where there is none
    members: np.ndarray = field(default_factory=lambda: np.full((3, 2), -1, dtype=np.int64))

    def has(self, column: int) -> bool:
        return bool(self.members[column, 0] >= 0)


def read_members(path: str) -> tuple[list[tarfile.TarInfo], Fault | None]:
    """Members of a tar that are whole, and what is wrong with the tar, if anything.

    tarfile stops in silence at a header that is cut or damaged and where the file ends between two members, and does
    not look whether the last member is all there. Hence the comparison with the file's size and the look at the end
    marker.

    Raises:
        UserError: the file cannot be opened.
    """
    name, members = os.path.basename(path), []
    try:
        with open(path, "rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            try:
                tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (`file` is what has to be closed)
                while (member := tar.next()) is not None:
                    if member.offset_data + member.size > file_size:
                        detail = (
                            f"{member.name} is cut: {member.offset_data + member.size} bytes needed, {file_size} there"
                        )
                        return members, Fault("truncated_tar", name, detail)
                    members.append(member)
            except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
                kind = "corrupt" if not members and file_size >= _BLOCK else "truncated_tar"
                return members, Fault(kind, name, one_line(error))
            file.seek(tar.offset)
            if file.read(2 * _BLOCK) != bytes(2 * _BLOCK):
                detail = f"no header and no end marker at byte {tar.offset} of {file_size}"
                return members, Fault("truncated_tar", name, detail)
    except OSError as error:
        raise UserError(f"urls: {path!r} cannot be read: {one_line(error)}") from error
    return members, None


def _group(members: list[tarfile.TarInfo]) -> Iterator[_Sample]:
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


def _index_shard(path: str) -> tuple[list[_Sample], list[Fault]]:
    members, fault = read_members(path)
    samples, faults = list(_group(members)), [fault] if fault else []
    if fault and samples and not (samples[-1].has(_IMAGE) and (samples[-1].has(_JSON) or samples[-1].has(_TEXT))):
        samples.pop()  # its captions or picture lay behind the break
    usable = []
    for sample in samples:
        if sample.has(_IMAGE):
            usable.append(sample)
        else:
            wanted = f"no .{', .'.join(_IMAGE_SUFFIXES)} (the name ends at its first dot)"
            faults.append(
                Fault("no_image", f"{os.path.basename(path)}/{sample.key}", f"{', '.join(sample.names)}: {wanted}")
            )
    return usable, faults


class ShardSource(FileSource):
    """Samples of WebDataset shards; keys are WebDataset's.

    Captions come from the `.json`, else from the `.txt` (the whole text is one caption). A `.json` without a caption
    field and no `.txt` beside it is an error of the sample, so that a misspelt field does not train on pictures alone.

    Args:
        urls: a folder (all its .tar files), a .tar file, a glob, a brace range (`train-{000000..000006}.tar`) or a
            list of these.
        caption_field: the caption's field in the `.json`; None: "captions" (list), then "caption" (string).

    Raises:
        UserError: a shard does not exist or is named twice, or no shard holds a picture.
    """

    def __init__(self, urls: str | Path | Sequence[str | Path], *, caption_field: str | None = None) -> None:
        super().__init__()
        self.paths = find_shards(urls)
        self.caption_fields = _CAPTION_FIELDS if caption_field is None else (caption_field,)
        self._reader = RangeReader()
        counts, tables, keys = [], [np.empty((0, 3, 2), dtype=np.int64)], []
        for path in self.paths:
            samples, faults = _index_shard(path)
            self.faults += faults
            counts.append(len(samples))
            keys.append(PackedStrings(sample.key for sample in samples))
            if samples:
                tables.append(np.stack([sample.members for sample in samples]))
        self._members = np.concatenate(tables)  # [samples, (image, json, txt), (start, size)] in bytes
        self._keys = keys
        self._ends = np.cumsum(counts, dtype=np.int64)
        if not len(self):
            first = f" ({self.faults[0].key}: {self.faults[0].detail})" if self.faults else ""
            raise UserError(f"urls: {self.paths[0]!r} and {len(self.paths) - 1} more shards hold no sample{first}")

    def __len__(self) -> int:
        return len(self._members)

    def _locate(self, index: int) -> tuple[str, str]:
        """The shard's path and the sample's key."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[shard - 1]) if shard else 0
        return self.paths[shard], self._keys[shard][index - start]

    def read_member(self, index: int, column: int) -> bytes | None:
        """Bytes of the picture (0), the .json (1) or the .txt (2) of the sample `index`; None where there is none.

        Raises:
            BadSample: "missing" if the shard is gone, "truncated_tar" if it is shorter than when it was indexed.
        """
        start, size = self._members[index, column].tolist()
        if start < 0:
            return None
        path, key = self._locate(index)
        name = f"{os.path.basename(path)}/{key}"
        try:
            data = self._reader.read(path, start, size)
        except OSError as error:
            raise BadSample(Fault("missing", name, one_line(error))) from error
        if len(data) < size:
            raise BadSample(
                Fault("truncated_tar", name, f"{len(data)} of {size} bytes there: the shard was cut meanwhile")
            )
        return data

    def read_captions(self, index: int) -> list[str]:
        path, key = self._locate(index)
        name = f"{os.path.basename(path)}/{key}"
        try:
            record: object = {}
            if (data := self.read_member(index, _JSON)) is not None:
                record = json.loads(data)
                if not isinstance(record, dict):
                    raise ValueError(f"{record!r:.80} is not a JSON object")
                for caption_field in self.caption_fields:
                    if caption_field in record:
                        return as_captions(record[caption_field], name)
            if (text := self.read_member(index, _TEXT)) is not None:
                return as_captions(text.decode("utf-8-sig"), name)
        except ValueError as error:  # not UTF-8 and broken JSON are ValueErrors too
            raise BadSample(Fault("bad_caption", name, one_line(error))) from error
        if data is not None:
            detail = f"no {' or '.join(map(repr, self.caption_fields))} in its .json, which has {', '.join(record)}"
            raise BadSample(Fault("bad_caption", name, detail))
        return []

    def load(self, index: int) -> RawSample:
        path, key = self._locate(index)
        captions = self.read_captions(index)
        data = self.read_member(index, _IMAGE)
        assert data is not None, "samples without a picture are left out of the index"
        return RawSample(decode_image(data, f"{os.path.basename(path)}/{key}"), captions, key)
