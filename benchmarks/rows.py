"""Results files read in whatever state they are: what holds is a row with its line, what does not is a problem with its line."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.tables import Problem
from evals.results import KEY, EvalResult

SEAL = "seal"
_SEAL_DIGITS = 16
#: Of each field that must have it: test and what to give. `value`, `interval` and `details` are looked at on their own.
_TYPES = {
    str: (lambda value: isinstance(value, str), "text"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (lambda value: _is_count(value), "a whole number, 0 or more"),
    float: (lambda value: is_number(value) and value >= 0, "a finite number, 0 or more"),
    int | None: (lambda value: value is None or _is_count(value), "a whole number, 0 or more, or null"),
    float | None: (
        lambda value: value is None or (is_number(value) and value >= 0),
        "a finite number, 0 or more, or null",
    ),
}
#: Endings of metrics' names that are units; all other metrics are percent (evals.results.EvalResult), but for those of `_BOUNDS`.
_UNITS = (
    *(
        "_words",
        "_points",
        "_ms",
        "_s",
        "_gib",
        "_mib",
        "_flops",
        "_samples",
        "_steps",
        "_params",
        "_pixels",
        "_tokens",
    ),
    *("_ce", "_mse", "_nats", "_loss", "_ratio"),
)
#: CIDEr-D is 100 times a mean of 0 to 10.
_BOUNDS = {"cider_d": (0.0, 1000.0)}
#: 100 may come out of a mean of floats as a little more.
_ROUNDING = 1e-6
_SHOWN = 60


@dataclass(frozen=True)
class NumberedRow:
    """A row of results and where it stands.

    Attributes:
        row: what it says.
        line: in the file, counted from 1.
        file: which.
    """

    row: EvalResult
    line: int
    file: str


@dataclass(frozen=True)
class Rows:
    """What one or several files hold.

    Attributes:
        rows: that count, in the order of files and lines.
        problems: of all that does not, in the same order.
    """

    rows: tuple[NumberedRow, ...]
    problems: tuple[Problem, ...]


def _digest(row: dict[str, Any]) -> str:
    # through JSON once before keys are sorted: the numbers among a dict's keys are text in a file, and 10 sorts before 2 there
    plain = json.loads(json.dumps(row))
    if isinstance(plain.get("details"), dict):
        plain["details"].pop(SEAL, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:_SEAL_DIGITS]


def seal(row: dict[str, Any]) -> dict[str, Any]:
    """The row with details["seal"], the start of the SHA-256 of its JSON without the seal: edits show, forgeries do not.

    A row whose seal was taken away reads as an older one.

    Args:
        row: of results, as `dataclasses.asdict` gives it; left as it is.
    """
    return {
        **row,
        "details": {**(row.get("details") or {}), SEAL: _digest({**row, "details": row.get("details") or {}})},
    }


def read_rows(path: str | Path, *, must_exist: bool = False) -> Rows:
    """All rows of a results file that hold; all else is reported, nothing raises. Older rows have no seal.

    A row that is there twice counts once; rows of one key (evals.results.KEY) with different numbers do not count at all.

    Args:
        path: lines of JSON, as `evals.results.append` writes them.
        must_exist: whether an absent file is a problem; otherwise it has no rows.
    """
    return _settle(*_read_lines(Path(path), must_exist=must_exist))


def read_all(folder: str | Path, *, must_exist: bool = False) -> Rows:
    """As `read_rows`, of all *.jsonl of a folder by their names' order; a row may be there twice in two files as in one."""
    folder = Path(folder)
    if not folder.is_dir():
        missing = must_exist or folder.exists()
        return Rows(
            (), (Problem(str(folder), None, "is no folder; give one with *.jsonl files of results"),) if missing else ()
        )
    rows: list[NumberedRow] = []
    problems: list[Problem] = []
    for path in sorted(folder.glob("*.jsonl")):
        own, wrong = _read_lines(path, must_exist=True)
        rows += own
        problems += wrong
    return _settle(rows, problems)


def fault_of(row: dict[str, Any]) -> str | None:
    """What `read_rows` would say against a row, and what would be right; None for one that holds."""
    try:
        _parse(json.dumps(row).encode(), is_open=False)
    except _BadRow as error:
        return str(error)
    return None


def _read_lines(path: Path, *, must_exist: bool) -> tuple[list[NumberedRow], list[Problem]]:
    file = str(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], [Problem(file, None, "there is no such file; give a results file")] if must_exist else []
    except OSError as error:
        return [], [Problem(file, None, f"cannot be read ({error.strerror}); give a file of lines of JSON")]
    rows, problems = [], []
    # by bytes: str.splitlines also cuts at characters that may stand in a JSON string
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(NumberedRow(_parse(line, is_open=number == len(lines)), number, file))
        except _BadRow as error:
            problems.append(Problem(file, number, str(error)))
    return rows, problems


class _BadRow(Exception):
    """What is wrong with a line, and what would be right."""


