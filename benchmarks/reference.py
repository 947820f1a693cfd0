"""Published numbers by table, as benchmarks/reference.yaml holds them, and as rows that are printed beside ours."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.rows import is_number
from benchmarks.tables import Cell, Row, Trace
from pretrain.types import UserError

REFERENCE = Path(__file__).with_name("reference.yaml")
_ROOT = Path(__file__).resolve().parents[1]
_ORIGINS = ("published", "secondary")
_TABLE_FIELDS = ("title", "source", "origin", "section", "columns", "rows", "notes")
_ROW_FIELDS = ("label", "values", "source", "origin", "note")


@dataclass(frozen=True)
class ReferenceRow:
    """One published row.

    Attributes:
        label: of the model or variant.
        values: by the name of the column, as they were printed (whole numbers are int); None where none was published.
        source: paper table, README, or "secondary summary".
        origin: "published" or "secondary".
        line: of reference.yaml.
        note: about it, or "".
    """

    label: str
    values: Mapping[str, float | None]
    source: str
    origin: str
    line: int
    note: str = ""


@dataclass(frozen=True)
class ReferenceTable:
    """One published table.

    Attributes:
        name: in the file.
        title: for people.
        columns: titles by name; percent unless a title names another unit.
        rows: in the source's order.
        section: of the reference that it was taken from.
        notes: about all of it.
        file: that it stands in.
    """

    name: str
    title: str
    columns: Mapping[str, str]
    rows: tuple[ReferenceRow, ...]
    section: int
    notes: tuple[str, ...]
    file: str


@dataclass(frozen=True)
class Disagreement:
    """What published sources say differently.

    Attributes:
        item: what it is about.
        sides: (source, what it says), two or more.
    """

    item: str
    sides: tuple[tuple[str, str], ...]


def load_reference(path: str | Path = REFERENCE) -> dict[str, ReferenceTable]:
    """All tables by name.

    Raises:
        UserError: the file cannot be read, a name is there twice, a field is unknown or missing, a row has not one value for each
            column, a value is no finite number, an origin is neither published nor secondary, a source is not named.
    """
    content, lines = _read(Path(path))
    tables = content.get("tables")
    if not isinstance(tables, dict) or not tables:
        raise UserError(f"{path}: tables is missing; give tables by name")
    return {name: _table(name, values, lines.get(name, []), file=_name(Path(path))) for name, values in tables.items()}


def load_disagreements(path: str | Path = REFERENCE) -> tuple[Disagreement, ...]:
    """Where published sources disagree, each with its sides. UserError for an entry without item, or without two sides."""
    content, _ = _read(Path(path))
    found = []
    for number, one in enumerate(content.get("disagreements") or (), 1):
        where = f"{path}: disagreement {number}"
        _check_fields(one, ("item", "sides"), ("item", "sides"), where=where)
        sides = one["sides"]
        if not isinstance(sides, list) or len(sides) < 2:
            raise UserError(f"{where} ({one['item']!r}) has no two sides; give two or more of source and says")
        for side in sides:
            _check_fields(side, ("source", "says"), ("source", "says"), where=f"{where} ({one['item']!r})")
        found.append(Disagreement(one["item"], tuple((side["source"], side["says"]) for side in sides)))
    return tuple(found)


def reference_rows(table: ReferenceTable, columns: Mapping[str, str | None]) -> tuple[Row, ...]:
    """A table's rows with our columns; those without a number for any of them are left out.

    Args:
        table: of `load_reference`.
        columns: its columns' names by ours, in the order of our cells; None where it has none: such cells say "not published".

    Raises:
        UserError: a column that the table has not.
    """
    for ours, theirs in columns.items():
        if theirs is not None and theirs not in table.columns:
            raise UserError(
                f"{table.file}: table {table.name!r} has no column {theirs!r} (for our {ours!r});"
                f" there are {', '.join(table.columns)}"
            )
    rows = []
    for row in table.rows:
        cells = tuple(_cell(table, row, theirs) for theirs in columns.values())
        if any(cell.value is not None for cell in cells):
            rows.append(Row(row.label, cells, row.origin, detail=row.note))
    return tuple(rows)


def _cell(table: ReferenceTable, row: ReferenceRow, column: str | None) -> Cell:
    value = None if column is None else row.values[column]
    if value is None:
        return Cell(note="not published")
    return Cell(value, traces=(Trace(table.file, row.line, row.source, value),))


def reference_notes(table: ReferenceTable) -> tuple[str, ...]:
    """What is to be said below a table that its rows are printed in: what was published, where, and how it was made."""
    sources = dict.fromkeys(row.source for row in table.rows)
    return (f"{'; '.join(sources)}: {table.title}.", *table.notes)


def _name(path: Path) -> str:
    """From the repository's root where it lies in it, so that a report names no machine's folders."""
    return str(path.resolve().relative_to(_ROOT)) if path.resolve().is_relative_to(_ROOT) else str(path)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """The file, and the lines of the rows of each table."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no fields; it has tables and disagreements")
    # YAML keeps the last of two equal keys and says nothing
    for where, names in _keys(root, "", set()):
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{path}: {where}{twice[0]!r} is there twice; give it once")
    _check_fields(content, ("tables", "disagreements"), (), where=str(path))
    lines = {}
    for name, table in _items(_under(root, "tables")):
        rows = _under(table, "rows")
        lines[name] = [node.start_mark.line + 1 for node in rows.value] if isinstance(rows, yaml.SequenceNode) else []
    return content, lines


