"""Sets whose official layout is pictures and a table of them: WILDS' metadata.csv, DomainNet's lists, iNaturalist's json."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from evals.data.files import FileSet, did_you_mean, existing_file, existing_folder, first
from pretrain.data.storage import PackedStrings, one_line
from pretrain.types import UserError

#: Columns that every row has beside its own: its number from 0, and the name of the folder that its picture lies in.
ROW, FOLDER = "row", "folder"
#: What a row must be like: column -> a value, a list of values, or {"from": x, "below": y}, compared as text.
Rows = Mapping[str, Any]


def table_set(
    root: str | Path,
    *,
    train: str,
    test: str,
    image: str,
    label: str,
    name: str,
    split: str,
    columns: Sequence[str] | None = None,
    delimiter: str = ",",
    train_rows: Rows | None = None,
    test_rows: Rows | None = None,
    classes: Sequence[str] | None = None,
) -> FileSet:
    """One split of a set that a table describes.

    Args:
        root: folder that tables and pictures are in.
        train: table of the training split, a file in `root`.
        test: likewise, perhaps the same.
        image: path of a row's picture in `root`: text with columns in braces, e.g. "images/{plate}/{well}.png".
        label: column of the class; "folder" is the folder that the picture lies in, where the table has no such column.
        name: the data set's.
        split: "train" or "test".
        columns: names of the columns where the table has no header.
        delimiter: between columns.
        train_rows: which rows are in the training split; None: all of them.
        test_rows: likewise.
        classes: values of `label` in the order of their labels; None: those of the training rows, sorted (numbers as numbers).

    Raises:
        UserError: a file or column is missing, a row is cut, no row is left, or a class is unknown or has no picture.
    """
    folder = existing_folder(root, wanted=f"{train} and the pictures that it names")
    tables = {"train": (train, train_rows), "test": (test, test_rows)}

    def read(which: str) -> tuple[list[str], list[str]]:
        file_name, rows = tables[which]
        path = existing_file(folder / file_name, wanted=f"the table of the {which} split")
        found = list(_rows(path, columns, delimiter, image=image, label=label, wanted=rows or {}))
        if not found:
            raise UserError(f"path: {path} has no row for the {which} split ({which}_rows: {dict(rows or {})})")
        return [key for key, _ in found], [value for _, value in found]

    keys, values = read(split)
    known = list(classes) if classes is not None else _sorted(set(values if split == "train" else read("train")[1]))
    label_of, present = {value: number for number, value in enumerate(known)}, set(values)
    if unknown := sorted(present - set(label_of)):
        near = did_you_mean(unknown[0], known)
        raise UserError(
            f"path: {folder / tables[split][0]}: {label} {first(unknown)}{near} is no class of the training split"
        )
    if empty := [value for value in known if value not in present]:
        raise UserError(
            f"path: {folder / tables[split][0]}: {len(empty)} classes have no picture in {split}: {first(empty)}"
        )
    label_N = np.array([label_of[value] for value in values], dtype=np.int64)
    return FileSet(folder, keys=PackedStrings(keys), label_N=label_N, classes=known, name=name, split=split)


def _sorted(values: set[str]) -> list[str]:
    return sorted(values, key=int) if all(value.isdecimal() for value in values) else sorted(values)


def _rows(
    path: Path, columns: Sequence[str] | None, delimiter: str, *, image: str, label: str, wanted: Rows
) -> Iterator[tuple[str, str]]:
    """Path and class of each row that is wanted."""
    fields = [field for _, field, _, _ in Formatter().parse(image) if field is not None]
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = list(columns) if columns is not None else next(reader, [])
            for field, needed in [("image", fields), ("label", [label]), ("rows", list(wanted))]:
                if unknown := [column for column in needed if column not in {*header, ROW, FOLDER}]:
                    near = did_you_mean(unknown[0], header)
                    raise UserError(f"{field}: {path} has no column {unknown[0]!r}{near}; it has {', '.join(header)}")
            for number, cells in enumerate(row for row in reader if row):
                if len(cells) != len(header):
                    raise UserError(f"path: {path}, line {reader.line_num}: {len(cells)} cells, {len(header)} wanted")
                row = {ROW: str(number), **dict(zip(header, cells))}
                key = image.format_map(row)
                row.setdefault(FOLDER, Path(key).parent.name)
                if all(_fits(row[column], condition) for column, condition in wanted.items()):
                    yield key, row[label]
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"path: {path}, line {reader.line_num}: {one_line(error)}") from error


def _fits(value: str, condition: Any) -> bool:
    if isinstance(condition, Mapping):
        return str(condition.get("from", "")) <= value and ("below" not in condition or value < str(condition["below"]))
    return value in [str(one) for one in (condition if isinstance(condition, list) else [condition])]


def check_rows(rows: Rows | None, field: str) -> None:
    """Raise UserError for a condition that is none."""
    for column, condition in (rows or {}).items():
        if isinstance(condition, Mapping) and (not condition or set(condition) - {"from", "below"}):
            raise UserError(f"{field}.{column}: {dict(condition)} is no range; give from and below, compared as text")
        if condition is None or condition == []:
            raise UserError(f"{field}.{column} is empty; give a value, a list of values, or from and below")


def inaturalist_set(root: str | Path, *, own_split: str, name: str, split: str) -> FileSet:
    """One split of iNaturalist as its competitions give it: a json with images, annotations and categories.

    Labels are the category ids, which must run from 0.

    Args:
        root: folder that the json lies in, and that its file names are relative to.
        own_split: the json, e.g. "train2018.json".
        name: the data set's.
        split: "train" or "test".

    Raises:
        UserError: the json is missing or has another layout, or a picture or a category has no annotation.
    """
    wanted = f"{own_split} and the pictures that it names (train_val2018/...)"
    folder = existing_folder(root, wanted=wanted)
    path = existing_file(folder / own_split, wanted=wanted)
    try:
        content = json.loads(path.read_bytes())
        label_of = {int(row["image_id"]): int(row["category_id"]) for row in content["annotations"]}
        categories = {int(row["id"]): str(row["name"]) for row in content["categories"]}
        files = {int(row["id"]): str(row["file_name"]) for row in content["images"]}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"path: {path} is no iNaturalist json ({type(error).__name__}: {one_line(error)})") from error
    if sorted(categories) != list(range(len(categories))):
        raise UserError(f"path: {path}: category ids must be 0 to {len(categories) - 1}")
    if missing := [key for number, key in files.items() if number not in label_of]:
        raise UserError(f"path: {path}: no annotation for {first(missing)}")
    label_N = np.array([label_of[number] for number in files], dtype=np.int64)
    if empty := sorted(set(categories) - set(label_N.tolist())):
        raise UserError(f"path: {path}: {len(empty)} classes have no picture: {first(categories[c] for c in empty)}")
    if unknown := sorted(set(label_N.tolist()) - set(categories)):
        raise UserError(f"path: {path}: annotations name category {unknown[0]}, which is not listed")
    names = [categories[number] for number in range(len(categories))]
    return FileSet(folder, keys=PackedStrings(files.values()), label_N=label_N, classes=names, name=name, split=split)