def _parse(line: bytes, *, is_open: bool) -> EvalResult:
    content = _load(line, is_open=is_open)
    names = {one.name: one for one in fields(EvalResult)}
    if unknown := [name for name in content if name not in names]:
        raise _BadRow(f"field {_show(unknown[0])} is unknown; known are {', '.join(names)}")
    needed = [one.name for one in names.values() if one.default is MISSING and one.default_factory is MISSING]
    if missing := [name for name in needed if name not in content]:
        raise _BadRow(f"field {', '.join(map(repr, missing))} is missing; a row has {', '.join(needed)}")
    details = content.get("details", {})
    if not isinstance(details, dict):
        raise _BadRow(f"details is {_show(details)}; give a mapping")
    if SEAL in details and details[SEAL] != (digest := _digest(content)):
        raise _BadRow(
            f"the row was changed after it was written: its seal is {_show(details[SEAL])}, its content makes {digest!r};"
            " restore the line or run it again"
        )
    for name, one in names.items():
        if name not in ("value", "interval", "details") and not _TYPES[one.type][0](content[name]):
            raise _BadRow(f"{name} is {_show(content[name])}; give {_TYPES[one.type][1]}")
    _check_numbers(content)
    if content.get("interval") is not None:
        content["interval"] = tuple(float(bound) for bound in content["interval"])
    return EvalResult(**{**content, "value": float(content["value"])})


def _load(line: bytes, *, is_open: bool) -> dict[str, Any]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise _BadRow(
            f"byte {error.start + 1} is not UTF-8 (0x{line[error.start]:02x}); a row is one line of JSON in UTF-8"
        ) from error
    if "\0" in text:
        raise _BadRow(f"{text.count(chr(0))} NUL bytes, which a crash of the machine leaves; a row is one line of JSON")
    try:
        content = json.loads(text, object_pairs_hook=_once)
        # what JSON can escape and UTF-8 can not write (half of a surrogate pair) would stop whoever prints it
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _BadRow("text in it has half of a surrogate pair; give whole characters") from error
    except (ValueError, RecursionError) as error:
        end = "the last line, without its end: cut short while it was written? " if is_open else ""
        raise _BadRow(f"{end}this is no JSON ({error}); a row is one whole line of JSON") from error
    if not isinstance(content, dict):
        raise _BadRow(f"{_show(content)} is no row; a row is a JSON object")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise _BadRow(f"field {_show(twice[0])} is there twice; give it once")
    return dict(pairs)


def _check_numbers(content: dict[str, Any]) -> None:
    value, interval = content["value"], content.get("interval")
    if not is_number(value):
        raise _BadRow(f"value is {_show(value)}; give a finite number")
    low, high = _bounds(content)
    if not low - _ROUNDING <= value <= high + _ROUNDING:
        raise _BadRow(f"value is {value!r}, and {content['metric']} lies in {low:g}..{high:g}")
    if interval is None:
        return
    if not isinstance(interval, list) or len(interval) != 2 or not all(map(is_number, interval)):
        raise _BadRow(f"interval is {_show(interval)}; give two finite numbers or null")
    if interval[0] > interval[1]:
        raise _BadRow(f"interval is {_show(interval)}; give the lower bound first")


def _bounds(content: dict[str, Any]) -> tuple[float, float]:
    metric = content["metric"]
    if metric.endswith(_UNITS):
        return -math.inf, math.inf
    low, high = _BOUNDS.get(metric, (0.0, 100.0))
    return (-high, high) if content["task"].endswith("_difference") else (low, high)


def is_number(value: Any) -> bool:
    """Whether a value read from a file is a finite number, no truth value and no text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _settle(rows: Iterable[NumberedRow], problems: Iterable[Problem]) -> Rows:
    """Rows of one key become one or none."""
    by_key: dict[tuple[Any, ...], list[NumberedRow]] = {}
    for row in rows:
        # two arms of a study may come to the same weights: as many samples at equal compute, say
        by_key.setdefault((*row.row.key(), row.row.details.get("arm")), []).append(row)
    kept, found = [], list(problems)
    for same in by_key.values():
        numbers = {(one.row.value, one.row.interval, one.row.n) for one in same}
        if len(numbers) == 1:
            kept.append(same[0])
        found += _doubled(same) if len(numbers) == 1 else [_conflict(same)]
    # files in the order they were read, lines within each in theirs
    order = {file: place for place, file in enumerate(dict.fromkeys(one.file for one in (*rows, *found)))}
    return Rows(tuple(kept), tuple(sorted(found, key=lambda one: (order[one.file], one.line or 0))))


def _doubled(same: list[NumberedRow]) -> Iterator[Problem]:
    first = same[0]
    for one in same[1:]:
        what = "the same row as" if one.row == first.row else "the same key and number as"
        yield Problem(one.file, one.line, f"{what} {_place(first, one)}; it counts once, remove one of them")


def _conflict(same: list[NumberedRow]) -> Problem:
    *others, last = same
    said = ", ".join(f"{_place(one, last)} says {_number(one.row)}" for one in others)
    key = ", ".join(f"{name} {_show(getattr(last.row, name))}" for name in KEY)
    return Problem(
        last.file,
        last.line,
        f"says {_number(last.row)}, {said}, of the same key ({key}); none counts, remove those that are wrong",
    )


def _number(row: EvalResult) -> str:
    interval = "" if row.interval is None else f" [{row.interval[0]!r}, {row.interval[1]!r}]"
    return f"{row.value!r}{interval} (n = {row.n})"


def _place(one: NumberedRow, beside: NumberedRow) -> str:
    return f"line {one.line}" if one.file == beside.file else f"{one.file}, line {one.line}"
