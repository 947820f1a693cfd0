"""Encoders as a command names them: one, or several of one kind (other seeds) under a label."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.types import UserError


@dataclass(frozen=True)
class Group:
    """Encoders that are summed up in one row of a table.

    Attributes:
        label: what the row is called.
        specs: as `load_encoder` takes them.
    """

    label: str
    specs: tuple[str, ...]


def parse_groups(arguments: Sequence[str]) -> list[Group]:
    """`SPEC`, or `LABEL=SPEC,SPEC,...` for several of one kind.

    Raises:
        UserError: an empty spec, or a label that is given twice.
    """
    groups: list[Group] = []
    for argument in arguments:
        found = re.fullmatch(r"([\w .+-]+)=(.+)", argument)  # a spec has a ":" or "[" in front of its "="
        label, specs = (found.group(1), _split(found.group(2))) if found else (argument, (argument,))
        if not all(spec.strip() for spec in specs) or not specs:
            raise UserError(f"--encoder {argument!r}: give SPEC or LABEL=SPEC,SPEC,...")
        if label in {group.label for group in groups}:
            raise UserError(f"--encoder: the label {label!r} is given twice")
        groups.append(Group(label, specs))
    return groups


def _split(text: str) -> tuple[str, ...]:
    """At commas outside of brackets."""
    return tuple(part.strip() for part in re.split(r",(?![^\[]*\])", text))
