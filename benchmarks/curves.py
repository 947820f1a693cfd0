"""Learning curves of runs: losses in training and validation, with the baselines.

python -m benchmarks.curves RUN [RUN ...] --out FILE.png
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from pretrain.types import UserError

matplotlib.use("Agg")  # no screen is needed
from matplotlib import pyplot as plt

PANELS = {
    "caption: cross entropy per token": ("train/text_ce", "val/text_ce", "text_ce", "unigram"),
    "image: squared error per normalised pixel": (
        "train/image_mse",
        "val/image_mse_prefix50",
        "image_mse_prefix50",
        "mean patch",
    ),
}


def read_metrics(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each metric, over all attempts of a run; a step logged twice keeps its later value."""
    # metrics_1.csv, metrics_2.csv, ... are earlier attempts, metrics.csv is the last
    paths = sorted(run.glob("metrics*.csv"), key=lambda path: int((re.findall(r"\d+", path.stem) or ["1000000"])[0]))
    if not paths:
        raise UserError(f"{run} is not a run: it has no metrics.csv")
    values: dict[str, dict[int, float]] = {}
    for path in paths:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name != "step" and value:
                        values.setdefault(name, {})[int(row["step"])] = float(value)
    return {name: sorted(points.items()) for name, points in values.items()}


def smooth(values: Sequence[float], window: int = 15) -> np.ndarray:
    """Mean over a centred window, narrower at both ends."""
    half = window // 2
    return np.array([np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def draw(runs: Sequence[Path], out: Path) -> None:
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.8), layout="constrained")
    for axis, (title, (train, val, baseline, baseline_name)) in zip(axes, PANELS.items(), strict=True):
        top = 0.0
        for number, run in enumerate(runs):
            metrics, color = read_metrics(run), f"C{number}"
            if train not in metrics:
                continue
            steps, losses = zip(*metrics[train], strict=True)
            axis.plot(steps, smooth(losses), color=color, alpha=0.5, lw=1)
            if val in metrics:
                axis.plot(*zip(*metrics[val], strict=True), "o-", color=color, ms=4, label=run.name)
            value = json.loads((run / "summary.json").read_text())["baseline"].get(baseline)
            if value is not None:
                axis.axhline(value, color=color, ls=":", label=f"{baseline_name} baseline" if number == 0 else None)
                top = max(top, value)
        axis.set(title=title, xlabel="step", ylim=(0, 1.15 * top or None))
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.suptitle("line: training, smoothed; points: validation; dotted: baseline", fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.curves", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(args)
    try:
        draw(options.runs, options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
