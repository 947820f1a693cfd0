"""Curves and last pictures of the runs that lie on this machine: they are not committed, so that there may be none."""

import tempfile
from pathlib import Path

from benchmarks.tables import Figure, Problem

#: Pages are mailed around: only the newest runs are shown, and how many are left out is said.
MAX_RUNS = 4
MAX_BYTES = 1 << 20


def finished_runs(runs: Path) -> list[Path]:
    """Folders of finished pre-training runs, newest first; links (runs/latest) are of runs that are there anyway."""
    if not runs.is_dir():
        return []
    there = [path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()]
    found = [path for path in there if (path / "summary.json").is_file() and any(path.glob("metrics*.csv"))]
    return sorted(found, key=lambda path: (-(path / "summary.json").stat().st_mtime, path.name))


def _curves(shown: list[Path]) -> bytes:
    from benchmarks.curves import draw  # matplotlib, only where there is something to draw

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "curves.png"
        draw(shown, out)
        return out.read_bytes()


def run_figures(runs: Path) -> tuple[list[Figure], str, list[Problem]]:
    """Figures, a line that says which runs they are of, and what could not be drawn."""
    there = finished_runs(runs)
    shown = there[:MAX_RUNS]
    figures, problems = [], []
    if shown:
        names = ", ".join(run.name for run in shown)
        try:
            caption = f"Learning curves of {names}, with the baselines. Made of metrics*.csv of each run"
            figures.append(Figure("run_curves", caption, _curves(shown), "image/png"))
        except (OSError, ValueError, KeyError) as error:
            problems.append(
                Problem(str(runs), None, f"curves of {names} could not be drawn: {type(error).__name__}: {error}")
            )
    for run in shown:
        pictures = sorted((run / "pictures").glob("step_*.png"))
        if pictures and pictures[-1].stat().st_size <= MAX_BYTES:
            caption = (
                f"Held-out pictures, predicted patches and captions of {run.name} at its end. File: {pictures[-1]}"
            )
            name = f"run_{run.name.lower()}_pictures"
            figures.append(Figure(name, caption, pictures[-1].read_bytes(), "image/png"))
    left = f"; {len(there) - len(shown)} older ones are not" if len(there) > len(shown) else ""
    return figures, f"The {len(shown)} newest finished pre-training runs are shown{left}.", problems
