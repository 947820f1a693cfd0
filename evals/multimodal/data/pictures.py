"""Pictures that questions are asked about: where they lie, and how the names that questions have for them lead there.

Nothing is decoded, or opened, to find out whether a picture is there: a folder is listed once.

Shape letters: N pictures.
"""

import base64
import binascii
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from evals.data.files import FileSet, existing_folder, is_picture
from evals.data.labelled import BadSample, LabelledSet
from pretrain.data.storage import PackedStrings, decode_image, digest, one_line
from pretrain.types import Fault, UserError

#: What a question's file calls its picture.
ImageName = str | int


class PictureFiles(FileSet):
    """Pictures in files, without classes: all labels are 0. Its identity is that of :class:`FileSet`.

    Args:
        folder: that `keys` are relative to.
        keys: a path of each picture, with "/".
        name: the data set's.
        split: what is scored.
        synthetic: whether they are generated.
    """

    def __init__(self, folder: Path, keys: Iterable[str], *, name: str, split: str, synthetic: bool = False) -> None:
        packed = PackedStrings(keys)
        label_N = np.zeros(len(packed), dtype=np.int64)
        super().__init__(folder, keys=packed, label_N=label_N, classes=("picture",), name=name, split=split)
        self.synthetic = synthetic


class PictureBytes(LabelledSet):
    """Pictures as base64 text, as tables hold them; kept as it is and decoded when one is loaded. All labels are 0.

    Args:
        texts: base64 of each picture's file; white space in it does not matter.
        keys: a name of each.
        name: the data set's.
        split: what is scored.
        synthetic: whether they are generated.
    """

    classes = ("picture",)

    def __init__(
        self, texts: Iterable[str], *, keys: Iterable[str], name: str, split: str, synthetic: bool = False
    ) -> None:
        # one block of bytes each: workers of a loader share them
        self._texts, self._keys = PackedStrings(texts), PackedStrings(keys)
        assert len(self._texts) == len(self._keys)
        self.name, self.split, self.synthetic = name, split, synthetic
        self.label_N = np.zeros(len(self._keys), dtype=np.int64)
        self._identity: str | None = None

    def load(self, index: int) -> Image.Image:
        key = self.key(index)
        try:
            data = base64.b64decode("".join(self._texts[index].split()), validate=True)
        except (binascii.Error, ValueError) as error:  # ValueError: letters beyond ASCII
            raise BadSample(Fault("corrupt", key, f"no base64: {one_line(error)}")) from error
        return decode_image(data, key)

    def key(self, index: int) -> str:
        return self._keys[index]

    def pictures_identity(self) -> str:
        if self._identity is None:
            self._identity = f"base64 {digest(*self._keys.parts(), *self._texts.parts())}"
        return self._identity


class Shelf(ABC):
    """Where the pictures of a task lie.

    Attributes:
        place: the folder, or the file that holds them.
        wanted: what should lie there, for errors.
    """

    place: Path
    wanted: str

    @abstractmethod
    def find(self, image: ImageName) -> str | None:
        """The key of a picture; None where it is not there. Raises UserError where more than one could be meant."""

    @abstractmethod
    def expected(self, image: ImageName) -> str:
        """The file, or the entry, that was looked for."""

    @abstractmethod
    def pictures(self, keys: Sequence[str], *, name: str, split: str, synthetic: bool) -> LabelledSet:
        """The pictures with these keys, in this order."""


class PictureFolder(Shelf):
    """Files right in a folder, found by what their stems say; their suffix may be any that pictures have.

    Args:
        folder: of the pictures.
        file_name: what the official release calls the file of a picture; for errors.
        key: of a stem: what questions call that picture; None for a file that is none of the task's.
        wanted: what the folder should be.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        file_name: Callable[[ImageName], str],
        key: Callable[[str], ImageName | None] = str,
        wanted: str,
    ) -> None:
        self.place, self.wanted, self._file_name = existing_folder(folder, wanted=wanted), wanted, file_name
        self._found: dict[ImageName, str] = {}
        self._twice: dict[ImageName, str] = {}
        with os.scandir(self.place) as entries:
            for name in sorted(entry.name for entry in entries if is_picture(entry.name)):
                image = key(os.path.splitext(name)[0])
                if image is not None and self._found.setdefault(image, name) != name:
                    self._twice.setdefault(image, name)

    def find(self, image: ImageName) -> str | None:
        if image in self._twice:
            pair = f"{self._found[image]} and {self._twice[image]}"
            raise UserError(f"images: {str(self.place)!r} has {pair} for picture {image}; one of them must go")
        return self._found.get(image)

    def expected(self, image: ImageName) -> str:
        return self._file_name(image)

    def pictures(self, keys: Sequence[str], *, name: str, split: str, synthetic: bool) -> PictureFiles:
        return PictureFiles(self.place, keys, name=name, split=split, synthetic=synthetic)


class PictureTree(Shelf):
    """Files in a folder and in those below it, by their relative paths. Each folder that a path names is listed once.

    Args:
        root: that paths are relative to.
        wanted: what it should be.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, root: Path, *, wanted: str) -> None:
        self.place, self.wanted = existing_folder(root, wanted=wanted), wanted
        self._names: dict[PurePosixPath, frozenset[str]] = {}

    def find(self, image: ImageName) -> str | None:
        path = PurePosixPath(image)
        if path.parent not in self._names:
            self._names[path.parent] = self._list(self.place / path.parent)
        return str(path) if path.name in self._names[path.parent] else None

    @staticmethod
    def _list(folder: Path) -> frozenset[str]:
        try:
            with os.scandir(folder) as entries:
                return frozenset(entry.name for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()  # its pictures are missing, and counted
        except OSError as error:
            raise UserError(f"images: {str(folder)!r} cannot be listed ({one_line(error)})") from error

    def expected(self, image: ImageName) -> str:
        return str(image)

    def pictures(self, keys: Sequence[str], *, name: str, split: str, synthetic: bool) -> PictureFiles:
        return PictureFiles(self.place, keys, name=name, split=split, synthetic=synthetic)


class PictureTable(Shelf):
    """Base64 pictures in the rows of a file.

    Args:
        file: that holds them.
        texts: name of a picture -> its base64; "" where the file has none.
        wanted: what the file should be.
    """

    def __init__(self, file: Path, texts: Mapping[str, str], *, wanted: str) -> None:
        self.place, self.wanted, self._texts = file, wanted, texts

    def find(self, image: ImageName) -> str | None:
        return str(image) if self._texts.get(str(image)) else None

    def expected(self, image: ImageName) -> str:
        return f"of row {image}"

    def pictures(self, keys: Sequence[str], *, name: str, split: str, synthetic: bool) -> PictureBytes:
        texts = (self._texts[key] for key in keys)
        return PictureBytes(texts, keys=keys, name=name, split=split, synthetic=synthetic)


def trailing_number(stem: str) -> int | None:
    """42 of "COCO_val2014_000000000042" and of "000000000042"; None where a stem ends in no digit."""
    found = re.search(r"[0-9]+$", stem)
    return int(found.group()) if found else None
