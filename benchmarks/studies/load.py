"""Reading studies and evaluations from YAML: whole and checked before anything is run, or refused with a line."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.fields import build
from benchmarks.reference import load_reference
from benchmarks.statistics import ClaimRule
from benchmarks.studies.config import ClaimConfig, ColumnConfig, EvalConfig, RowConfig, StudyConfig
from evals.configs import find_config, read_yaml
from pretrain.types import UserError

FOLDER = Path("configs/benchmarks")
EVALS_FOLDER = FOLDER / "evals"
_NEEDED = ("title", "question", "base", "minutes", "evals", "rows")


def read_evals(name: str, *, folder: Path = EVALS_FOLDER) -> dict[str, EvalConfig]:
    """The evaluations of configs/benchmarks/evals/NAME.yaml, or of a file.

    Raises:
        UserError: no such file, an unknown or missing field, a column given twice, a command without {run}.
    """
    path = find_config(name, folder, field="evals")
    found: dict[str, EvalConfig] = {}
    seen: set[str] = set()
    content = read_yaml(path, ["evals"])
    for key, values in (content.get("evals") or {}).items():
        where = f"{path}: evals.{key}"
        one = build(EvalConfig, values, where=where)
        columns = {
            column: build(ColumnConfig, about, where=f"{where}.columns.{column}")
            for column, about in (one.columns or {}).items()
        }
        if twice := seen & columns.keys():
            raise UserError(
                f"{where}.columns.{min(twice)} is the name of a column of another evaluation; give it another"
            )
        if not isinstance(one.command, list):
            raise UserError(f"{where}.command is {one.command!r}; give a list of module and arguments")
        if "{run}" not in " ".join(map(str, one.command)):
            raise UserError(f"{where}.command does not say where the {{run}} goes")
        seen |= columns.keys()
        found[key] = EvalConfig(tuple(map(str, one.command)), float(one.minutes), columns)
    if not found:
        raise UserError(f"{path}: evals is empty; name at least one evaluation")
    return found


def load_study(name: str, *, folder: Path = FOLDER, evals: str | None = None) -> StudyConfig:
    """configs/benchmarks/NAME.yaml, or a file.

    Args:
        name: of the study.
        folder: of studies.
        evals: evaluations in place of the study's own; all their numbers are columns then, and claims about others are left
            out. The study's name gets theirs.

    Raises:
        UserError: no such file, unknown or missing fields, wrong types, rows that change more than one field, names
            that are not there.
    """
    path = find_config(name, folder, field="study")
    content = dict(read_yaml(path, [*_NEEDED, "columns", "claims", "reference", "entry"]))
    for needed in _NEEDED:
        if not content.get(needed):
            raise UserError(f"{path}: field {needed!r} is missing")
    text = path.read_text()
    if evals is not None:
        content = _with_evals(content, evals)
        text = yaml.safe_dump(content, sort_keys=False)
    try:
        study = replace(_read_study(content, path), text=text)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: a field has the wrong type: {error}") from error
    _check_reference(study, path)
    return study if evals is None else replace(study, name=f"{study.name}-{Path(evals).stem}")


def _with_evals(content: Mapping[str, Any], evals: str) -> dict[str, Any]:
    """A study's content with other evaluations, without claims and references about columns that they have not."""
    columns = {column for one in read_evals(evals).values() for column in one.columns}
    kept = {name: value for name, value in content.items() if name != "columns"} | {"evals": evals}
    kept["claims"] = [claim for claim in content.get("claims") or () if claim.get("column") in columns]
    reference = {
        table: {own: theirs for own, theirs in mapping.items() if own in columns}
        for table, mapping in (content.get("reference") or {}).items()
    }
    kept["reference"] = {table: mapping for table, mapping in reference.items() if mapping}
    return kept


