"""The report's part on scaling: tables of runs and fits, and their pictures, from rows in results/scaling/*.jsonl."""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.power_law import JointLaw
from benchmarks.scaling.fits import Fit, all_fits
from benchmarks.scaling.plots import cost_figure, flops_figure, samples_figure, sizes_of
from benchmarks.scaling.rows import NumberedRow, ScalingRow, read_rows
from benchmarks.statistics import mean_interval, summarise
from benchmarks.tables import Cell, Figure, Problem, Row, Section, Table, Trace
from pretrain.types import UserError

FOLDER = "scaling"
#: Losses that laws are fitted to, where the rows have them.
FITTED = ("loss", "text_ce", "image_mse")
_AGAINST = {
    "samples": "samples",
    "params": "encoder parameters",
    "flops": "FLOPs of training",
    "joint": "parameters and samples",
}
_UNITS = {"loss": "weighted sum", "text_ce": "nats a token"}


def _trace(one: NumberedRow, value: float) -> Trace:
    return Trace(one.file, one.line, one.row.command, value, one.row.seed)


def _cell(rows: Sequence[NumberedRow], value: Callable[[ScalingRow], float | None]) -> Cell:
    """Mean over seeds with deviation, interval and traces."""
    found = [(one, number) for one in rows if (number := value(one.row)) is not None]
    if not found:
        return Cell(note="not given")
    numbers = [number for _, number in found]
    try:
        summary = summarise(numbers)
    except UserError:
        return Cell(note="not finite", traces=tuple(_trace(one, number) for one, number in found))
    interval = mean_interval(numbers) if summary.n > 1 else None
    traces = tuple(_trace(one, number) for one, number in found)
    return Cell(summary.mean, summary.std, summary.n, interval, traces=traces)


def _title(metric: str) -> str:
    default = "squared error a normalised pixel" if metric.startswith("image_mse") else "nats"
    return f"val/{metric} ({_UNITS.get(metric, default)})"


def _groups(rows: Sequence[NumberedRow]) -> list[tuple[str, int, list[NumberedRow]]]:
    """Rows of the same size and budget, by size and budget."""
    return [
        (size, budget, [one for one in rows if (one.row.size, one.row.budget) == (size, budget)])
        for size in sizes_of(rows)
        for budget in sorted({one.row.budget for one in rows if one.row.size == size})
    ]


def metrics_of(rows: Sequence[NumberedRow]) -> list[str]:
    """Names of the rows' losses, those that are fitted first."""
    names = {name for one in rows for name in one.row.val}
    first = [name for name in FITTED if name in names]
    return first + sorted(names - set(first))


def quality_table(study: str, rows: Sequence[NumberedRow], notes: tuple[str, ...]) -> Table:
    """Validation losses of each size and budget."""
    metrics = metrics_of(rows)
    lines = tuple(
        Row(
            f"{size}, {budget:,} samples",
            tuple(_cell(own, lambda row, metric=metric: row.val.get(metric)) for metric in metrics),
            detail=f"{own[0].row.encoder_params:,} encoder parameters; trunk left at step {own[0].row.start:,}",
        )
        for size, budget, own in _groups(rows)
    )
    title = f"Scaling, {study}: validation loss"
    return Table(f"scaling_{_word(study)}_loss", title, tuple(map(_title, metrics)), lines, notes, digits=3)


def cost_table(study: str, rows: Sequence[NumberedRow]) -> Table:
    """What each size and budget costs."""
    columns: dict[str, Callable[[ScalingRow], float | None]] = {
        "encoder (thousand parameters)": lambda row: row.encoder_params / 1e3,
        "objective (thousand parameters)": lambda row: row.objective_params / 1e3,
        "training (TFLOPs)": lambda row: None if row.training_flops is None else row.training_flops / 1e12,
        "training (seconds)": lambda row: row.seconds,
        "speed (images/s)": lambda row: row.samples_seen / row.seconds if row.seconds else None,
    }
    lines = tuple(
        Row(f"{size}, {budget:,} samples", tuple(_cell(own, value) for value in columns.values()))
        for size, budget, own in _groups(rows)
    )
    notes = (
        "Cost is that of the run trained alone, trunk and cool-down together; seconds are training alone at the speed of the "
        "cool-down, on the cores that a worker had.",
    )
    return Table(f"scaling_{_word(study)}_cost", f"Scaling, {study}: cost", tuple(columns), lines, notes, digits=1)


