"""A stand-in for training and evaluating, for tests and `study_kills`: takes a moment and writes what the real commands write.

python -m benchmarks.studies.rehearsal fit --config FILE --runs DIR --name NAME --max_samples N [--ckpt_path last]
python -m benchmarks.studies.rehearsal evaluate --encoder RUN --seed N --results FILE
"""

import json
import os
import sys
import time
from pathlib import Path

import yaml

from pretrain.files import write_atomically  # nothing that imports torch: a call is to take a moment

#: Environment: seconds that each half of a call takes; a file that each call adds a line to.
SECONDS, NOTES = "REHEARSAL_S", "REHEARSAL_NOTES"


def _value(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def _note(text: str) -> None:
    if NOTES in os.environ:
        with open(os.environ[NOTES], "a") as file:
            file.write(f"{text}\n")


def _wait() -> None:
    time.sleep(float(os.environ.get(SECONDS, "0")))


def fit() -> None:
    """Leaves a checkpoint half way, a summary at the end. A sample costs 3 FLOPs, of contrastive kinds 2."""
    run, samples = Path(_value("--runs")) / _value("--name"), int(_value("--max_samples"))
    objective = yaml.safe_load(Path(_value("--config")).read_text())["model"]["objective"]
    if objective.get("kind") == "broken":
        sys.exit("error: broken")
    checkpoint = run / "checkpoints" / "last.ckpt"
    if ("--ckpt_path" in sys.argv) != checkpoint.is_file():
        sys.exit("error: --ckpt_path last wants a checkpoint, and a checkpoint wants it")
    _note(f"fit {run.name}")
    _wait()
    write_atomically(checkpoint, b"")
    _wait()
    flops = {"clip": 2.0, "siglip": 2.0}.get(objective.get("kind"), 3.0)
    summary = {"samples_seen": samples, "training_flops": flops * samples, "val": {"loss": 1.0}}
    write_atomically(run / "summary.json", json.dumps(summary).encode())


def evaluate() -> None:
    """Two rows; the second one is added a moment after the first, so that a kill can fall in between."""
    run, seed = Path(_value("--encoder")), int(_value("--seed"))
    summary = json.loads((run / "summary.json").read_text())
    _note(f"evaluate {run.name}")
    for metric, value in (("top1", 50.0 + seed + len(run.name) % 7), ("top5", 90.0)):
        _wait()
        row = dict(
            task="rehearsal", dataset="nothing", synthetic=True, split="test", metric=metric, value=value, n=100, seed=seed,
            encoder=run.as_posix(), objective="aimv2", samples_seen=summary["samples_seen"],
            training_flops=summary["training_flops"], config_hash="none", checkpoint_hash=run.name, code_hash="none",
            run=run.as_posix(), command="rehearsal", wall_s=0.0,
        )  # fmt: skip
        results = Path(_value("--results"))
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    {"fit": fit, "evaluate": evaluate}[sys.argv[1]]()
