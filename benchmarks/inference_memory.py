"""Peak memory of a function, measured as the growth of a fresh process.

A process's resident memory counts pages that freed memory still occupies, so that a second measurement in one process would
find less. Linux with glibc; elsewhere there is no number.
"""

import ctypes
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from pretrain.types import UserError

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: glibc's mallopt parameter, and the size from which blocks are mapped, and given back when freed.
_M_MMAP_THRESHOLD, _MAPPED_FROM = -3, 64 * 1024


def _status_mib(name: str) -> float:
    """A field of this process's status, given there in kB: VmRSS is what is resident now, VmHWM the most that ever was."""
    return int(re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE).group(1)) / 1024


def give_back_freed_memory() -> None:
    """Make glibc return freed blocks to the system at once; by default it raises the size from which it does."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)


def growth_mib(function: Callable[[], Any]) -> float | None:
    """Most memory that this process held during a second call of `function`, above what it held before; None where unknown.

    The first call loads kernels and fills their buffers, which no later call does.
    """
    if not _STATUS.is_file() or not _CLEAR.is_file():
        return None
    function()
    try:
        _CLEAR.write_text("5")  # VmHWM starts again from what is resident now (proc(5))
    except OSError:
        return None
    before = _status_mib("VmRSS")
    function()
    return _status_mib("VmHWM") - before


def _measure(make: Callable[[], Callable[[], Any]]) -> float | None:
    give_back_freed_memory()
    return growth_mib(make())


def peak_growth_mib(make: Callable[[], Callable[[], Any]], *, name: str) -> float | None:
    """Growth of a fresh process while it runs the function that `make` makes there.

    Args:
        make: can be pickled; what it allocates itself (weights) does not count.
        name: for the error.

    Raises:
        UserError: what `make` or the function raises, or the process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, make).result()
        except BrokenProcessPool as error:
            raise UserError(
                f"{name}: the process that measures its memory was killed; is there enough memory?"
            ) from error
