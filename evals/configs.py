"""Configs by name: one folder, one file for one of a kind."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from pretrain.data.storage import one_line
from pretrain.types import UserError

T = TypeVar("T")


def read_mapping(path: Path, *, wanted: str) -> dict[str, Any]:
    """What a YAML file holds.

    Args:
        path: of the file.
        wanted: what would be right, for the error about a file that holds something else.

    Raises:
        UserError: it cannot be read, or is no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no fields; {wanted}")
    return content


def read_yaml(path: Path, known: Sequence[str]) -> Mapping[str, Any]:
    """The fields of a YAML file.

    Raises:
        UserError: it cannot be read, is no mapping, or has a field that is not `known`.
    """
    content = read_mapping(path, wanted=f"it has {', '.join(known)}")
    if unknown := [name for name in content if name not in known]:
        raise UserError(f"{path}: field {unknown[0]!r} is unknown; known are {', '.join(known)}")
    return content


def read_config(kind: type[T], name_or_file: str, folder: Path) -> tuple[T, Path]:
    """A data set's config of a dataclass, and the file that it stands in; its name is the file's where none is given.

    Raises:
        UserError: no such file, an unknown or missing field, or a wrong type.
    """
    file = find_config(name_or_file, folder, field="dataset")
    content = dict(read_yaml(file, [field.name for field in fields(kind)]))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, as_group=False)
    try:
        values = parser.parse_object({"name": file.stem, **content}).as_dict()
    except ArgumentError as error:
        raise UserError(f"dataset {file.name}: {one_line(error)}") from error
    return kind(**values), file


def find_config(name: str, folder: Path, *, field: str) -> Path:
    """`folder`/NAME.yaml, or a file by its path. Raises UserError with the names that there are."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"{field}: {name!r} is no file")
        return path
    if not (folder / f"{name}.yaml").is_file():
        raise UserError(f"{field}: {name!r} is unknown; give one of {', '.join(config_names(folder))} or a .yaml file")
    return folder / f"{name}.yaml"


def config_names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))
