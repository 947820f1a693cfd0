"""Words of the commands that studies, sweeps and scaling start."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def arguments(settings: Mapping[str, Any]) -> list[str]:
    """Settings by dotted name as arguments of `python -m pretrain fit`."""
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()]


def fill_in(command: Iterable[str], *, run: str | Path, seed: int, out: str | Path) -> list[str]:
    """An evaluation's command with its {run}, {seed} and {out}."""
    marks = {"{run}": run, "{seed}": seed, "{out}": out}
    words = list(command)
    for mark, value in marks.items():
        words = [word.replace(mark, str(value)) for word in words]
    return words
