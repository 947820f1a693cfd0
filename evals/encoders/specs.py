"""Names of encoders taken apart, `NAME[option=1,...]@SOURCE`, and what errors about them say."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pretrain.types import UserError

_SPEC = re.compile(r"(?P<name>[^\[\]@]+)(?:\[(?P<options>[^\]]*)\])?(?:@(?P<source>.+))?")


@dataclass(frozen=True)
class ModelSpec:
    """What follows `timm:` or `open_clip:`.

    Attributes:
        whole: the spec as it was asked for, for messages.
        name: the library's name of the model.
        options: whole numbers by name.
        source: where its weights are: a file, a folder, a tag; None where nothing was given.
    """

    whole: str
    name: str
    options: dict[str, int] = field(default_factory=dict)
    source: str | None = None

    def architecture(self, sizes: dict[str, Any] | None = None) -> str:
        """The name, and the sizes in which the model differs from what the name stands for."""
        sizes = {**(sizes or {}), **self.options}
        return self.name + (f"[{','.join(f'{key}={value}' for key, value in sorted(sizes.items()))}]" if sizes else "")


def parse(text: str, *, whole: str, options: Sequence[str]) -> ModelSpec:
    """Take `NAME[option=1,...]@SOURCE` apart.

    Args:
        text: the spec behind its prefix.
        whole: the spec, for messages.
        options: names of options that are known.

    Raises:
        UserError: another form, an unknown option, or a value that is no positive whole number.
    """
    found = _SPEC.fullmatch(text)
    if found is None:
        raise UserError(f"encoder {whole!r}: the form is NAME, NAME[{options[0]}=64] or NAME@FILE")
    values: dict[str, int] = {}
    for part in filter(None, (found["options"] or "").split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in options:
            raise UserError(f"encoder {whole!r}: {key!r} is no option; give {', '.join(options)}")
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f"encoder {whole!r}: {key}={value} must be a whole number of at least 1")
        values[key] = int(value)
    return ModelSpec(whole, found["name"], values, found["source"])


def near(name: str, known: Iterable[str]) -> str:
    """What to add to an error about an unknown name: the known ones that are like it."""
    by_lower = {other.lower(): other for other in known}
    found = get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    return f"; near: {', '.join(by_lower[other] for other in found)}" if found else ""


def listed(names: Sequence[str], *, most: int = 6) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def one_line(error: BaseException, *, length: int = 300) -> str:
    """A library's message without line breaks, cut off at `length`."""
    text = " ".join(str(error).split())
    return text if len(text) <= length else text[:length] + " ..."


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object")
    return content
