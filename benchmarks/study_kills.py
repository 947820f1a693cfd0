"""Kill the runner of a study again and again (kill -9), finish it, and count: no row may be lost, none doubled.

python -m benchmarks.study_kills [--kills 10]          stand-ins for trainings and evaluations, about two minutes
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.output import write_result
from benchmarks.rows import read_rows
from benchmarks.studies.rehearsal import NOTES, SECONDS

REHEARSAL = "benchmarks.studies.rehearsal"
METRICS = ("top1", "top5")
ROWS = ("base", "clip", "clip, compute", "weight")


def write_study(folder: Path) -> Path:
    """A study of stand-ins, as files in `folder`: a base, two rows that change one field, one at equal compute."""
    base = {"max_samples": 1600, "model": {"objective": {"kind": "aimv2"}}, "data": {"batch_size": 16}}
    column = {"title": "top-1", "task": "rehearsal", "dataset": "nothing", "metric": "top1"}
    command = [REHEARSAL, "evaluate", "--encoder", "{run}", "--seed", "{seed}"]
    study = {
        "title": "Stand-ins",
        "question": "Is a row lost or doubled?",
        "base": str(folder / "base.yaml"),
        "entry": [REHEARSAL, "fit"],
        "minutes": 0.1,
        "evals": str(folder / "evals.yaml"),
        "rows": [
            {"name": "base"},
            {"name": "clip", "change": {"model.objective": {"kind": "clip"}}},
            {"name": "clip, compute", "start": "clip", "budget": "flops"},
            {"name": "weight", "change": {"model.objective.image_weight": 0.2}},
        ],
        "claims": [{"row": "clip", "column": "top1", "expect": "lower", "source": "nobody"}],
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    evals = {"rehearsal": {"command": command, "minutes": 0.1, "columns": {"top1": column}}}
    (folder / "evals.yaml").write_text(yaml.safe_dump({"evals": evals}))
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder / "study.yaml"


def command(study: Path, *, seeds: int) -> list[str]:
    """Of the runner, on the study's own folder."""
    places = ["--runs", str(study.parent / "runs"), "--results", str(study.parent / "results.jsonl")]
    return [sys.executable, "-m", "benchmarks.ablations", str(study), "--seeds", str(seeds), "--workers", "2", *places]


def count_rows(results: Path) -> Counter[tuple[str, int, str]]:
    """How often a row stands in the file, by arm, seed and metric; lines that are no rows are not counted."""
    found: Counter[tuple[str, int, str]] = Counter()
    for line in results.read_text().splitlines() if results.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[row["details"]["arm_label"], row["seed"], row["metric"]] += 1
    return found


def kill_again_and_again(study: Path, *, kills: int, seeds: int, pause_s: float, rng: random.Random) -> dict[str, Any]:
    """Kill the runner at random moments while it works, then let it finish.

    Returns:
        kills with the rows that were there by then, and what was lost, doubled or could not be read in the end.
    """
    notes, results = study.parent / "notes.txt", study.parent / "results.jsonl"
    notes.touch()
    environment = dict(os.environ, **{NOTES: str(notes), SECONDS: str(pause_s)})
    record: list[dict[str, Any]] = []
    while len(record) < kills:
        before = notes.read_text()
        process = subprocess.Popen(
            command(study, seeds=seeds), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and notes.read_text() == before:
            time.sleep(0.02)
        wait_s = rng.uniform(0, 12 * pause_s)
        try:
            process.wait(wait_s)
            break  # it has finished: there is nothing left to kill
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        record.append({"after_s": round(wait_s, 2), "rows_by_then": sum(count_rows(results).values())})
    status = subprocess.run(
        command(study, seeds=seeds), env=environment, stdout=subprocess.DEVNULL, check=False
    ).returncode
    found = count_rows(results)
    wanted = {(row, seed, metric) for row in ROWS for seed in range(seeds) for metric in METRICS}
    return {
        "kills": record,
        "exit_status": status,
        "rows_wanted": len(wanted),
        "rows_lost": len(wanted - found.keys()),
        "rows_doubled": sum(count > 1 for count in found.values()),
        "lines_unreadable": len(read_rows(results).problems),
    }


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study_kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=4, help="of the study: how much there is to do")
    parser.add_argument("--pause", type=float, default=0.4, help="seconds that half a stand-in takes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/study_kills.json"))
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as folder:
        study = write_study(Path(folder))
        found = kill_again_and_again(
            study, kills=options.kills, seeds=options.seeds, pause_s=options.pause, rng=random.Random(0)
        )
    write_result(options.out, found)
    print(json.dumps({name: value for name, value in found.items() if name != "kills"}))
    print(f"{len(found['kills'])} kills; written: {options.out}")
    good = not any(found[name] for name in ("rows_lost", "rows_doubled", "exit_status", "lines_unreadable"))
    return 0 if good and len(found["kills"]) == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
