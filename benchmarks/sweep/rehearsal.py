"""A stand-in for `python -m pretrain fit` that takes seconds: for tests, and for killing workers of a sweep many times.

It writes what a run writes (metrics.csv, checkpoints/last.ckpt, summary.json), resumes as a run does, and validates a parabola:
val/loss = (rate - 0.3)^2 + (decay - 0.5)^2 + 1 / step. Each step that it takes is a line of steps.log.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

FIELDS = ("rate", "decay", "max_steps", "step_s", "val_every", "fail")


def parse(args: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--name", default="run")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--ckpt_path")
    parser.add_argument("--print_config", action="store_true")
    for name in FIELDS:
        parser.add_argument(f"--{name}", type=float)
    return parser.parse_args(args)


def write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text)
    os.replace(beside, path)


def validate(config: dict[str, float], step: int) -> float:
    return (config["rate"] - 0.3) ** 2 + (config["decay"] - 0.5) ** 2 + 1 / step


def main(args: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if args is None else args)
    config = yaml.safe_load(options.config.read_text())
    config |= {name: value for name in FIELDS if (value := getattr(options, name)) is not None}
    if options.print_config:
        print(yaml.safe_dump(config))
        return 0
    if config.get("fail"):
        print(f"error: fail={config['fail']} is not supported: give 0", file=sys.stderr)
        return 2
    run = options.runs / options.name
    checkpoint, metrics = run / "checkpoints" / "last.ckpt", run / "metrics.csv"
    if (options.ckpt_path == "last") != checkpoint.exists():
        print(f"error: --ckpt_path {options.ckpt_path} with {checkpoint}", file=sys.stderr)
        return 2
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    step = int(checkpoint.read_text()) if options.ckpt_path else 0
    if metrics.exists():
        metrics.rename(run / f"metrics_{len(list(run.glob('metrics_*.csv'))) + 1}.csv")
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    with metrics.open("w") as rows, (run / "steps.log").open("a") as log:
        rows.write("epoch,step,train/loss,val/loss\n")
        while step < config["max_steps"]:
            time.sleep(config["step_s"])
            step += 1
            log.write(f"{step}\n")
            log.flush()
            if step % config["val_every"] == 0:
                rows.write(f"0,{step},,{validate(config, step)}\n")
                rows.flush()
                write(checkpoint, str(step))
            if stopped:
                write(checkpoint, str(step))
                return 130
    write(run / "summary.json", json.dumps({"val": {"loss": validate(config, step)}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