def _fit_row(fit: Fit) -> list[Row]:
    label = f"val/{fit.metric} against {_AGAINST[fit.kind]}, {fit.label}"
    traces = tuple(_trace(one, one.row.val[fit.metric]) for one in fit.rows)
    law = fit.law
    if law is None:
        return [Row(label, (Cell(note="not fitted"),) * 3, detail=fit.note)]

    def cells(alpha: float, interval: tuple[float, float] | None) -> tuple[Cell, ...]:
        exponent = Cell(alpha, n=law.n, interval=interval, note="" if interval else "no interval", traces=traces)
        E = Cell(law.E, n=law.n, interval=law.interval_E, traces=traces)
        return exponent, E, Cell(law.r2, n=law.n, traces=traces)

    if isinstance(law, JointLaw):
        return [
            Row(f"{label}: of parameters", cells(law.alpha, law.interval_alpha), detail=fit.note),
            Row(f"{label}: of samples", cells(law.beta, law.interval_beta), detail=fit.note),
        ]
    return [Row(label, cells(law.alpha, law.interval_alpha), detail=fit.note)]


def fit_table(study: str, fits: Sequence[Fit]) -> Table:
    """Exponents with their 95% intervals."""
    notes = [
        "L(x) = E + A x^-exponent, fitted to n runs, those of all seeds; in brackets the 95% interval. Cool-downs of one trunk "
        "share its noise, which resampling one by one does not see: with few seeds, intervals over samples are too narrow.",
        "A row where E is 0 without an interval was fitted without E (the points did not determine it): its exponent is a "
        "slope within the range of its points and says nothing beyond them.",
    ]
    notes += sorted({f"{fit.kind}, {fit.label}, val/{fit.metric}: {fit.note}" for fit in fits if fit.law is None})
    lines = tuple(row for fit in fits for row in _fit_row(fit))
    columns = ("exponent (1)", "E (unit of the loss)", "R2 of log loss (1)")
    return Table(
        f"scaling_{_word(study)}_fits", f"Scaling, {study}: power laws", columns, lines, tuple(notes), digits=3
    )


def _word(study: str) -> str:
    return study.replace("-", "_")


def _latest(rows: Sequence[NumberedRow]) -> tuple[list[NumberedRow], list[str]]:
    """The last row of each (size, budget, seed), and notes on what that means."""
    last = {(one.row.size, one.row.budget, one.row.seed): one for one in rows}
    kept = list(last.values())
    notes = []
    if len(kept) < len(rows):
        notes.append(
            f"{len(rows) - len(kept)} earlier rows of the same size, budget and seed, of other code or settings, are left out."
        )
    if (codes := len({one.row.code_hash for one in kept})) > 1:
        notes.append(f"The rows come from {codes} states of the code.")
    return kept, notes


def study_section(study: str, rows: Sequence[NumberedRow]) -> Section:
    """All of one study; `rows` is not empty."""
    rows, notes = _latest(rows)
    seeds = sorted({one.row.seed for one in rows})
    metrics = [name for name in FITTED if name in metrics_of(rows)]
    fits = [fit for metric in metrics for fit in all_fits(rows, metric)]
    notes.append(f"Mean and deviation over seeds; seeds: {', '.join(map(str, seeds))}; {len(rows)} runs.")
    figures: tuple[Figure, ...] = ()
    if metrics:
        name = _word(study)
        figures = (
            samples_figure(rows, fits, study=name, metrics=metrics),
            flops_figure(rows, fits, study=name, metrics=metrics),
            cost_figure(rows, study=name, metric=metrics[0]),
        )
    shares = ", ".join(f"{one:.0%}" for one in sorted({round(1 - one.row.start / one.row.steps, 2) for one in rows}))
    text = (
        "How does loss fall with size, samples and compute? For each size and seed one trunk runs under a half cosine; for each "
        f"budget a branch leaves it and cools down over {shares} of the budget's steps (paper, section 3.1).",
    )
    tables = (quality_table(study, rows, tuple(notes)), cost_table(study, rows), fit_table(study, fits))
    return Section(f"scaling_{_word(study)}", f"Scaling: {study}", text, tables, (), figures, figures_first=True)


def sections(results: Path) -> tuple[list[Section], list[Problem]]:
    """A section for each study in results/scaling/*.jsonl, and all that could not be read; raises for no content of a file."""
    found: list[Section] = []
    problems: list[Problem] = []
    for path in sorted((results / FOLDER).glob("*.jsonl")):
        name = f"{FOLDER}/{path.name}"
        rows, wrong = read_rows(path, file=name)
        problems += wrong
        for study in dict.fromkeys(one.row.study for one in rows):
            try:
                found.append(study_section(study, [one for one in rows if one.row.study == study]))
            except (
                UserError,
                ValueError,
                ArithmeticError,
                TypeError,
                LookupError,
                AttributeError,
            ) as error:  # one study's odd numbers must not take the report down
                problems.append(
                    Problem(name, None, f"study {study!r} cannot be shown ({type(error).__name__}: {error})")
                )
    return found, problems
