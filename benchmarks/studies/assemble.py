"""Studies as sections of the report: rows of results become means, paired differences and verdicts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.reference import load_reference, reference_notes, reference_rows
from benchmarks.rows import NumberedRow, read_rows
from benchmarks.statistics import holm, judge, mean_interval, p_value, paired_difference, summarise
from benchmarks.studies.arms import arm_of, eval_key
from benchmarks.studies.config import RowConfig, StudyConfig
from benchmarks.studies.ledger import job_of
from benchmarks.studies.load import FOLDER, load_study
from benchmarks.tables import Cell, Problem, Row, Section, Table, Trace, Verdict
from evals.configs import config_names
from pretrain.files import write_atomically
from pretrain.types import UserError

#: Of a results folder.
FILE = "ablations.jsonl"
#: Beside it: studies as they were before their first runs.
REGISTERED = "studies"
#: Rows of results by seed.
BySeed = Mapping[int, NumberedRow]


def register(studies: Iterable[StudyConfig], results: Path) -> None:
    """Keep each study's file beside the results as it is before its first run: what it claims then is what counts.

    Args:
        studies: that are about to run.
        results: file of the rows.
    """
    for study in studies:
        kept = results.parent / REGISTERED / f"{study.name}.yaml"
        if not kept.exists():
            write_atomically(kept, study.text.encode())


def sections(results: Path, *, folder: Path = FOLDER) -> tuple[list[Section], list[Problem]]:
    """Every study of which more than the base was run, and what could not be read.

    Args:
        results: folder of results; it has the files of studies as they were before their first runs, too.
        folder: of studies.
    """
    found = read_rows(results / FILE)
    problems, made, seen = list(found.problems), [], set[tuple[str, int]]()
    own = [path for path in sorted((results / REGISTERED).glob("*.yaml")) if path.stem not in config_names(folder)]
    for path in [*(folder / f"{name}.yaml" for name in config_names(folder)), *own]:
        try:
            study = load_study(str(path))
            numbers = _Numbers(study, found.rows)
            seen |= {(one.file, one.line) for one in numbers.all()}
            section = _section(study, numbers, extra=_changed_claims(study, results / REGISTERED))
        except UserError as error:
            problems.append(Problem(str(path), None, str(error)))
            continue
        ours = [row for table in section.tables for row in table.rows if row.origin == "ours" and not row.is_base]
        if any(cell.n for row in ours for cell in row.cells):
            made.append(section)
    # an evaluation makes more rows than a study has columns: a job that no study has any row of is an orphan
    jobs = {job_of(one.row) for one in found.rows if (one.file, one.line) in seen}
    orphans = [one for one in found.rows if one.row.details.get("arm") is not None and job_of(one.row) not in jobs]
    if orphans:
        labels = ", ".join(sorted({one.row.details.get("arm_label", "?") for one in orphans}))
        message = (
            f"{len(orphans)} rows are of no study as it stands now ({labels}): of other settings of base or evaluation"
        )
        problems.append(Problem(str(results / FILE), None, message))
    return made, problems


def _changed_claims(study: StudyConfig, registered: Path) -> tuple[str, ...]:
    path = registered / f"{study.name}.yaml"
    if not path.is_file() or load_study(str(path)).claims == study.claims:
        return ()
    return (f"Its claims were changed after its first run: {path.as_posix()} has those of before.",)


class _Numbers:
    """Rows of results by row and column of a study."""

    def __init__(self, study: StudyConfig, rows: Iterable[NumberedRow]) -> None:
        self._keys = {row.name: arm_of(study, row, seed=0).key for row in study.rows}
        wanted = {
            (eval_key(one), column.task, column.dataset, column.split, column.metric): name
            for one in study.evals.values()
            for name, column in one.columns.items()
        }
        self._found: dict[tuple[str, str], dict[int, NumberedRow]] = {}
        for one in rows:
            row, details = one.row, one.row.details
            column = wanted.get((details.get("eval_key"), row.task, row.dataset, row.split, row.metric))
            if column is not None and "arm" in details:
                self._found.setdefault((details["arm"], column), {})[row.seed] = one  # of two, the later one

    def of(self, row: str, column: str) -> BySeed:
        return self._found.get((self._keys[row], column), {})

    def values(self, row: str, column: str) -> dict[int, float]:
        return {seed: one.row.value for seed, one in sorted(self.of(row, column).items())}

    def all(self) -> list[NumberedRow]:
        keys = set(self._keys.values())
        return [one for (arm, _), seeds in self._found.items() if arm in keys for one in seeds.values()]


def study_section(study: StudyConfig, rows: Sequence[NumberedRow]) -> Section:
    """A study's table, with published rows below ours, and its verdicts.

    Args:
        study: which.
        rows: of results; those of other studies and evaluations are left alone.

    Raises:
        UserError: a reference table or column that there is not.
    """
    return _section(study, _Numbers(study, rows))


def _section(study: StudyConfig, numbers: _Numbers, *, extra: tuple[str, ...] = ()) -> Section:
    reference, notes = _reference(study)
    table = Table(
        name=study.name,
        title=f"{study.title}: means over seeds",
        columns=tuple(study.column(name).title for name in study.columns),
        rows=(*(_row(study, row, numbers) for row in study.rows), *reference),
        notes=(*_notes(study, numbers), *extra, *notes),
    )
    verdicts = _verdicts(study, numbers)
    text = (study.question, f"Base: {study.base.as_posix()}. Each row changes one field of it, over the same seeds.")
    return Section(f"study_{study.name}", study.title, text, (table,), verdicts)


def _row(study: StudyConfig, row: RowConfig, numbers: _Numbers) -> Row:
    base = study.rows[0]
    cells = tuple(
        _cell(
            numbers.of(row.name, column),
            {} if row is base else numbers.values(base.name, column),
            row.needs_weights,
        )
        for column in study.columns
    )
    return Row(row.name, cells, is_base=row is base, detail=_detail(study, row, numbers))


def _cell(found: BySeed, base: Mapping[int, float], is_frozen: bool) -> Cell:
    if not found:
        return Cell(note="weights not given" if is_frozen else "not run")
    values = {seed: one.row.value for seed, one in sorted(found.items())}
    summary = summarise(list(values.values()))
    difference = paired_difference(values, base)
    only = next(iter(found.values())).row
    return Cell(
        value=summary.mean,
        std=summary.std,
        n=summary.n,
        interval=mean_interval(list(values.values())) or only.interval,
        difference=None if difference is None else difference.mean,
        difference_interval=None if difference is None else difference.interval,
        traces=tuple(_trace(one) for _, one in sorted(found.items())),
    )


def _trace(one: NumberedRow) -> Trace:
    details = one.row.details
    command = "; ".join(details[name] for name in ("pretrain_command", "whole_command") if details.get(name))
    return Trace(one.file, one.line, command or one.row.command, one.row.value, one.row.seed)


def _detail(study: StudyConfig, row: RowConfig, numbers: _Numbers) -> str:
    if row.frozen is not None:
        return f"{row.frozen}, frozen" + (" as released" if row.needs_weights else "")
    change = "; ".join(f"{name}: {_plain(value)}" for name, value in study.overrides(row).items())
    parts = [change or "the base"]
    if row.budget == "flops":
        parts.append("as many FLOPs as the base")
    found = [one.row for column in study.columns for one in numbers.of(row.name, column).values()]
    if found and found[0].samples_seen is not None:
        parts.append(f"{found[0].samples_seen:,} samples")
    if found and found[0].training_flops is not None:
        parts.append(f"{found[0].training_flops / 1e12:.1f} TFLOPs of training")
    return "; ".join(parts)


def _plain(value: object) -> str:
    """A field's value in a line, as YAML has it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_plain(one)}" for name, one in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _reference(study: StudyConfig) -> tuple[list[Row], list[str]]:
    tables, rows, notes = load_reference(), [], []
    for name, columns in study.reference.items():
        rows += reference_rows(tables[name], {column: columns.get(column) for column in study.columns})
        notes += reference_notes(tables[name])
    return rows, notes


