"""Costs that benchmarks wrote as JSON, as tables: which lists of a file, which of their numbers, in which unit."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.tables import Cell, Problem, Row, Table, Trace


@dataclass(frozen=True)
class Listing:
    """A list of measurements in a file.

    Attributes:
        file: its name.
        path: of the list in it, keys joined by dots.
        title: of the table.
        command: that writes the file.
        labels: fields that name a row.
        columns: title of each column and the field it shows.
        scale: what a field is multiplied by, where it is not 1.
        digits: behind the point.
        notes: below the table.
    """

    file: str
    path: str
    title: str
    command: str
    labels: tuple[str, ...]
    columns: Mapping[str, str]
    scale: Mapping[str, float]
    digits: int = 1
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.file.removesuffix('.json')}_{self.path.replace('.', '_')}"


_SIZE = ("size", "precision", "compiled")
LISTINGS = (
    Listing(
        "throughput.json",
        "steps",
        "Training steps",
        "python -m benchmarks.throughput",
        _SIZE,
        {
            "images/s": "imgs_per_s",
            "step, ms": "step_ms",
            "step, GFLOP": "step_gflop",
            "share of a matrix product's rate, %": "share_of_gemm",
            "times as fast as dense": "speedup_over_dense",
        },
        {"share_of_gemm": 100},
    ),
    Listing(
        "throughput.json",
        "vocabulary_loss",
        "Loss over the vocabulary: time and memory",
        "python -m benchmarks.throughput",
        ("precision", "rows", "vocab_size"),
        {
            "ours, ms": "ours.ms",
            "plain, ms": "plain.ms",
            "torch in blocks, ms": "torch, in blocks.ms",
            "ours, MiB": "ours.peak_mib",
            "plain, MiB": "plain.peak_mib",
            "torch in blocks, MiB": "torch, in blocks.peak_mib",
        },
        {},
    ),
    Listing(
        "feeding.json",
        "feeding",
        "Training fed from disk",
        "python -m benchmarks.feeding",
        ("size", "precision"),
        {"one batch repeated, images/s": "repeated_imgs_per_s", "fed, images/s": "fed_imgs_per_s", "fed, %": "share"},
        {"share": 100},
    ),
    Listing(
        "inference.json",
        "rows",
        "Inference of architectures of one class, random weights",
        "python -m benchmarks.inference",
        ("name", "img_size"),
        {
            "tokens": "tokens",
            "parameters, M": "params",
            "GFLOP": "flops",
            "latency, ms": "latency_ms",
            "latency, times AIMv2's": "latency_ms_ratio",
            "images/s": "imgs_per_s",
            "peak, MiB": "peak_mib",
        },
        {"params": 1e-6, "flops": 1e-9},
        digits=2,
    ),
    Listing(
        "probe_grid.json",
        "results",
        "All settings of the probe at once",
        "python -m benchmarks.probe_grid",
        ("case",),
        {
            "all, ms": "best_all_ms",
            "one, ms": "best_one_ms",
            "all, times one": "best_over_one",
            "all, times 14 single": "best_over_14_single",
        },
        {},
        digits=2,
    ),
    Listing(
        "step_scaling.json",
        "params",
        "Step time by parameters",
        "python -m benchmarks.step_scaling",
        ("embed_dim",),
        {"parameters of the blocks, M": "block_params", "step, ms": "step_ms"},
        {"block_params": 1e-6},
    ),
    Listing(
        "step_scaling.json",
        "tokens",
        "Step time by tokens",
        "python -m benchmarks.step_scaling",
        ("tokens",),
        {"step, ms": "step_ms"},
        {},
    ),
    Listing(
        "shard_index.json",
        "worker_rss",
        "Memory of a worker that reads shards",
        "python -m benchmarks.shard_index",
        ("samples",),
        {"resident, MiB": "rss_mib"},
        {},
    ),
)


def _at(content: Any, path: str) -> Any:
    """What lies at a path of keys joined by dots; KeyError where a key is missing."""
    for key in path.split("."):
        if not isinstance(content, Mapping) or key not in content:
            raise KeyError(path)
        content = content[key]
    return content


def _word(field: str, value: Any) -> str:
    if isinstance(value, bool):
        return field if value else f"not {field}"
    if isinstance(value, int):
        return f"{field.replace('_', ' ')} {value:,}"
    return str(value)


def _cell(entry: Mapping[str, Any], field: str, listing: Listing, *, file: str) -> Cell:
    try:
        value = _at(entry, field)
    except KeyError:
        return Cell(note="not measured")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return Cell(note=f"{value!r} is no number")
    shown = float(value) * listing.scale.get(field, 1)
    # a timing has no seed; its n is the benchmark's own affair
    return Cell(value=shown, traces=(Trace(file, None, listing.command, shown),))


def _table(content: Any, listing: Listing, *, file: str) -> Table:
    rows = []
    for entry in _at(content, listing.path):
        label = ", ".join(_word(field, entry[field]) for field in listing.labels if field in entry)
        rows.append(Row(label, tuple(_cell(entry, field, listing, file=file) for field in listing.columns.values())))
    about = [
        f"{key} {content[key]}" for key in ("device", "machine", "threads", "torch", "precision") if content.get(key)
    ]
    notes = (*listing.notes, *([f"{', '.join(about)}."] if about else []))
    return Table(listing.name, listing.title, tuple(listing.columns), tuple(rows), notes, listing.digits)


def _kills(content: Any) -> str:
    """What became of runs that were killed, and of those on a full disk."""
    kills, disk = content["kills"], content["full_disk"]
    saved = sum(bool(kill["saved"]) for kill in kills)
    after_kills = "equals" if content["killed_equals_unbroken"] else "DIFFERS FROM"
    after_full = "equals" if disk["equals_unbroken"] else "DIFFERS FROM"
    return (
        f"A run of {content['steps']:,} steps was killed {len(kills)} times at random moments, "
        f"{saved} of them after a new save, and resumed each time; its end {after_kills} that of an unbroken run. "
        f"The disk was full {disk['times']} times, with an error of one line {disk['one_line_errors']} times; the end "
        f"then {after_full} the unbroken run's. File: kills.json, made by python -m benchmarks.kills."
    )


def _study_kills(content: Any) -> str:
    """What became of a study's rows when its runner was killed."""
    return (
        f"The runner of a study of stand-ins was killed {len(content['kills'])} times at random moments and started again: of "
        f"{content['rows_wanted']} rows {content['rows_lost']} were lost and {content['rows_doubled']} doubled. "
        "File: study_kills.json, made by python -m benchmarks.study_kills."
    )


