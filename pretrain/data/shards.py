"""WebDataset shards, local or by URL, read at random: `shard_index.py` says where each sample lies."""

import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pretrain.data.find_files import find_shards
from pretrain.data.remote import ShardCopies, is_remote
from pretrain.data.samples import Captions, FileSource, StoredSample, as_captions, weighted_captions
from pretrain.data.shard_index import ShardSummary, default_cache, index_shards, load_index, renew_index
from pretrain.data.storage import BadSample, RangeReader, one_line
from pretrain.data.tar_members import IMAGE, JSON, TEXT, ShardIndex
from pretrain.types import Fault, UserError

_CAPTION_FIELDS = ("captions", "caption")
#: The .txt member, where the weights of caption kinds name it.
TXT_FIELD = "txt"
#: Samples whose places are kept in memory, at some 70 bytes each: the shards that a worker's lanes stand in, however
#: small they are, so that none is loaded again for every batch.
_MAX_INDEXED = 2**20


class ShardSource(FileSource):
    """Samples of WebDataset shards; keys are WebDataset's.

    Captions come from the `.json`, else from the `.txt` (the whole text is one caption). A `.json` without a caption
    field and no `.txt` beside it is an error of the sample, so that a misspelt field does not train on pictures alone.

    Args:
        urls: a folder (all its .tar files), a .tar file, a glob, a brace range (`train-{000000..000006}.tar`), a URL that
            fsspec can open (s3://, gs://, https://, ...; globs and brace ranges too) or a list of these.
        caption_field: the caption's field in the `.json`; None: "captions" (list), then "caption" (string).
        caption_weights: several kinds of caption: field of the `.json` -> how often a caption of this kind is chosen; "txt"
            is the `.txt`.
        index_cache: folder of the shards' indices; :func:`default_cache` where not given.
        copies: where shards by URL are copied to; a folder of 64 GiB beside the indices where not given.

    Raises:
        UserError: a shard does not exist or is named twice, or no shard holds a picture.
    """

    keys_fit_tar = True

    def __init__(
        self,
        urls: str | Path | Sequence[str | Path],
        *,
        caption_field: str | None = None,
        caption_weights: Mapping[str, float] | None = None,
        index_cache: Path | None = None,
        copies: ShardCopies | None = None,
    ) -> None:
        super().__init__()
        self.paths = find_shards(urls)
        self.caption_fields = _CAPTION_FIELDS if caption_field is None else (caption_field,)
        self.caption_weights = caption_weights
        self._copies = copies or ShardCopies((index_cache or default_cache()) / "copies", max_gib=64)
        self._reader = RangeReader()
        self._summaries: list[ShardSummary] = index_shards(self.paths, cache=index_cache)
        self._loaded: OrderedDict[int, ShardIndex] = OrderedDict()
        self._num_indexed = 0
        self.shard_counts = [summary.count for summary in self._summaries]
        self.prefetches = any(map(is_remote, self.paths))
        self.faults = [fault for summary in self._summaries for fault in summary.faults]
        self._ends = np.cumsum(self.shard_counts, dtype=np.int64)
        if not len(self):
            first = f" ({self.faults[0].key}: {self.faults[0].detail})" if self.faults else ""
            raise UserError(f"urls: {self.paths[0]!r} and {len(self.paths) - 1} more shards hold no sample{first}")

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_loaded": OrderedDict(), "_num_indexed": 0}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def identity(self) -> str:
        return repr([(os.path.basename(path), count) for path, count in zip(self.paths, self.shard_counts)])

    def _index(self, shard: int) -> ShardIndex:
        index = self._loaded.pop(shard, None) or self._load_index(shard)
        self._loaded[shard] = index  # last in order: the latest used
        return index

    def _load_index(self, shard: int) -> ShardIndex:
        path, summary = self.paths[shard], self._summaries[shard]
        index = load_index(summary.index_path)
        if index is None:  # damaged where the start does not look, or removed since
            index = load_index(renew_index(path, summary).index_path)
        if index is None or len(index.members) != self.shard_counts[shard]:
            raise UserError(f"urls: the shard {path!r} or its index was changed after the start; start again")
        self._num_indexed += len(index.members)
        while self._loaded and self._num_indexed > _MAX_INDEXED:
            self._num_indexed -= len(self._loaded.popitem(last=False)[1].members)
        return index

    def _locate(self, index: int) -> tuple[int, int]:
        """The shard's number and the sample's place in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _name(self, index: int) -> tuple[str, str]:
        """The sample's key, and its name with the shard's in front."""
        shard, place = self._locate(index)
        key = self._index(shard).keys[place]
        return key, f"{os.path.basename(self.paths[shard])}/{key}"

    def prefetch(self, index: int) -> None:
        shard = self._locate(index)[0]
        if is_remote(self.paths[shard]):
            self._copies.prefetch(self.paths[shard], self._summaries[shard].stamp)

    def read_member(self, index: int, column: int) -> bytes | None:
        """Bytes of the picture (0), the .json (1) or the .txt (2) of the sample `index`; None where there is none.

        Raises:
            BadSample: "missing" if the shard is gone, "truncated_tar" if it is shorter than when it was indexed.
        """
        shard, place = self._locate(index)
        start, size = self._index(shard).members[place, column].tolist()
        if start < 0:
            return None
        path = self.paths[shard]
        try:
            if is_remote(path):
                path = self._copies.local(path, self._summaries[shard].stamp)
            data = self._reader.read(path, start, size)
        except OSError as error:
            raise BadSample(Fault("missing", self._name(index)[1], one_line(error))) from error
        if len(data) < size:
            detail = f"{len(data)} of {size} bytes there: the shard was cut meanwhile"
            raise BadSample(Fault("truncated_tar", self._name(index)[1], detail))
        return data

    def _record(self, index: int) -> dict[str, object] | None:
        if (data := self.read_member(index, JSON)) is None:
            return None
        record: object = json.loads(data)
        if not isinstance(record, dict):
            raise ValueError(f"{record!r:.80} is not a JSON object")
        return record

    def _text(self, index: int) -> str | None:
        data = self.read_member(index, TEXT)
        return None if data is None else data.decode("utf-8-sig")

    def _captions_in(self, record: dict[str, object] | None, index: int) -> Captions:
        name = self._name(index)[1]
        if self.caption_weights is not None:
            text = self._text(index) if TXT_FIELD in self.caption_weights else None
            fields = (record or {}) if text is None else {**(record or {}), TXT_FIELD: text}
            return weighted_captions(fields, self.caption_weights, name)
        for caption_field in self.caption_fields if record else ():
            if caption_field in record:
                return Captions(as_captions(record[caption_field], name))
        if (text := self._text(index)) is not None:
            return Captions(as_captions(text, name))
        if record is not None:
            detail = f"no {' or '.join(map(repr, self.caption_fields))} in its .json, which has {', '.join(record)}"
            raise BadSample(Fault("bad_caption", name, detail))
        return Captions([])

    def _described(self, index: int) -> tuple[Captions, dict[str, object]]:
        """The captions, and all that the `.json` holds."""
        try:
            record = self._record(index)
            return self._captions_in(record, index), record or {}
        except ValueError as error:  # not UTF-8 and broken JSON are ValueErrors too
            raise BadSample(Fault("bad_caption", self._name(index)[1], one_line(error))) from error

    def read_captions(self, index: int) -> list[str]:
        return self._described(index)[0].texts

    def read(self, index: int) -> StoredSample:
        key, name = self._name(index)
        captions, record = self._described(index)
        data = self.read_member(index, IMAGE)
        assert data is not None, "samples without a picture are left out of the index"
        return StoredSample(data, captions, key, name, record=record)
