"""Files that are whole or absent, whatever happens while they are written."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to, beside the target; flushed to disk and moved into place when the block ends without an error.

    A crash, a full disk or an error in the block leaves the old file or the new one, never half of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    _flush_folder(path.parent)


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` through :func:`atomic_file`."""
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def locked_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file of lines, to read and to append to; whoever else opens it so waits."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def add_lines(file: BinaryIO, lines: bytes) -> None:
    """Append to a file of :func:`locked_file`, in one write that is on the disk when this returns.

    A line that a crash has cut short in front of them is closed first, so that it cannot spoil the next one.
    """
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            lines = b"\n" + lines
    file.write(lines)
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
