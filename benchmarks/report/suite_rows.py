"""Rows of evaluations as tables: one for each data set, seeds of the same thing together."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from benchmarks.rows import NumberedRow
from benchmarks.statistics import mean_interval, summarise
from benchmarks.tables import Cell, Row, Table, Trace

#: Words for metrics; others are shown by their own name.
METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean per class",
    "top1_1shot": "1-shot",
    "top1_5shot": "5-shot",
    "top1_10shot": "10-shot",
    "cider_d": "CIDEr-D x 100",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "distinct": "distinct captions",
    "repetition": "repeated 4-grams",
    "length_words": "length, words",
    "precision_at_1": "precision@1",
    "mean_iou": "mean IoU",
    "vqa_accuracy": "VQA accuracy",
}


def metric_title(name: str) -> str:
    if name in METRICS:
        return METRICS[name]
    words = name.replace("_", " ")
    return re.sub(r"\b(ap|ar)(\d*)\b", lambda found: found.group().upper(), words)


def encoder_family(row: NumberedRow) -> str:
    """The encoder without the seed at its end: runs/names-2 of seed 2 is runs/names."""
    spec = row.row.encoder
    return spec.removesuffix(f"-{row.row.seed}")


def _command_settings(row: NumberedRow) -> str:
    """The command's options but those that name the seed, the encoder or files."""
    try:
        words = shlex.split(row.row.command)
    except ValueError:  # a quote that is never closed
        return row.row.command
    kept, skip = [], False
    for word in words[3:]:
        if word.startswith("--"):
            skip = word.split("=")[0] in ("--seed", "--encoder", "--results", "--out")
        if not skip:
            kept.append(word)
    return " ".join(kept)


#: What tells two rows of one seed apart, tried in turn; the last one always does unless the rows are of the same work.
_APART: tuple[Callable[[NumberedRow], str], ...] = (
    encoder_family,
    _command_settings,
    lambda row: f"setting {row.row.config_hash[:8]}",
)


def _clashes(rows: Sequence[NumberedRow]) -> bool:
    keys = [(row.row.metric, row.row.seed) for row in rows]
    return len(set(keys)) < len(keys)


Group = tuple[tuple[str, ...], list[NumberedRow]]


def _split(rows: Sequence[NumberedRow], said: tuple[str, ...] = (), level: int = 0) -> list[Group]:
    """Groups in which a metric has one value a seed, as far as settings tell them apart, with the words that do."""
    if not _clashes(rows) or level == len(_APART):
        return [(said, list(rows))]
    apart = _APART[level]
    parts: dict[str, list[NumberedRow]] = {}
    for row in rows:
        parts.setdefault(apart(row), []).append(row)
    if len(parts) == 1:
        return _split(rows, said, level + 1)
    found: list[Group] = []
    for word, part in zip(_differing(list(parts)), parts.values(), strict=True):
        found += _split(part, (*said, *([word] if word else [])), level + 1)
    return found


def _same_from_start(lists: Sequence[Sequence[str]]) -> int:
    """How many words at their beginning all lists share."""
    return next((n for n, words in enumerate(zip(*lists)) if len(set(words)) > 1), min(map(len, lists)))


def _differing(texts: Sequence[str]) -> list[str]:
    """Texts without the words at their beginning and end that all of them have."""
    words = [text.split() for text in texts]
    start = _same_from_start(words)
    if start and words[0][start - 1].startswith("--"):  # an option stays with its value
        start -= 1
    rests = [one[start:] for one in words]
    end = _same_from_start([one[::-1] for one in rests])
    return [" ".join(one[: len(one) - end]) for one in rests]


