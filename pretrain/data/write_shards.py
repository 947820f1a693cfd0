"""Any source as WebDataset shards: pictures as they are encoded, captions beside them, an index beside each shard.

A folder of shards is finished shard by shard. `shards.json` beside them says what they are made of and which part of the
source each holds, so that an interrupted run goes on behind its last finished shard and writes the same bytes as an
unbroken one.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from pretrain.data.examine import Examined, counted, examine
from pretrain.data.faults import FaultLog
from pretrain.data.samples import RawSample, Source, StoredSample
from pretrain.data.shard_index import rebuild_index
from pretrain.data.shard_state import Shard, State, load_state, note_removed, trim_removed
from pretrain.data.shards import TXT_FIELD
from pretrain.files import atomic_file
from pretrain.types import UserError

#: Where a picture is told by its first bytes; what is none of these is written as PNG.
_MAGIC = ((0, b"\xff\xd8\xff", "jpg"), (0, b"\x89PNG\r\n\x1a\n", "png"), (8, b"WEBP", "webp"))

#: What is to be said in `removed.jsonl` of a picture that is left out; None for one that stays. Called in threads.
Drop = Callable[[RawSample], dict[str, object] | None]


@dataclass(frozen=True)
class _Ready:
    """A picture that decodes, as it is going to be written; `dropped` says why it is not."""

    data: bytes
    suffix: str
    dropped: dict[str, object] | None


def _prepare(stored: StoredSample, drop: Drop | None) -> _Ready:
    raw = stored.decode()
    dropped = drop(raw) if drop else None
    for start, magic, suffix in _MAGIC:
        if stored.data[start : start + len(magic)] == magic:
            return _Ready(stored.data, suffix, dropped)
    file = io.BytesIO()
    raw.image.save(file, "PNG")
    return _Ready(file.getvalue(), "png", dropped)


def _texts(stored: StoredSample, *, key: str) -> tuple[bytes, str | None]:
    """The `.json` of a sample, and its `.txt`: the first caption."""
    captions = stored.captions
    kinds = captions.kinds or {}
    record = {**stored.record, "captions": captions.texts, **kinds}
    if TXT_FIELD in kinds:  # it has a file of its own
        del record[TXT_FIELD]
    if key != stored.key:
        record["key"] = stored.key
    if stored.label is not None:
        record["label"] = stored.label
    first = kinds.get(TXT_FIELD, captions.texts)[:1]  # where the .txt is a kind of its own, no other goes there
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass"), first[0] if first else None


def _members(stored: StoredSample, ready: _Ready, *, key: str) -> list[tuple[str, bytes]]:
    record, text = _texts(stored, key=key)
    members = [(f"{key}.{ready.suffix}", ready.data), (f"{key}.json", record)]
    return members if text is None else [*members, (f"{key}.txt", text.encode("utf-8", "replace"))]


def _tar_bytes(members: Iterable[tuple[str, bytes]]) -> int:
    """Bytes that the members take in a tar, at most: contents and headers in blocks, and headers for long names."""
    block, total = tarfile.BLOCKSIZE, 0
    for name, data in members:
        plain = name.isascii() and len(name) <= 100
        total += block * (1 + -(-len(data) // block)) + (0 if plain else 4 * block)
    return total


def _add(tar: tarfile.TarFile, members: Iterable[tuple[str, bytes]]) -> None:
    for name, data in members:
        info = tarfile.TarInfo(name)  # time and owner are constants: the same samples give the same bytes
        info.size, info.mode = len(data), 0o644
        tar.addfile(info, io.BytesIO(data))


class ShardWriter:
    """Writes a source to `out` as shards.

    Args:
        source: where the samples come from.
        out: the folder.
        made_from: names the source, in plain values.
        per_shard: most samples of a shard.
        max_bytes: most bytes of a shard; one sample that alone is larger has a shard of its own.
        prefix: the shards are PREFIX-000000.tar and so on.
        max_fault_share: see :class:`FaultLog`.
        drop: which pictures are left out, and noted in `removed.jsonl`.

    Raises:
        UserError: `out` holds other things, or a run of another source or other sizes.
    """

    def __init__(
        self,
        source: Source,
        out: Path,
        *,
        made_from: dict[str, Any],
        per_shard: int = 1000,
        max_bytes: int | None = None,
        prefix: str = "train",
        max_fault_share: float = 0.05,
        drop: Drop | None = None,
    ) -> None:
        if per_shard < 1:
            raise UserError(f"--per-shard {per_shard} must be at least 1")
        if max_bytes is not None and max_bytes < 1:
            raise UserError(f"--max-bytes {max_bytes} must be at least 1")
        if not prefix or not prefix.replace("_", "").replace("-", "").isalnum():
            raise UserError(f"--prefix {prefix!r}: give letters, digits, - and _")
        self.source, self.out, self.prefix, self.drop = source, out, prefix, drop
        self.per_shard, self.max_bytes = per_shard, max_bytes
        sizes = {"per_shard": per_shard, "max_bytes": max_bytes, "prefix": prefix}
        self.state = load_state(out, {**made_from, **sizes})
        self.log = FaultLog(max_fault_share, field="--max-fault-share")
        if self.state.faults is not None:
            self.log.load_state_dict(self.state.faults)
        self.log.record(0, source.faults)
        self.num_kept = len(self.state.shards)
        self._last_key = ""

    def run(self, progress: Progress, *, description: str = "writing shards") -> State:
        """Write what is not there yet; an interrupted run leaves whole shards only."""
        total, shards = len(self.source), self.state.shards
        task = progress.add_task(description, total=total)
        self.out.mkdir(parents=True, exist_ok=True)
        for left in self.out.glob(f".{self.prefix}-*.tmp"):  # by a run that was killed
            left.unlink()
        trim_removed(self.out, end=shards[-1].end if shards else 0)
        self._restore(progress, task)
        first = shards[-1].end if shards else 0
        items = self._watched(self._examine(first, total), progress, task)
        for number, group in groupby(self._dealt(items, len(shards)), key=lambda dealt: dealt[0]):
            shard, dropped = self._write(number, counted((item for _, item in group), self.log))
            if dropped:
                note_removed(self.out, dropped)
            shards.append(shard)
            self.state.faults = self.log.state_dict()
            self.state.save(self.out)
        self.state.complete = True
        self.state.save(self.out)
        return self.state

    def _restore(self, progress: Progress, task: TaskID) -> None:
        """Write finished shards again whose files are gone."""
        for number, shard in enumerate(self.state.shards):
            path = self.out / shard.name
            if shard.name and not (path.exists() and path.stat().st_size == shard.bytes):
                again, _ = self._write(number, self._examine(shard.first, shard.end))
                if again != shard:
                    raise UserError(f"{str(path)!r} is gone, and its source has changed since: give a new folder")
            progress.update(task, completed=shard.end)

    def _examine(self, first: int, end: int) -> Iterator[Examined[_Ready]]:
        return examine(self.source, lambda stored: _prepare(stored, self.drop), first=first, end=end)

    def _watched(
        self, items: Iterable[Examined[_Ready]], progress: Progress, task: TaskID
    ) -> Iterator[Examined[_Ready]]:
        for item in items:
            progress.update(task, completed=item.index + 1)
            yield item

    def _key(self, item: Examined[_Ready]) -> str:
        if not self.source.keys_fit_tar:
            return f"{item.index:09d}"
        # two samples of one name, side by side, would be read as one
        return item.stored.key if item.stored.key != self._last_key else f"{item.stored.key}_{item.index:09d}"

    def _dealt(self, items: Iterable[Examined[_Ready]], number: int) -> Iterator[tuple[int, Examined[_Ready]]]:
        """Each sample with the number of its shard; a shard begins with one that is written."""
        samples, size = 0, 2 * tarfile.RECORDSIZE  # the end marker, and what the last record is filled with
        for item in items:
            if item.fault is None and item.result.dropped is None:
                more = _tar_bytes(_members(item.stored, item.result, key=self._key(item)))
                full = self.max_bytes is not None and size + more > self.max_bytes
                if samples and (samples == self.per_shard or full):
                    number, samples, size = number + 1, 0, 2 * tarfile.RECORDSIZE
                samples, size = samples + 1, size + more
            yield number, item

    def _fill(self, tar: tarfile.TarFile, items: Iterable[Examined[_Ready]]) -> tuple[int, list[dict[str, object]]]:
        """Write what can be used; returns how many samples that is, and the rows of those that are dropped."""
        samples, dropped, self._last_key = 0, [], ""
        for item in items:
            if item.fault is not None:
                continue
            if item.result.dropped is not None:
                dropped.append({"index": item.index, "key": item.stored.key, **item.result.dropped})
                continue
            _add(tar, _members(item.stored, item.result, key=self._key(item)))
            self._last_key, samples = item.stored.key, samples + 1
        return samples, dropped

    def _write(self, number: int, items: Iterable[Examined[_Ready]]) -> tuple[Shard, list[dict[str, object]]]:
        """Shard `number`, and the rows of what was left out."""
        path = self.out / f"{self.prefix}-{number:06d}.tar"
        first, end = None, 0

        def seen() -> Iterator[Examined[_Ready]]:
            nonlocal first, end
            for item in items:
                first, end = item.index if first is None else first, item.index + 1
                yield item

        with atomic_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            samples, dropped = self._fill(tar, seen())
        if not samples:
            path.unlink()
            return Shard("", first, end, 0, len(dropped), 0), dropped
        summary = rebuild_index(str(path), beside=True)
        assert summary.count == samples, f"{path}: {summary.count} of {samples} samples can be read back"
        return Shard(path.name, first, end, samples, len(dropped), path.stat().st_size), dropped
