"""Sweeps in the report: their trials, the history, and which field mattered."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.output import to_svg
from benchmarks.rows import is_number
from benchmarks.sweep.summary import sealed
from benchmarks.tables import Cell, Figure, Problem, Row, Section, Table, Trace

_SVG = {"svg.hashsalt": "sweep"}
#: As many values as have room for a tick each.
_TICKS = 5
STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")


class _Broken(Exception):
    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def sections(results: Path) -> tuple[list[Section], list[Problem]]:
    """What all sweeps chose, then a section for each summary of results/sweeps/*.json.

    A file that cannot be read is a problem, never an error.
    """
    found: list[Section] = []
    chosen: list[Row] = []
    problems: list[Problem] = []
    for path in sorted((results / "sweeps").glob("*.json")):
        name = f"{results.name}/sweeps/{path.name}"
        try:
            content = _read(path)
        except _Broken as broken:
            problems.append(Problem(name, broken.line, str(broken)))
            continue
        if content.get("digest") != sealed(content)["digest"]:
            problems.append(
                Problem(name, None, "was changed after the sweep wrote it; its numbers are shown all the same")
            )
        found.append(_section(content, name))
        chosen.append(_chosen(content, name))
    overview = [_overview(chosen)] if len(found) > 1 else []
    return [*overview, *found], problems


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise _Broken(f"is no JSON ({error.msg}): half-written, or changed by hand", error.lineno) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _Broken(f"cannot be read: {error}") from error
    _want(isinstance(content, dict), "is no summary of a sweep")
    for key in ("name", "title", "command", "base", "config_hash", "importance_note"):
        _want(isinstance(content.get(key), str), f"field {key!r} is missing or no text")
    _want(isinstance(objective := content.get("objective"), dict), "field 'objective' is missing or no mapping")
    _want(isinstance(objective.get("title"), str), "field 'objective.title' is missing or no text")
    _want(
        objective.get("direction") in ("minimize", "maximize"),
        "field 'objective.direction' is neither minimize nor maximize",
    )
    _want(isinstance(content.get("space"), dict), "field 'space' is missing or no mapping")
    _want(isinstance(trials := content.get("trials"), list), "field 'trials' is missing or no list")
    for place, trial in enumerate(trials):
        _check_trial(trial, f"trial {place}")
    importance = content.get("importance")
    whole = isinstance(importance, dict) and importance and all(is_number(value) for value in importance.values())
    _want(importance is None or whole, "field 'importance' is no mapping of numbers")
    return content


def _check_trial(trial: Any, where: str) -> None:
    _want(isinstance(trial, dict) and isinstance(trial.get("number"), int), f"{where} has no number")
    _want(trial.get("state") in STATES, f"{where}: state is none of {', '.join(STATES)}")
    _want(isinstance(trial.get("params"), dict), f"{where}: params is no mapping")
    _want(trial["state"] != "COMPLETE" or is_number(trial.get("value")), f"{where} is complete and has no value")
    _want(trial.get("seconds") is None or is_number(trial["seconds"]), f"{where}: seconds is no number")
    _want(isinstance(trial.get("retries", 0), int), f"{where}: retries is no whole number")


def _want(is_right: object, message: str) -> None:
    if not is_right:
        raise _Broken(message)


def _overview(chosen: list[Row]) -> Section:
    notes = ("Best of the trials, one run for each setting: higher than another run of the same setting would be.",)
    table = Table("sweeps", "What the sweeps chose", ("defaults", "best"), tuple(chosen), notes, digits=2)
    return Section("sweeps", "Sweeps", ("Trial 0 is the base's own setting, the defaults.",), (table,))


def _chosen(content: Mapping[str, Any], file: str) -> Row:
    best = _best(content)
    cells = {trial["number"]: _value(content, trial, file) for trial in content["trials"]}
    (params,) = [trial["params"] for trial in content["trials"] if trial["number"] == best] or [{}]
    aim = f"{content['objective']['title']}, {content['objective']['direction']}d"
    detail = "; ".join([aim, *(f"{field}: {_show(one)}" for field, one in params.items())])
    nothing = Cell(note="no trial is complete")
    return Row(content["title"], (cells.get(0, nothing), cells.get(best, nothing)), detail=detail)


def _value(content: Mapping[str, Any], trial: Mapping[str, Any], file: str, note: str = "") -> Cell:
    if trial["state"] != "COMPLETE":
        return Cell(note=trial["state"].lower())
    return Cell(trial["value"], n=1, note=note, traces=(Trace(file, None, content["command"], trial["value"]),))


def _section(content: Mapping[str, Any], file: str) -> Section:
    states = [trial["state"] for trial in content["trials"]]
    counts = ", ".join(f"{states.count(state)} {state.lower()}" for state in STATES if state in states) or "none"
    space = "; ".join(f"{name}: {about}" for name, about in content["space"].items())
    text = (
        f"Searched on {content['base']}: {space}. Trial 0 is the base's own setting.",
        f"{content['objective']['title']}, {content['objective']['direction']}d. Trials: {counts}. "
        f"Importance: {content['importance_note']}.",
    )
    figures = [_history(content)] if any(trial["state"] == "COMPLETE" for trial in content["trials"]) else []
    if content.get("importance"):
        figures.append(_importance(content))
    name = f"sweep_{content['name']}"
    return Section(name, f"Sweep: {content['title']}", text, (_table(content, file, name),), figures=tuple(figures))


def _table(content: Mapping[str, Any], file: str, name: str) -> Table:
    best = _best(content)
    rows = []
    for trial in content["trials"]:
        detail = [f"{field}: {_show(one)}" for field, one in trial["params"].items()]
        if trial.get("seconds") is not None:
            detail.append(f"{trial['seconds'] / 60:.1f} min")
        if retries := trial.get("retries", 0):
            detail.append(f"taken up again {retries} times" if retries > 1 else "taken up again once")
        label = f"trial {trial['number']}" + (" (defaults)" if trial["number"] == 0 else "")
        value = _value(content, trial, file, "best" if trial["number"] == best else "")
        rows.append(Row(label, (value,), detail="; ".join(detail)))
    notes = (
        "One run for each setting: differences between close trials are noise.",
        f"Settings of the sweep: {content['config_hash']}.",
    )
    digits = 2 if content["objective"].get("eval") else 4  # percent, or a loss
    return Table(name, f"Trials of {content['title']}", (content["objective"]["title"],), tuple(rows), notes, digits)


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _best(content: Mapping[str, Any]) -> int | None:
    sign = 1 if content["objective"]["direction"] == "minimize" else -1
    complete = [trial for trial in content["trials"] if trial["state"] == "COMPLETE"]
    return min(complete, key=lambda trial: sign * trial["value"])["number"] if complete else None


def _history(content: Mapping[str, Any]) -> Figure:
    pick = min if content["objective"]["direction"] == "minimize" else max
    complete = [trial for trial in content["trials"] if trial["state"] == "COMPLETE"]
    numbers, values = [trial["number"] for trial in complete], [trial["value"] for trial in complete]
    bests = [pick(values[: n + 1]) for n in range(len(values))]
    field = _only_number(complete)
    figure, (axes, *others) = _canvas(3.2, columns=2 if field else 1)
    axes.plot(numbers, values, "o", label="complete")
    axes.step(numbers, bests, where="post", label="best so far")
    for state, marker in (("PRUNED", "x"), ("FAIL", "v")):
        own = [trial["number"] for trial in content["trials"] if trial["state"] == state]
        if own:  # they have no value to be drawn at
            axes.plot(
                own, [0.02] * len(own), marker, color="gray", transform=axes.get_xaxis_transform(), label=state.lower()
            )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("trial")
    axes.legend()
    caption = (
        f"{content['objective']['title']} of each trial by its number; trials without a value stand at the bottom."
    )
    for other in others:
        pairs = sorted((trial["params"][field], trial["value"]) for trial in complete)
        other.plot(*zip(*pairs, strict=True), "o-")
        other.set_xlabel(field)
        if pairs[0][0] > 0:
            other.set_xscale("log")
            if len(pairs) <= _TICKS:
                other.set_xticks([value for value, _ in pairs], [_show(value) for value, _ in pairs])
                other.minorticks_off()
        caption += f" Right: by {field}."
    return Figure(f"sweep_{content['name']}_history", caption, to_svg(figure, _SVG))


def _only_number(trials: Sequence[Mapping[str, Any]]) -> str | None:
    """The field that is searched, where it is only one and its values are numbers."""
    (names, *others) = {tuple(trial["params"]) for trial in trials}
    if others or len(names) != 1 or not all(is_number(trial["params"][names[0]]) for trial in trials):
        return None
    return names[0]


def _importance(content: Mapping[str, Any]) -> Figure:
    shares = sorted(content["importance"].items(), key=lambda pair: pair[1])
    figure, (axes,) = _canvas(0.8 + 0.4 * len(shares))
    axes.barh([name for name, _ in shares], [100 * share for _, share in shares])
    axes.set_xlabel("share of the variance, percent")
    caption = f"Which field the objective depends on: {content['importance_note']}."
    return Figure(f"sweep_{content['name']}_importance", caption, to_svg(figure, _SVG))


def _canvas(height: float, *, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(7, height), layout="constrained")
    return figure, figure.subplots(1, columns, sharey=True, squeeze=False)[0]
