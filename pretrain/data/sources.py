"""Where pictures and captions come from: folders, COCO captions, tables of paths (tar shards are in `shards.py`)."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.samples import Captions, FileSource, RawSample, Source, StoredSample, as_captions, weighted_captions
from pretrain.data.storage import (
    BadSample,
    PackedStrings,
    RangeReader,
    decode_image,
    digest,
    one_line,
    read_picture,
)
from pretrain.types import Fault, UserError

#: What a source is comes with the sources.
__all__ = [
    "BadSample",
    "CocoCaptionSource",
    "FileSource",
    "FolderSource",
    "RawSample",
    "Source",
    "TableSource",
    "as_captions",
    "decode_image",
]

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".jsonl": ""}
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def _existing(field: str, path: str | Path, *, folder: bool) -> Path:
    path = Path(path).expanduser()
    if not (path.is_dir() if folder else path.is_file()):
        raise UserError(f"{field}: {str(path)!r} is not {'a folder' if folder else 'a file'}")
    return path


class FolderSource(FileSource):
    """Pictures in a folder and the folders below it, without captions; keys are paths relative to it.

    Raises:
        UserError: the folder does not exist or holds no picture.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = _existing("path", path, folder=True)
        self._names = PackedStrings(self._find())
        if not len(self._names):
            raise UserError(f"path: {str(path)!r} holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))})")

    def _find(self) -> Iterator[str]:
        seen: set[str] = set()
        for folder, folders, files in os.walk(self.path, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link back up would never end
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            for name in sorted(files):
                if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                    yield (Path(folder) / name).relative_to(self.path).as_posix()

    def __len__(self) -> int:
        return len(self._names)

    def read_captions(self, index: int) -> list[str]:
        return []

    def identity(self) -> str:
        return f"FolderSource {digest(*self._names.parts())}"

    def read(self, index: int) -> StoredSample:
        key = self._names[index]
        return StoredSample(read_picture(self.path / key, key), Captions([]), key, key)


class CocoCaptionSource(FileSource):
    """COCO captions in the official layout; keys are the file names.

    Args:
        annotations: captions_*.json with "images" and "annotations".
        images: folder that the file names are relative to.

    Raises:
        UserError: a path does not exist, the file is no COCO caption file, or it names no picture.
    """

    def __init__(self, annotations: str | Path, images: str | Path) -> None:
        super().__init__()
        path = _existing("annotations", annotations, folder=False)
        self.images = _existing("images", images, folder=True)
        wanted = 'a COCO caption file has "images" (id, file_name) and "annotations" (image_id, caption)'
        try:
            content = json.loads(path.read_bytes())
            names = {image["id"]: str(image["file_name"]) for image in content["images"]}
            captions: dict[Any, list[str]] = {number: [] for number in names}
            for annotation in content["annotations"]:
                number = annotation["image_id"]
                if number in captions:
                    captions[number].append(annotation["caption"])
                else:
                    self.faults.append(Fault("missing", f"{path.name}: image {number}", "captioned but not listed"))
        except KeyError as error:
            raise UserError(f"annotations: {str(path)!r} has no field {error}; {wanted}") from error
        except (ValueError, TypeError) as error:
            raise UserError(f"annotations: {str(path)!r} cannot be read ({one_line(error)}); {wanted}") from error
        if not names:
            raise UserError(f"annotations: {str(path)!r} names no picture; {wanted}")
        self._names = PackedStrings(names.values())
        self._captions_json = PackedStrings(json.dumps(captions[number]) for number in names)

    def __len__(self) -> int:
        return len(self._names)

    def read_captions(self, index: int) -> list[str]:
        return as_captions(json.loads(self._captions_json[index]), self._names[index])

    def identity(self) -> str:
        return f"CocoCaptionSource {digest(*self._names.parts(), *self._captions_json.parts())}"

    def read(self, index: int) -> StoredSample:
        key, captions = self._names[index], Captions(self.read_captions(index))
        return StoredSample(read_picture(self.images / key, key), captions, key, key)


class TableSource(FileSource):
    """A .csv, .tsv (with a header) or .jsonl table of image paths and captions; keys are the paths as written.

    A caption cell is a string or, in JSONL, a list of strings; an empty one is a picture without a caption. Rows stay
    in the file, which must not change while it is read.

    Args:
        path: the table, UTF-8.
        images: folder that relative image paths start from; None: the table's folder.
        image_column: name of the column with image paths.
        caption_column: name of the column with captions.
        caption_weights: columns of several kinds of caption, each with its weight, in place of `caption_column`.

    Raises:
        UserError: a path does not exist, the suffix is another one, a column is not there, there are no rows, or
            quoting is broken.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path | None = None,
        *,
        image_column: str = "image",
        caption_column: str = "caption",
        caption_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.path = _existing("path", path, folder=False)
        self.images = self.path.parent if images is None else _existing("images", images, folder=True)
        self.image_column, self.caption_column, self.caption_weights = image_column, caption_column, caption_weights
        suffix = self.path.suffix.lower()
        if suffix not in _DELIMITERS:
            raise UserError(f"path: {str(path)!r} ends in {suffix!r}; a table is a {', '.join(_DELIMITERS)} file")
        self._delimiter = _DELIMITERS[suffix]
        self._reader = RangeReader()
        self._header: list[str] = []
        self._bounds = np.array(list(self._index()), dtype=np.int64).reshape(-1, 2)
        if not len(self._bounds):
            raise UserError(f"path: {str(self.path)!r} has no rows")
        columns = self._header if self._delimiter else self._json_fields()
        captions = [("caption_column", caption_column)] if caption_weights is None else []
        for argument, column in [
            ("image_column", image_column),
            *captions,
            *(("captions", name) for name in caption_weights or ()),
        ]:
            if column not in columns:
                raise UserError(f"{argument}: {self.path.name} has no column {column!r}; it has {', '.join(columns)}")

    def _index(self) -> Iterator[tuple[int, int]]:
        """First byte and last byte + 1 of each row; takes the header of a .csv or .tsv on the way."""
        position = 0

        def lines() -> Iterator[str]:
            nonlocal position
            for line in file:
                position += len(line)
                yield line.decode("utf-8-sig", "replace")

        with self.path.open("rb") as file:
            # A quoted cell may hold line breaks: only the csv reader knows where a row ends.
            rows = csv.reader(lines(), delimiter=self._delimiter, strict=True) if self._delimiter else lines()
            start, number = 0, 0
            try:
                for number, row in enumerate(rows, 1):
                    if self._delimiter and number == 1:
                        self._header = row
                    elif row and not (isinstance(row, str) and row.isspace()):
                        yield start, position
                    start = position
            except csv.Error as error:
                wanted = "close its quotes and double those inside a cell"
                raise UserError(f"path: {self.path.name}, row {number + 1}: {error}; {wanted}") from error

    def _json_fields(self) -> list[str]:
        fields: dict[str, None] = {}
        for index in range(min(len(self), 100)):  # the first rows may lack a caption
            with suppress(BadSample):
                fields.update(dict.fromkeys(self._row(index)))
        return list(fields)

    def __len__(self) -> int:
        return len(self._bounds)

    def _row(self, index: int) -> dict[str, Any]:
        start, end = self._bounds[index].tolist()
        key = f"{self.path.name}: bytes {start} to {end}"
        try:
            text = self._reader.read(str(self.path), start, end - start).decode("utf-8-sig")
            if not self._delimiter:
                row = json.loads(text)
                if not isinstance(row, dict):
                    raise ValueError(f"{text.strip()!r:.80} is not a JSON object")
                return row
            row = next(csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter), [])
            if len(row) != len(self._header):
                raise ValueError(f"{len(row)} cells, {len(self._header)} in the header: {text.strip()!r:.80}")
            return dict(zip(self._header, row))
        except OSError as error:
            raise BadSample(Fault("missing", key, one_line(error))) from error
        except ValueError as error:  # not UTF-8 and broken JSON are ValueErrors too
            raise BadSample(Fault("bad_caption", key, one_line(error))) from error

    def _captions_of(self, row: Mapping[str, Any]) -> Captions:
        key = str(row.get(self.image_column))
        if self.caption_weights is not None:
            return weighted_captions(row, self.caption_weights, key)
        return Captions(as_captions(row.get(self.caption_column), key))

    def read_captions(self, index: int) -> list[str]:
        return self._captions_of(self._row(index)).texts

    def identity(self) -> str:
        return f"TableSource {digest(self._bounds, repr(self._header).encode())}"

    def read(self, index: int) -> StoredSample:
        row = self._row(index)
        name = row.get(self.image_column)
        key = str(name)
        if not isinstance(name, str) or not name.strip():
            raise BadSample(Fault("missing", f"{self.path.name}: {row!r:.80}", f"no path in {self.image_column!r}"))
        captions = self._captions_of(row)
        return StoredSample(read_picture(self.images / name.strip(), key), captions, key, key)
