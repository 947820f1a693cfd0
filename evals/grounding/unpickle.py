"""RefCOCO's release is a pickle: read so that nothing in it can run.

A pickle is a program that may call whatever it names. Here it may name nothing but sets and numpy's numbers, which come out as
plain Python; what is left are lists, dicts, tuples, texts, numbers and None.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from evals.data.files import existing_file
from pretrain.data.storage import one_line
from pretrain.types import UserError

#: Codes of numpy's plain numbers: b1, i8, u2, f4; objects and records, which hold other things, are none of them.
_NUMBER = re.compile(r"[biuf]\d{1,2}")
#: What a cut or damaged pickle makes the unpickler raise, depending on where the damage is.
_DAMAGED = (
    *(pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError),
    *(ImportError, MemoryError, OverflowError, RecursionError),
)


class _ForbiddenError(Exception):
    """The pickle asks for something that could run."""


class _NumberType:
    """Stands in for numpy.dtype: takes what its pickles are made of, for plain numbers only."""

    def __init__(self, code: Any, *unused: Any) -> None:
        code = code.decode("latin-1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _NUMBER.fullmatch(code):
            raise _ForbiddenError(f"numpy.dtype({code!r:.40})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """`state` is (version, byte order, ...)."""
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise _ForbiddenError(f"numpy.dtype with byte order {order!r:.40}")
        self.dtype = self.dtype.newbyteorder(order)


def _number(kind: Any, data: Any) -> Any:
    """Stands in for numpy's `scalar`: its bytes (text, if Python 2 wrote them) as a number of Python's."""
    if not isinstance(kind, _NumberType) or not isinstance(data, str | bytes):
        raise _ForbiddenError("numpy's scalar of something else than a number")
    data = data.encode("latin-1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype=kind.dtype, count=1)[0].item()


#: All that may be named. Python 2 calls its own module __builtin__; numpy 2 has moved its functions.
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    **{(module, name): kind for module in ("builtins", "__builtin__") for name, kind in (("set", set),)},
    **{(module, "frozenset"): frozenset for module in ("builtins", "__builtin__")},
    ("numpy", "dtype"): _NumberType,
    **{(f"numpy.{core}.multiarray", "scalar"): _number for core in ("core", "_core")},
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            asked = f"{module}.{name}"  # the file's own words: no line breaks or control codes, no end of it
            raise _ForbiddenError(f"{asked:.80}" if asked.isprintable() else f"{asked!r:.80}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _ForbiddenError("an object that is kept elsewhere")


def load_plain_pickle(path: str | Path) -> Any:
    """What a pickle holds, where that is plain data; also one of Python 2, whose byte strings become texts (latin-1).

    Args:
        path: of the file.

    Raises:
        UserError: no such file, no pickle or a cut one, or one that asks for anything but plain data: none of it is run.
    """
    path = existing_file(Path(path).expanduser(), wanted="a pickle of plain data, such as RefCOCO's refs(unc).p")
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin-1").load()
    except _ForbiddenError as error:
        raise UserError(
            f"{path} is a pickle with code in it: it asks for {error}, and nothing of it was run; "
            "take the file from the official release, which holds plain data"
        ) from error
    except _DAMAGED as error:
        raise UserError(f"{path} is no pickle, or a cut one ({one_line(error)}); copy it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})") from error
