"""Where pictures and captions come from: COCO captions, tables of paths, folders (tar shards are in `shards.py`).

A source gives any sample by its index and keeps no position, so that the order of a run can be a function of
(seed, the sample's number in the run) alone. It can be pickled into DataLoader workers. What it holds per sample lies
in arrays and byte strings rather than in Python objects, whose reference counts would copy it into every worker.
"""

import csv
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pretrain.data.storage import BadSample, PackedStrings, RangeReader, decode_image, one_line, spread_order
from pretrain.types import Fault, UserError

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".jsonl": ""}
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


@dataclass
class RawSample:
    """A picture and its captions as they are stored.

    Attributes:
        image: mode RGB, fully decoded, upright.
        captions: all of them, as written; none for a picture without a caption.
        key: the sample's name.
        label: class number where the source has one.
    """

    image: Image.Image
    captions: list[str]
    key: str
    label: int | None = None


class Source(ABC):
    """Samples by index.

    Attributes:
        faults: what was found unusable at construction, and is not among the samples.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int) -> RawSample:
        """Read and decode the sample `index`, 0 .. len - 1.

        Raises:
            BadSample: kind "missing" for an absent file, "corrupt" for one that cannot be decoded, "bad_caption" for
                captions that cannot be read.
        """

    @abstractmethod
    def iter_captions(self, limit: int | None = None) -> Iterator[str]:
        """Captions without decoding a picture (to train a tokenizer), at most `limit`; unreadable ones are left out."""

    def choose_caption(self, sample: RawSample, rng: np.random.Generator) -> str:
        """One of the sample's captions, all alike likely; "" where it has none."""
        return sample.captions[int(rng.integers(len(sample.captions)))] if sample.captions else ""


class FileSource(Source):
    """A source whose captions can be read one sample at a time."""

    @abstractmethod
    def read_captions(self, index: int) -> list[str]:
        """The captions of the sample `index`. Raises BadSample where they cannot be read."""

    def iter_captions(self, limit: int | None = None) -> Iterator[str]:
        order = range(len(self)) if limit is None else spread_order(len(self))
        return islice(self._captions(order), limit)

    def _captions(self, order: Iterable[int]) -> Iterator[str]:
        for index in order:
            # Counted when training draws the sample; here it has no captions to give.
            with suppress(BadSample):
                yield from self.read_captions(index)


def as_captions(value: object, key: str) -> list[str]:
    """A caption, a list of captions or null as a list without blank ones.

    Raises:
        BadSample: "bad_caption" for any other value.
    """
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(caption, str) for caption in values):
        raise BadSample(Fault("bad_caption", key, f"{value!r:.80} is neither a caption nor a list of captions"))
    return [caption for caption in values if caption.strip()]


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

    def load(self, index: int) -> RawSample:
        key = self._names[index]
        return RawSample(decode_image(self.path / key, key), [], key)


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

    def load(self, index: int) -> RawSample:
        key, captions = self._names[index], self.read_captions(index)
        return RawSample(decode_image(self.images / key, key), captions, key)


class TableSource(FileSource):
    """A .csv, .tsv (with a header) or .jsonl table of image paths and captions; keys are the paths as written.

    A caption cell is a string or, in JSONL, a list of strings; an empty one is a picture without a caption. Rows stay
    in the file, which must not change while it is read.

    Args:
        path: the table, UTF-8.
        images: folder that relative image paths start from; None: the table's folder.
        image_column: name of the column with image paths.
        caption_column: name of the column with captions.

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
    ) -> None:
        super().__init__()
        self.path = _existing("path", path, folder=False)
        self.images = self.path.parent if images is None else _existing("images", images, folder=True)
        self.image_column, self.caption_column = image_column, caption_column
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
        for argument, column in (("image_column", image_column), ("caption_column", caption_column)):
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

    def read_captions(self, index: int) -> list[str]:
        row = self._row(index)
        return as_captions(row.get(self.caption_column), str(row.get(self.image_column)))

    def load(self, index: int) -> RawSample:
        row = self._row(index)
        name = row.get(self.image_column)
        key = str(name)
        if not isinstance(name, str) or not name.strip():
            raise BadSample(Fault("missing", f"{self.path.name}: {row!r:.80}", f"no path in {self.image_column!r}"))
        captions = as_captions(row.get(self.caption_column), key)
        return RawSample(decode_image(self.images / name.strip(), key), captions, key)