def _cell(rows: Sequence[NumberedRow]) -> Cell:
    """Mean over seeds; of rows of the same work the later one counts, as it does where finished work is looked up."""
    latest = {row.row.seed: row for row in rows}
    replaced = len(rows) - len(latest)
    kept = [latest[seed] for seed in sorted(latest)]
    values = [row.row.value for row in kept]
    summary = summarise(values)
    interval = mean_interval(values) if len(kept) > 1 else kept[0].row.interval
    return Cell(
        value=summary.mean,
        std=summary.std,
        n=summary.n,
        interval=None if interval is None else (interval[0], interval[1]),
        note=f"{replaced} earlier rows of the same work not counted" if replaced else "",
        traces=tuple(Trace(row.file, row.line, row.row.command, row.row.value, row.row.seed) for row in kept),
    )


def _label(row: NumberedRow, said: Sequence[str]) -> str:
    task = row.row.task.replace("_", " ")
    what = {"none": "no encoder", "random": "random weights"}.get(row.row.objective, row.row.objective)
    return " · ".join([f"{task}, {what}", *said])


def _row(rows: Sequence[NumberedRow], said: Sequence[str], *, metrics: Sequence[str]) -> Row:
    first = rows[0].row
    by_metric = {metric: [row for row in rows if row.row.metric == metric] for metric in metrics}
    cells = tuple(_cell(found) if found else Cell(note="–") for found in by_metric.values())
    encoders = ", ".join(dict.fromkeys(row.row.encoder for row in rows))
    seen = "" if not first.samples_seen else f", {first.samples_seen:,} samples seen"
    return Row(_label(rows[0], said), cells, detail=f"{encoders}{seen}")


def _together(metrics_of: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Tasks by the table they go to: those whose metrics another task has as well are shown with it."""
    groups: list[list[str]] = []
    for task in sorted(metrics_of, key=lambda task: -len(metrics_of[task])):
        home = next((g for g in groups if set(metrics_of[task]) <= set(metrics_of[g[0]])), None)
        if home is None:
            groups.append([task])
        else:
            home.append(task)
    return groups


def _order(metric: str) -> int:
    """That of METRICS; others come behind, as they were written (sorting is stable)."""
    return list(METRICS).index(metric) if metric in METRICS else len(METRICS)


def _table(rows: Sequence[NumberedRow], *, name: str, title: str) -> Table:
    metrics = sorted(dict.fromkeys(row.row.metric for row in rows), key=_order)
    groups: dict[tuple, list[NumberedRow]] = {}
    for row in rows:
        groups.setdefault((row.row.task, row.row.objective, row.row.samples_seen), []).append(row)
    made = [_row(part, said, metrics=metrics) for group in groups.values() for said, part in _split(group)]
    numbers = sorted({row.row.n for row in rows})
    notes = [f"Scored: {', '.join(f'{n:,}' for n in numbers)} items of {rows[0].row.dataset}, {rows[0].row.split}."]
    if any(row.row.synthetic for row in rows):
        notes.append("Synthetic: the pictures are generated.")
    return Table(name, title, tuple(map(metric_title, metrics)), tuple(made), tuple(notes))


def _place(row: NumberedRow) -> tuple[str, str]:
    return row.row.dataset, row.row.split


def tables_of(rows: Sequence[NumberedRow], *, name: str) -> list[Table]:
    """Tables of one file's rows.

    Seeds are put together where task, objective and samples seen are the same, unless that gives a metric two values of one
    seed: then rows are told apart by encoder, by command, by settings.

    Args:
        rows: of one file, in its order.
        name: of the file without its suffix; the tables' names begin with it.
    """
    tables = []
    for (dataset, split), found in groupby(sorted(rows, key=_place), key=_place):  # the order within is kept
        part = list(found)
        metrics_of: dict[str, list[str]] = {}
        for row in part:
            metrics_of.setdefault(row.row.task, []).append(row.row.metric)
        for tasks in _together(metrics_of):
            chosen = [row for row in part if row.row.task in tasks]
            whole = f"{name}_{dataset}_{split}_{tasks[0]}"
            words = ", ".join(dict.fromkeys(row.row.task.replace("_", " ") for row in chosen))
            title = f"{dataset}, {split}: {words}"
            tables.append(_table(chosen, name=re.sub(r"[^a-z0-9]+", "_", whole.lower()).strip("_"), title=title))
    return tables
