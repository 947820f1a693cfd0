"""The report: tables, claims and pictures of all results as one HTML page, and as Markdown, LaTeX and CSV files.

python -m benchmarks.report [--results FOLDER] [--out runs/report] [--runs runs] [--strict]

Without --results it shows what was measured here, evaluations (runs/results.jsonl) and studies (runs/results), and what is
shipped (benchmarks/results), one behind the other.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report.build import collect_all, write

#: What this machine's evaluations and studies have measured, and what the repository ships.
EVALUATIONS, STUDIES, SHIPPED = Path("runs/results.jsonl"), Path("runs/results"), Path("benchmarks/results")


def default_folders() -> list[Path]:
    """Folders of results where none is named: those with something in them, and the repository's."""
    own = [EVALUATIONS.parent] if EVALUATIONS.is_file() else []
    return [*own, *([STUDIES] if STUDIES.is_dir() else []), SHIPPED]


def main(args: Sequence[str] | None = None) -> int:
    """0, also where files could not be read: the page says so. With --strict 1 then."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--results", type=Path, action="append", help="folder of results; repeatable")
    parser.add_argument("--out", type=Path, default=Path("runs/report"), help="folder that index.html goes to")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs, for their curves and pictures")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if there is any problem")
    options = parser.parse_args(args)
    results = options.results or default_folders()
    report = collect_all(results, runs=options.runs)
    said = write(report, options.out, results=results)
    for problem in report.problems:
        print(f"problem: {problem}", file=sys.stderr)
    print(f"written: {options.out / 'index.html'} ({said}, {len(report.problems)} problems)")
    return 1 if options.strict and report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