def _sweep_kills(content: Any, file: str = "sweep_kills.json") -> str:
    """What became of a sweep's trials when its workers were killed."""
    storage = content.get("storage", "sqlite").split("+")[0]
    return (
        f"Workers of a sweep ({content['what']}, its study in {storage}), or all of it, were killed "
        f"{len(content['kills'])} times at random moments: of {content['planned']} trials {content['lost']} were lost and "
        f"{content['doubled']} doubled, {content['taken_up_again']} were taken up again. "
        f"File: {file}, made by python -m benchmarks.sweep.kills."
    )


#: Files that become a paragraph.
_PARAGRAPHS: dict[str, Callable[[Any], str]] = {
    "kills.json": _kills,
    "study_kills.json": _study_kills,
    "sweep_kills.json": _sweep_kills,
    "sweep_kills_postgresql.json": partial(_sweep_kills, file="sweep_kills_postgresql.json"),
}


def _load(path: Path) -> tuple[Any, Problem | None]:
    """What a JSON file holds, or what is wrong with it and where; None and None for an absent one."""
    if not path.is_file():
        return None, None
    try:
        return json.loads(path.read_bytes()), None
    except json.JSONDecodeError as error:
        return None, Problem(str(path), error.lineno, f"this is no whole JSON file: {error.msg}, column {error.colno}")
    except UnicodeDecodeError as error:
        return None, Problem(str(path), None, f"this is no UTF-8: {error.reason} at byte {error.start}")


def costs(results: Path) -> tuple[list[str], list[Table], list[Problem]]:
    """Text, tables and problems of the benchmarks' files; a file that is absent gives nothing."""
    texts: list[str] = []
    tables: list[Table] = []
    problems: list[Problem] = []
    for name in (*dict.fromkeys(listing.file for listing in LISTINGS), *_PARAGRAPHS):
        file = str(results / name)
        content, wrong = _load(results / name)
        if wrong is not None:
            problems.append(wrong)
        if content is None:
            continue
        try:
            tables += [_table(content, listing, file=file) for listing in LISTINGS if listing.file == name]
            texts += [_PARAGRAPHS[name](content)] if name in _PARAGRAPHS else []
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            message = f"not as this version writes it: {type(error).__name__}: {error}"
            problems.append(Problem(file, None, message))
    return texts, tables, problems
