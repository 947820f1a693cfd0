"""Parts of a YAML file as dataclasses."""

from dataclasses import fields
from typing import Any, TypeVar

from pretrain.types import UserError

T = TypeVar("T")


def build(kind: type[T], values: Any, *, where: str) -> T:
    """A dataclass from a mapping.

    Args:
        kind: of the dataclass; its own checks may raise UserError.
        values: what the file has.
        where: file and field, for errors.

    Raises:
        UserError: no mapping, an unknown or a missing field, or what the dataclass itself refuses.
    """
    known = [one.name for one in fields(kind)]
    if not isinstance(values, dict):
        raise UserError(f"{where} is {values!r}; give {', '.join(known)}")
    if unknown := [name for name in values if name not in known]:
        raise UserError(f"{where}: field {unknown[0]!r} is unknown; known are {', '.join(known)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{where}: {str(error).split('__init__() ')[-1]}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
