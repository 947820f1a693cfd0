"""Labelled pictures in files of many: Hugging Face parquet and WebDataset shards.

Pictures come through the sources of pre-training, labels are read without decoding a picture.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from evals.data.files import did_you_mean, read_names
from evals.data.labelled import LabelledSet
from pretrain.data.find_files import find_shards
from pretrain.data.parquet import ParquetSource
from pretrain.data.remote import is_remote, open_shard, store_errors
from pretrain.data.shard_index import load_index
from pretrain.data.shards import ShardSource
from pretrain.data.storage import BadSample, decode_image, digest, one_line
from pretrain.data.tar_members import IMAGE, JSON, read_members
from pretrain.data.terminal import progress_bar
from pretrain.types import Fault, UserError

#: Blocks of a parquet file whose bytes are part of its identity.
_NUM_BLOCKS, _BLOCK_BYTES = 64, 4096
#: Files of class names that are looked for in the data set's folder.
_NAME_FILES = ("classes.json", "classes.txt")
#: The member of a sample that holds its label as text.
CLS = "cls"


def _packed_classes(
    root: str | Path, classes: Sequence[str] | None, num_classes: int | None, *, stored: Sequence[str] | None = None
) -> list[str]:
    """Names of the classes: those given, else of a file beside the data, else stored in the data, else numbers."""
    if classes is not None:
        return list(classes)
    for name in _NAME_FILES:
        if not is_remote(str(root)) and (path := Path(root).expanduser() / name).is_file():
            return read_names(path)
    if stored is not None:
        return list(stored)
    if num_classes is None:
        raise UserError(
            f"classes: nothing names the classes of {str(root)!r}; put {_NAME_FILES[1]} there or set num_classes"
        )
    return [str(label) for label in range(num_classes)]


def _check_labels(label_N: np.ndarray, num_classes: int, where: str) -> None:
    """Raise UserError for labels that are no classes; test sets without labels often have -1 everywhere."""
    wrong_N = np.flatnonzero((label_N < 0) | (label_N >= num_classes))
    if len(wrong_N):
        first = int(wrong_N[0])
        raise UserError(
            f"{where}: label {int(label_N[first])} of row {first} is no class; labels are 0 to {num_classes - 1}"
        )


class ParquetSet(LabelledSet):
    """Rows of parquet files.

    Args:
        root: folder or URL of the files.
        own_split: glob of the split's files in it, e.g. "train-*.parquet".
        name: the data set's.
        split: "train" or "test".
        image_column: pictures, bytes or {bytes, path}.
        label_column: integers; where the files' Hugging Face schema makes it a ClassLabel, that names the classes.
        classes: names of the classes, in place of those found with the data.
        num_classes: where nothing names them.

    Raises:
        UserError: files, columns, names or labels are missing or wrong.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        own_split: str,
        name: str,
        split: str,
        image_column: str = "image",
        label_column: str = "label",
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.name, self.split = name, split
        paths = find_shards(f"{root}/{own_split}", suffix=".parquet")
        self._source = ParquetSource(paths, image_column=image_column)
        labels: list[np.ndarray] = []
        stored: Sequence[str] | None = None
        sizes: list[Any] = []
        for path in self._source.paths:
            with store_errors(path), pq.ParquetFile(open_shard(path)) as file:
                labels.append(_read_labels(file, label_column, os.path.basename(path)))
                stored = stored or _stored_names(file, label_column)
                groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
                sizes.append([[group.num_rows, group.total_byte_size] for group in groups])
            sizes.append(_spread_bytes(path))
        self.label_N = np.concatenate(labels)
        self.classes = tuple(_packed_classes(root, classes, num_classes, stored=stored))
        _check_labels(self.label_N, len(self.classes), f"path: {paths[0]}")
        self._identity = f"parquet {digest(repr((self._source.identity(), image_column, sizes)).encode())}"

    def load(self, index: int) -> Image.Image:
        return self._source.load(index).image

    def key(self, index: int) -> str:
        return f"{self.split}/{index}"

    def pictures_identity(self) -> str:
        return self._identity