def _items(node: yaml.Node | None) -> list[tuple[str, yaml.Node]]:
    return [(key.value, value) for key, value in node.value] if isinstance(node, yaml.MappingNode) else []


def _under(node: yaml.Node | None, name: str) -> yaml.Node | None:
    return dict(_items(node)).get(name)


def _keys(node: yaml.Node, where: str, seen: set[int]) -> Iterator[tuple[str, list[str]]]:
    """Keys of all mappings below a node; one that is named again by an alias is looked at once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    items = _items(node)
    yield where, [name for name, _ in items]
    for name, value in items:
        yield from _keys(value, f"{where}{name}: ", seen)
    for value in node.value if isinstance(node, yaml.SequenceNode) else ():
        yield from _keys(value, where, seen)


def _check_fields(values: Any, known: tuple[str, ...], needed: tuple[str, ...], *, where: str) -> None:
    if not isinstance(values, dict):
        raise UserError(f"{where} is {values!r}; give a mapping of {', '.join(known)}")
    if unknown := [name for name in values if name not in known]:
        raise UserError(f"{where}: field {unknown[0]!r} is unknown; known are {', '.join(known)}")
    for name in needed:
        if not values.get(name):
            raise UserError(f"{where}: field {name!r} is missing or empty")
    for name in ("title", "source", "label", "item", "says", "note"):
        if name in values and not isinstance(values[name], str):
            raise UserError(f"{where}: {name} is {values[name]!r}; give text, in quotes if it looks like a number")


def _table(name: str, values: Any, lines: list[int], *, file: str) -> ReferenceTable:
    where = f"{file}: table {name!r}"
    _check_fields(values, _TABLE_FIELDS, ("title", "source", "origin", "section", "columns", "rows"), where=where)
    columns, rows = values["columns"], values["rows"]
    if not isinstance(columns, dict) or not all(isinstance(one, str) for pair in columns.items() for one in pair):
        raise UserError(f"{where}: columns is {columns!r}; give titles by name")
    if not isinstance(values["section"], int):
        raise UserError(f"{where}: section is {values['section']!r}; give the number of a section of the reference")
    if not isinstance(rows, list):
        raise UserError(f"{where}: rows is {rows!r}; give a list of rows with label and values")
    built = tuple(
        _row(row, values, columns, line, where=f"{where}, row {number}")
        for number, (row, line) in enumerate(zip(rows, lines, strict=True), 1)
    )
    labels = [row.label for row in built]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"{where}: row {twice[0]!r} is there twice; give it once")
    notes = tuple(map(str, values.get("notes") or ()))
    return ReferenceTable(name, values["title"], columns, built, values["section"], notes, file)


def _row(row: Any, table: Mapping[str, Any], columns: Mapping[str, str], line: int, *, where: str) -> ReferenceRow:
    _check_fields(row, _ROW_FIELDS, ("label", "values"), where=where)
    where, numbers = f"{where} ({row['label']!r})", row["values"]
    if not isinstance(numbers, list) or len(numbers) != len(columns):
        count = f"{len(numbers)} values" if isinstance(numbers, list) else repr(numbers)
        raise UserError(
            f"{where}: {count} to {len(columns)} columns; give one for each of {', '.join(columns)}, or null"
        )
    for column, value in zip(columns, numbers):
        if value is not None and not is_number(value):
            raise UserError(
                f"{where}, column {column!r}: {value!r} is no number; give one, or null where none is published"
            )
    origin = row.get("origin", table["origin"])
    if origin not in _ORIGINS:
        raise UserError(f"{where}: origin {origin!r} is unknown; give {' or '.join(_ORIGINS)}")
    source = row.get("source", table["source"])
    return ReferenceRow(row["label"], dict(zip(columns, numbers)), source, origin, line, row.get("note", ""))