def _notes(study: StudyConfig, numbers: _Numbers) -> list[str]:
    found = numbers.all()
    if not found:
        return ["None of it was run."]
    notes = [
        "Mean ± deviation (n - 1) over seeds; differences are to the first row, paired by seed, with their 95% t interval."
    ]
    if all(one.row.synthetic for one in found):
        notes.append(
            "Pre-trained and evaluated on generated scenes (synthetic), at nano size: no claim about photographs or large models."
        )
    counts = {len(numbers.of(row.name, column)) for row in study.rows for column in study.columns}
    if len(counts - {0}) > 1:
        notes.append(f"Rows have different numbers of seeds (n = {', '.join(map(str, sorted(counts - {0})))}).")
    missing = [row.name for row in study.rows if not any(numbers.of(row.name, column) for column in study.columns)]
    if missing:
        notes.append(f"Not run: {', '.join(missing)}.")
    for what, versions in (
        ("evaluated", {one.row.code_hash for one in found}),
        ("trained", {code for one in found if (code := one.row.details.get("pretrain_code"))}),
    ):
        if len(versions) > 1:
            notes.append(f"Rows were {what} by {len(versions)} versions of the code ({', '.join(sorted(versions))}).")
    return notes


def _verdicts(study: StudyConfig, numbers: _Numbers) -> tuple[Verdict, ...]:
    """One for each claim, each at its own 5%; the evidence has the p value over all claims of the study as well (Holm)."""
    base = study.rows[0].name
    differences = [
        paired_difference(numbers.values(claim.row, claim.column), numbers.values(claim.than or base, claim.column))
        for claim in study.claims
    ]
    p_values = [
        None if one is None else p_value(one, claim.rule) for one, claim in zip(differences, study.claims, strict=True)
    ]
    adjusted = iter(holm([p for p in p_values if p is not None]))
    verdicts = []
    for claim, difference, p in zip(study.claims, differences, p_values, strict=True):
        outcome, evidence = judge(difference, claim.rule)
        if p is not None:
            evidence += f"; p = {next(adjusted):.2g} over the study's claims (Holm)"
        detectable = None if difference is None else difference.detectable
        verdicts.append(Verdict(claim.sentence(base), outcome, evidence, detectable, claim.source))
    return tuple(verdicts)
