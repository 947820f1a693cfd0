"""Labelled pictures that lie in files of their own, and what the builders of such sets share."""

import json
import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from evals.data.labelled import LabelledSet
from pretrain.data.sources import IMAGE_SUFFIXES
from pretrain.data.storage import BadSample, PackedStrings, decode_image, digest, one_line, read_picture, spread_order
from pretrain.types import Fault, UserError

#: Pictures whose bytes are part of a set's identity, so that other pictures under the same names are told apart.
_NUM_SPREAD = 100


class FileSet(LabelledSet):
    """Pictures in files; keys are paths relative to `root`, kept in one block of bytes.

    Args:
        root: folder that keys are relative to.
        keys: a path of each picture.
        label_N: a class of each.
        classes: names of the classes.
        name: the data set's.
        split: "train" or "test".
    """

    def __init__(
        self, root: Path, *, keys: PackedStrings, label_N: np.ndarray, classes: Sequence[str], name: str, split: str
    ) -> None:
        assert len(keys) == len(label_N)
        self.root, self._keys, self.name, self.split = root, keys, name, split
        self.classes, self.label_N = tuple(classes), np.asarray(label_N, dtype=np.int64)
        self._identity: str | None = None

    def load(self, index: int) -> Image.Image:
        key = self._keys[index]
        return decode_image(read_picture(self.root / key, key), key)

    def key(self, index: int) -> str:
        return self._keys[index]

    def pictures_identity(self) -> str:
        if self._identity is None:
            spread = islice(spread_order(len(self)), _NUM_SPREAD)
            self._identity = f"files {digest(*self._keys.parts(), *(self._bytes(index) for index in spread))}"
        return self._identity

    def _bytes(self, index: int) -> bytes:
        try:
            return read_picture(self.root / self._keys[index], self._keys[index])
        except BadSample:  # counted when it is loaded
            return b""


def existing_folder(path: str | Path, *, wanted: str) -> Path:
    """`path`, which must be a folder; `wanted` says what should lie in it. Raises UserError."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"path: {str(path)!r} is not a folder; wanted: {wanted}")
    return folder


def existing_file(path: Path, *, wanted: str) -> Path:
    """`path`, which must be a file. Raises UserError, with the nearest name beside it."""
    if not path.is_file():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"path: {str(path)!r} is not there{did_you_mean(path.name, beside)}; wanted: {wanted}")
    return path


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)", or nothing where no name is near."""
    near = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def first(names: Iterable[str]) -> str:
    """The first three names and how many more there are."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def read_names(path: Path) -> list[str]:
    """Names of classes, in order of their labels: lines of a text file; a json list or {"0": name, ...}.

    Raises:
        UserError: the file is absent or holds something else.
    """
    wanted = 'a .txt with a name a line, or a .json with a list of names or {"0": name, ...}'
    try:
        text = path.read_text()
        if path.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        content = json.loads(text)
        if isinstance(content, dict):
            content = [content[str(label)] for label in range(len(content))]
        if isinstance(content, list) and all(isinstance(name, str) for name in content):
            return content
    except OSError as error:
        raise UserError(f"classes: {str(path)!r} cannot be read ({one_line(error)}); give {wanted}") from error
    except (ValueError, KeyError) as error:
        raise UserError(f"classes: {str(path)!r} is no list of names ({one_line(error)}); give {wanted}") from error
    raise UserError(f"classes: {str(path)!r} is no list of names; give {wanted}")


def read_as_stored(path: Path, key: str, *, size: tuple[int, int], source: str) -> Image.Image:
    """A picture that boxes are drawn on: RGB, and as it is stored, since COCO's annotations know no EXIF.

    Args:
        path: the file.
        key: the picture's name, for the fault.
        size: height and width that its annotations are made for.
        source: who says so, e.g. the annotations' file name.

    Raises:
        BadSample: the file is missing, cannot be decoded, or has another size.
    """
    rgb = decode_image(read_picture(path, key), key, upright=False)
    height, width = size
    if rgb.size != (width, height):
        turned = ", on its side" if rgb.size == (height, width) else ""
        detail = f"the file is {rgb.width} x {rgb.height} pixels{turned}, {source} says {width} x {height}"
        raise BadSample(Fault("corrupt", key, detail))
    return rgb