def _spread_bytes(path: str) -> str:
    """A digest of bytes from all over a file: rows in another order, or other pictures of the same size, are seen."""
    with store_errors(path), open_shard(path) as file:
        size = file.seek(0, os.SEEK_END)
        parts = []
        for number in range(_NUM_BLOCKS):
            file.seek(size * number // _NUM_BLOCKS)
            parts.append(file.read(_BLOCK_BYTES))
    return digest(*parts)


def _read_labels(file: pq.ParquetFile, column: str, name: str) -> np.ndarray:
    schema = file.schema_arrow
    if column not in schema.names:
        near = did_you_mean(column, schema.names)
        raise UserError(f"label_column: {name} has no column {column!r}{near}; it has {', '.join(schema.names)}")
    if not pa.types.is_integer(schema.field(column).type):
        raise UserError(
            f"label_column: {column!r} of {name} holds {schema.field(column).type}; labels are whole numbers"
        )
    values = file.read(columns=[column]).column(column)
    if values.null_count:
        raise UserError(f"label_column: {values.null_count} rows of {name} have no {column!r}")
    return values.to_numpy().astype(np.int64)


def _stored_names(file: pq.ParquetFile, column: str) -> list[str] | None:
    """Names of a ClassLabel feature, which the `datasets` package writes into the schema's metadata."""
    content: Any = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        content = json.loads(content) if content else {}
    except ValueError:
        return None
    for key in ("info", "features", column, "names"):
        content = content.get(key) if isinstance(content, Mapping) else None
    if isinstance(content, Mapping):  # some versions write {"0": name, ...}
        content = [content.get(str(label)) for label in range(len(content))]
    return content if isinstance(content, list) and all(isinstance(name, str) for name in content) else None


class LabelledShards(LabelledSet):
    """Samples of WebDataset shards with a label each.

    Args:
        root: folder or URL of the shards.
        own_split: glob or brace range of the split's shards in it.
        name: the data set's.
        split: "train" or "test".
        label_field: "cls": the `.cls` member, a number as text; any other name: that field of the `.json` member.
        classes: names of the classes, in place of those found with the data.
        num_classes: where nothing names them.

    Raises:
        UserError: shards, names or labels are missing or wrong.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        own_split: str,
        name: str,
        split: str,
        label_field: str = CLS,
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.name, self.split = name, split
        self._source = ShardSource(f"{root}/{own_split}")
        self._ends = np.cumsum(self._source.shard_counts)
        self.label_N = self._read_cls() if label_field == CLS else self._read_json(label_field)
        self.classes = tuple(_packed_classes(root, classes, num_classes))
        _check_labels(self.label_N, len(self.classes), f"path: {self._source.paths[0]}")
        self._identity: str | None = None

    def _indices(self) -> list[Any]:
        """The shards' indices, which the source has made."""
        indices = [load_index(summary.index_path) for summary in self._source._summaries]
        assert all(index is not None for index in indices), "made a moment ago"
        return indices

    def _read_cls(self) -> np.ndarray:
        """Labels of `.cls` members; their places are not in the index, so that the tars' headers are read again."""
        label_N = np.empty(len(self._source), dtype=np.int64)
        number = 0
        with progress_bar() as bar:
            task = bar.add_task(f"labels of {self.split}", total=len(label_N))
            for path, index in zip(self._source.paths, self._indices(), strict=True):
                places = {
                    m.name.removesuffix(f".{CLS}"): m for m in read_members(path)[0] if m.name.endswith(f".{CLS}")
                }
                with store_errors(path), open_shard(path) as file:
                    for key in (index.keys[place] for place in range(len(index.keys))):
                        if key not in places:
                            raise UserError(f"label_field: {path}: sample {key!r} has no .{CLS}")
                        file.seek(places[key].offset_data)
                        label_N[number] = _number(file.read(places[key].size), f"{path}: {key}.{CLS}")
                        number += 1
                bar.update(task, completed=number)
        return label_N

    def _read_json(self, field: str) -> np.ndarray:
        label_N = np.empty(len(self._source), dtype=np.int64)
        with progress_bar() as bar:
            task = bar.add_task(f"labels of {self.split}", total=len(label_N))
            for index in range(len(label_N)):
                try:
                    record = json.loads(self._source.read_member(index, JSON) or b"null")
                except (BadSample, ValueError) as error:
                    raise UserError(f"label_field: .json of sample {self.key(index)}: {one_line(error)}") from error
                if not isinstance(record, dict) or field not in record:
                    has = f"it has {', '.join(record)}" if isinstance(record, dict) else "there is none"
                    raise UserError(f"label_field: no field {field!r} in the .json of sample {self.key(index)}; {has}")
                label_N[index] = _number(record[field], f"{field!r} of sample {self.key(index)}")
                bar.advance(task)
        return label_N

    def load(self, index: int) -> Image.Image:
        data = self._source.read_member(index, IMAGE)
        if data is None:
            raise BadSample(Fault("no_image", self.key(index)))
        return decode_image(data, self.key(index))

    def key(self, index: int) -> str:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[shard - 1]) if shard else 0
        return f"{os.path.basename(self._source.paths[shard])}/{index - start}"

    def pictures_identity(self) -> str:
        if self._identity is None:
            parts = [[index.headers_crc32, len(index.members)] for index in self._indices()]
            self._identity = f"shards {digest(repr((self._source.identity(), parts)).encode())}"
        return self._identity


def _number(value: object, where: str) -> int:
    try:
        if isinstance(value, bytes | str):
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    except ValueError:
        pass  # said below, with the place
    raise UserError(f"label_field: {where} is {value!r:.40}, not a whole number")
