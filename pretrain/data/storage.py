"""What sources keep per sample and how they read it: strings in one block, ranges of bytes, pictures, spread orders."""

import hashlib
import io
import math
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pretrain.types import Fault

_MAX_OPEN_FILES = 64
# Pillow's plug-ins let all of these through on damaged files, depending on where the damage is.
_DECODE_ERRORS = (
    *(
        OSError,
        EOFError,
        SyntaxError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RuntimeError,
    ),
    *(struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)


class BadSample(Exception):
    """A sample that cannot be used; `fault` says what is wrong with it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        return f"{self.fault.kind}: {self.fault.key}: {self.fault.detail}"


def spread_order(count: int) -> Iterator[int]:
    """0 .. count - 1, each once, so that any beginning of it is spread over the whole range (golden-section steps)."""
    step = max(1, round(count * 0.6180339887))
    while math.gcd(step, count) > 1:
        step += 1
    return ((i * step) % count for i in range(count))


class PackedStrings:
    """A list of strings as one byte string and an offset each."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        self._ends = np.cumsum([len(piece) for piece in encoded], dtype=np.int64)
        self._blob = b"".join(encoded)

    @classmethod
    def from_parts(cls, ends: np.ndarray, blob: bytes) -> "PackedStrings":
        """The list that :meth:`parts` gave."""
        strings = cls([])
        strings._ends, strings._blob = ends, blob
        return strings

    def parts(self) -> tuple[np.ndarray, bytes]:
        """Where each string ends, int64, and all of them as bytes."""
        return self._ends, self._blob

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        end = self._ends[index]
        index = index % len(self._ends)
        start = self._ends[index - 1] if index else 0
        return self._blob[start:end].decode("utf-8", "surrogateescape")


class _Descriptor:
    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class RangeReader:
    """Reads ranges of bytes; opens files on first use in each process and keeps the latest few open.

    It reads with `pread`, so that forked workers that share a descriptor do not move each other's position; a
    descriptor closes with its last user, so that a thread cannot close it under another.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._reset()

    def read(self, path: str, start: int, size: int) -> bytes:
        """`size` bytes from byte `start`, fewer at the end of the file. Raises OSError."""
        descriptor = self._open.pop(path, None) or _Descriptor(path)
        self._open[path] = descriptor  # last in order: the latest used
        if len(self._open) > _MAX_OPEN_FILES:
            self._open.popitem(last=False)
        pieces = []
        while size > 0 and (piece := os.pread(descriptor.number, size, start)):
            pieces.append(piece)
            start, size = start + len(piece), size - len(piece)
        return b"".join(pieces)


def digest(*parts: bytes | np.ndarray) -> str:
    """A short name for content: the same where the content is, on any machine."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def one_line(error: BaseException) -> str:
    """The error's text on one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def read_picture(path: str | Path, key: str) -> bytes:
    """The encoded picture in a file. Raises BadSample, kind "missing", where it cannot be opened; `key` names the sample."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadSample(Fault("missing", key, one_line(error))) from error


#: Width and height in pixels -> how many times smaller a picture may be decoded.
Spare = Callable[[int, int], float]


def _reduce(image: Image.Image, spare: Spare) -> None:
    """Let a JPEG be decoded at a half, a quarter or an eighth: its DCT gives these sizes for less work, and smoothly."""
    if image.format != "JPEG":
        return
    factor = 2 ** min(3, int(math.log2(max(1.0, spare(*image.size)))))
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))


def decode_image(
    data: bytes | str | Path, key: str, *, spare: Spare | None = None, upright: bool = True
) -> Image.Image:
    """Decode a whole picture as RGB.

    Transparency is dropped, as open_clip, timm and torchvision do; 16-bit grey is scaled to 8 bits; of an animation it
    is the first frame.

    Args:
        data: the encoded bytes, or the file's path.
        key: the sample's name, for the fault.
        spare: a JPEG is decoded smaller where this allows it.
        upright: turn it as its EXIF says; boxes and masks are drawn on pictures as they are stored.

    Raises:
        BadSample: "missing" if the file cannot be opened; "corrupt" if it is cut, damaged, no picture, of a mode
            without a known range, or larger than Pillow's limit against decompression bombs.
    """
    if not isinstance(data, bytes):
        data = read_picture(data, key)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if spare is not None:
                _reduce(image, spare)
            image.load()
            if upright:
                with suppress(*_DECODE_ERRORS):  # damaged EXIF says nothing about the pixels
                    ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except UnidentifiedImageError as error:  # its own text holds an address in memory
        raise BadSample(Fault("corrupt", key, f"{len(data)} bytes that are no picture Pillow knows")) from error
    except _DECODE_ERRORS as error:
        raise BadSample(Fault("corrupt", key, one_line(error))) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which turns most of such a picture white
        grey = np.asarray(image).astype(np.uint16) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no known range of grey levels")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns on the direct way
    # converting from RGB would copy the pixels once more
    return image if image.mode == "RGB" else image.convert("RGB")