def _read_study(content: Mapping[str, Any], path: Path) -> StudyConfig:
    evals = read_evals(content["evals"])
    known = [column for one in evals.values() for column in one.columns]
    columns = tuple(content.get("columns") or known)
    if unknown := [column for column in columns if column not in known]:
        raise UserError(f"{path}: column {unknown[0]!r} is of none of the evaluations; there are {', '.join(known)}")
    rows = _read_rows(content["rows"], path)
    claims = tuple(_read_claim(values, f"{path}: claim {n}") for n, values in enumerate(content.get("claims") or (), 1))
    names = [row.name for row in rows]
    for number, claim in enumerate(claims, 1):
        for row in (claim.row, claim.than):
            if row is not None and row not in names:
                raise UserError(f"{path}: claim {number} is about row {row!r}; there are {', '.join(names)}")
        if claim.column not in columns:
            raise UserError(f"{path}: claim {number} is about column {claim.column!r}; there are {', '.join(columns)}")
    base = Path(content["base"])
    if not base.is_file():
        raise UserError(f"{path}: base {str(base)!r} is no file; give a config of python -m pretrain fit")
    return StudyConfig(
        name=path.stem,
        title=content["title"],
        question=content["question"],
        base=base,
        minutes=float(content["minutes"]),
        evals={key: one for key, one in evals.items() if any(column in columns for column in one.columns)},
        rows=rows,
        columns=columns,
        claims=claims,
        reference=content.get("reference") or {},
        entry=tuple(content.get("entry") or StudyConfig.entry),
    )


def _check_reference(study: StudyConfig, path: Path) -> None:
    """UserError for a published table or column that there is not: before anything is run, not after."""
    tables = load_reference() if study.reference else {}
    for name, columns in study.reference.items():
        if name not in tables:
            raise UserError(f"{path}: reference {name!r} is unknown; there are {', '.join(tables)}")
        for own, theirs in columns.items():
            if own not in study.columns:
                raise UserError(
                    f"{path}: reference {name}: {own!r} is no column of the study; there are {', '.join(study.columns)}"
                )
            if theirs not in tables[name].columns:
                raise UserError(
                    f"{path}: reference {name}: it has no column {theirs!r}; it has {', '.join(tables[name].columns)}"
                )


def _read_rows(values: Any, path: Path) -> tuple[RowConfig, ...]:
    rows = tuple(build(RowConfig, one, where=f"{path}: row {number}") for number, one in enumerate(values, 1))
    for row in rows:
        for name in ("change", "tuned"):
            if not isinstance(getattr(row, name), dict):
                raise UserError(
                    f"{path}: row {row.name!r}: {name} is {getattr(row, name)!r}; give fields by dotted name"
                )
    names = [row.name for row in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: row {twice[0]!r} is there twice")
    first, *others = rows
    if first.change or first.start or first.frozen or first.budget != "samples":
        raise UserError(f"{path}: the first row is the base and changes nothing but a tuned rate; {first.name!r} does")
    for row in rows:
        if wrong := [name for name in row.tuned if not name.startswith("model.optim.")]:
            raise UserError(f"{path}: row {row.name!r}: tuned is for model.optim.* alone, not {wrong[0]!r}")
    for number, row in enumerate(others, 1):
        if row.budget not in ("samples", "flops"):
            raise UserError(f"{path}: row {row.name!r}: budget {row.budget!r} is unknown; give samples or flops")
        if row.start is not None and row.start not in names[:number]:
            raise UserError(f"{path}: row {row.name!r} starts from {row.start!r}, which is no row before it")
        if row.frozen is not None:
            if row.change or row.start or row.tuned or row.budget != "samples":
                raise UserError(f"{path}: row {row.name!r} is a frozen encoder: nothing else can be given for it")
            continue
        if len(row.change) != 1 and not (row.start is not None and row.budget == "flops" and not row.change):
            raise UserError(
                f"{path}: row {row.name!r} changes {len(row.change)} fields ({', '.join(row.change)}); a row changes one"
            )
    return rows


def _read_claim(values: Any, where: str) -> ClaimConfig:
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a mapping of row, column, expect, margin, source, than")
    values = dict(values)
    try:
        rule = ClaimRule(values.pop("expect", ""), float(values.pop("margin", 0.0)))
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{where}: {error}") from error
    return build(ClaimConfig, values | {"rule": rule}, where=where)
