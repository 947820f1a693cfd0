"""Hugging Face parquet files: a column of pictures ({bytes, path} or bytes), one or more of captions, perhaps a label."""

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.data.find_files import find_shards
from pretrain.data.remote import open_shard, store_errors
from pretrain.data.samples import Captions, FileSource, StoredSample, as_captions, weighted_captions
from pretrain.data.storage import BadSample, one_line
from pretrain.types import Fault, UserError

#: Bytes of row groups kept in memory by each process.
_MAX_BYTES = 2**30
_MAX_OPEN_FILES = 64
_LABEL_COLUMN = "label"
#: Caption of a picture whose class is all that is known of it.
CLASS_CAPTION = "a photo of a {}"


def _read_names(path: str | Path) -> list[str]:
    try:
        names = [line.strip() for line in Path(path).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"class_names: {str(path)!r} cannot be read ({one_line(error)})") from error
    if not names or not all(names):
        raise UserError(f"class_names: {str(path)!r} must hold a name in every line, the first for label 0")
    return names


class ParquetSource(FileSource):
    """Rows of parquet files; keys are the pictures' paths where there are any, else the row's number.

    A row group is read as a whole, so that rows of one group are best asked for together: `shard_counts` says how many
    each holds. A run's worker stands in all row groups under the shuffling windows of its lanes at once, which is why there are
    few lanes here; where these are more than 1 GiB all the same, groups are read again and again (times a hundred where none
    stays): take a smaller window, or turn the files into shards, `python -m pretrain shards`.

    Args:
        urls: a folder (all its .parquet files), a file, a glob, a brace range, a URL or a list of these.
        image_column: column of the pictures: bytes, or {bytes, path} as the `datasets` package writes them.
        caption_column: column of captions: a string or a list of strings; it may be missing where there is none at all.
        caption_weights: columns of several kinds of caption, each with its weight, in place of `caption_column`.
        class_names: file of class names, one a line; the caption is then CLASS_CAPTION with the name of the row's label.
            A run on such captions is supervised by labels.

    Raises:
        UserError: a file does not exist or is no parquet file, a column is missing, there are no rows, or no class names.
    """

    max_lanes = 4

    def __init__(
        self,
        urls: str | Path | Sequence[str | Path],
        *,
        image_column: str = "image",
        caption_column: str = "caption",
        caption_weights: Mapping[str, float] | None = None,
        class_names: str | Path | None = None,
    ) -> None:
        super().__init__()
        self._class_names = None if class_names is None else _read_names(class_names)
        self.paths = find_shards(urls, suffix=".parquet")
        self.image_column, self.caption_column, self.caption_weights = image_column, caption_column, caption_weights
        self._pid = os.getpid()
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        self._num_bytes = 0
        self._groups: list[tuple[int, int]] = []
        self.shard_counts = []
        for number in range(len(self.paths)):
            self._check(number)
        self._ends = np.cumsum(self.shard_counts, dtype=np.int64)
        if not len(self):
            raise UserError(f"path: {self.paths[0]!r} and {len(self.paths) - 1} more parquet files hold no row")

    def _check(self, number: int) -> None:
        name = os.path.basename(self.paths[number])
        try:
            with store_errors(self.paths[number]):
                file = self._file(number)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"path: {self.paths[number]!r} cannot be read as parquet ({one_line(error)})") from error
        columns = file.schema_arrow.names
        wanted = [("image_column", self.image_column), *(("captions", name) for name in self.caption_weights or ())]
        if self.caption_weights is None and self.caption_column != "caption":
            wanted.append(("caption_column", self.caption_column))
        if self._class_names is not None:
            wanted.append(("class_names", _LABEL_COLUMN))
        for argument, column in wanted:
            if column not in columns:
                raise UserError(f"{argument}: {name} has no column {column!r}; it has {', '.join(columns)}")
        for group in range(file.metadata.num_row_groups):
            self._groups.append((number, group))
            self.shard_counts.append(file.metadata.row_group(group).num_rows)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": OrderedDict(), "_tables": OrderedDict(), "_num_bytes": 0}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def identity(self) -> str:
        names = (os.path.basename(self.paths[number]) for number, _ in self._groups)
        return repr(list(zip(names, self.shard_counts)))

    def _file(self, number: int) -> pq.ParquetFile:
        if self._pid != os.getpid():  # a forked worker that used its parent's file would move its parent's position
            self._pid, self._files = os.getpid(), OrderedDict()
        file = self._files.pop(number, None) or pq.ParquetFile(open_shard(self.paths[number]))
        self._files[number] = file
        if len(self._files) > _MAX_OPEN_FILES:
            self._files.popitem(last=False)
        return file

    def _columns(self, file: pq.ParquetFile) -> list[str]:
        captions = list(self.caption_weights or [self.caption_column])
        names = file.schema_arrow.names
        return [name for name in (self.image_column, *captions, _LABEL_COLUMN) if name in names]

    def _table(self, number: int) -> pa.Table:
        table = self._tables.pop(number, None) or self._read_table(number)
        self._tables[number] = table  # last in order: the latest used
        return table

    def _read_table(self, number: int) -> pa.Table:
        file_number, group = self._groups[number]
        with store_errors(self.paths[file_number]):
            file = self._file(file_number)
            table = file.read_row_group(group, columns=self._columns(file), use_threads=False)
        self._num_bytes += table.nbytes
        while self._tables and self._num_bytes > _MAX_BYTES:
            self._num_bytes -= self._tables.popitem(last=False)[1].nbytes
        return table

    def _row(self, index: int) -> tuple[dict[str, Any], str]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        place = index - (int(self._ends[number - 1]) if number else 0)
        name = os.path.basename(self.paths[self._groups[number][0]])
        try:
            row = self._table(number).slice(place, 1).to_pylist()[0]
        except (OSError, pa.ArrowException) as error:
            raise BadSample(Fault("corrupt", f"{name}: row {index}", one_line(error))) from error
        return row, f"{name}/{index}"

    def _captions_of(self, row: dict[str, Any], name: str) -> Captions:
        if self._class_names is not None:
            label = row.get(_LABEL_COLUMN)
            if not isinstance(label, int) or not 0 <= label < len(self._class_names):
                detail = f"label {label!r} is none of the {len(self._class_names)} classes"
                raise BadSample(Fault("bad_caption", name, detail))
            return Captions([CLASS_CAPTION.format(self._class_names[label])])
        if self.caption_weights is not None:
            return weighted_captions(row, self.caption_weights, name)
        return Captions(as_captions(row.get(self.caption_column), name))

    def read_captions(self, index: int) -> list[str]:
        return self._captions_of(*self._row(index)).texts

    def read(self, index: int) -> StoredSample:
        row, name = self._row(index)
        captions = self._captions_of(row, name)
        picture = row[self.image_column]
        path = None
        if isinstance(picture, dict):
            picture, path = picture.get("bytes"), picture.get("path")
        if not isinstance(picture, bytes):
            raise BadSample(Fault("missing", path or name, f"no bytes in column {self.image_column!r}"))
        label = row.get(_LABEL_COLUMN)
        label = label if isinstance(label, int) else None
        return StoredSample(picture, captions, path or name, name, label)
