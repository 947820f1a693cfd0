"""Kill a run again and again, fill its disk while it saves, resume it to the end each time: the weights must be those of a run
that nothing happened to, bit for bit.

    python -m benchmarks.kills [--kills 50] [--full-disks 10]

One small run on generated scenes with two loader workers saves at every second step. A kill is `kill -9` of the process at a
random moment from its start on, so that it falls into start-up, training and saving alike. For a full disk the run's folder
lies on a small file system that is filled to the last byte at a random moment and freed again once the run has given up;
that takes root, and is left out, with a word, where mounting is refused.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.output import write_result
from pretrain.export import load_pretrained
from pretrain.run import checkpoint_path

CONFIG = {
    "seed_everything": 11,
    "trainer": {
        "max_steps": 1500,
        "val_check_interval": 1000,
        "enable_progress_bar": False,
        "accelerator": "cpu",
    },
    "model": {
        "encoder": {"name": "aimv2_nano_patch4_32", "embed_dim": 32, "depth": 2, "mlp_hidden_dim": 64},
        "objective": {"decoder": {"embed_dim": 32, "depth": 1, "num_heads": 2}},
        "optim": {"lr": 1e-3, "warmup_steps": 10},
    },
    "data": {
        "batch_size": 8,
        "num_workers": 2,
        "num_val": 8,
        "vocab_size": 300,
        "train": {"kind": "scenes", "levels": {"one": 1.0, "word": 1.0}, "captions": {"full": 1.0}},
    },
    "checkpoint": {"every_n_train_steps": 2},
    "pictures": {"num_images": 1, "every_n_steps": 0},
}
#: Room on the small file system: a checkpoint, one more while it is written, logs and the export.
_DISK_MIB = 8


class Run:
    """The run under test: started, resumed, killed.

    Args:
        folder: that holds runs.
        name: of the run.
    """

    def __init__(self, folder: Path, name: str, config: Path) -> None:
        self.path = folder / name
        self._command = [sys.executable, "-m", "pretrain", "fit", "--config", str(config), "--runs", str(folder)]
        self._command += ["--name", name]
        self._log = folder.parent / f"{name}.log"

    def start(self) -> subprocess.Popen[bytes]:
        resume = ["--ckpt_path", "last"] if checkpoint_path(self.path).exists() else []
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self._log.open("ab") as log:
            # a group of its own, so that the loader's workers can be swept up with it
            return subprocess.Popen(
                [*self._command, *resume], stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def finish(self) -> None:
        """Resume to the end; RuntimeError with the log's last line where it fails."""
        if self.start().wait() != 0:
            raise RuntimeError(f"the run did not finish: {self._log.read_text().splitlines()[-1]}")

    def step(self) -> int:
        """Step of the last checkpoint; it has to be whole."""
        path = checkpoint_path(self.path)
        return torch.load(path, weights_only=True)["global_step"] if path.exists() else 0


def kill_group(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:  # workers notice only when they next look for their parent
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def kill_again_and_again(run: Run, *, kills: int, rng: random.Random, progress: Progress) -> list[dict[str, Any]]:
    """Kill the run `kills` times, every third time while it starts, else while it trains and saves.

    Returns:
        For each kill: seconds after the start, whether the run had saved by then, and the last checkpoint's step.
    """
    task, events = progress.add_task("kill -9", total=kills), []
    checkpoint, start_s = checkpoint_path(run.path), 10.0
    while len(events) < kills:
        saved_at = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        began, process = time.monotonic(), run.start()
        in_training = bool(len(events) % 3)
        deadline = None if in_training else began + rng.uniform(0.0, start_s)
        saved = False
        while process.poll() is None and (deadline is None or time.monotonic() < deadline):
            if not saved and checkpoint.exists() and checkpoint.stat().st_mtime_ns != saved_at:
                saved, start_s = True, time.monotonic() - began
                deadline = deadline or time.monotonic() + rng.uniform(0.0, 1.0)
            time.sleep(0.002)
        if process.poll() is not None:
            raise RuntimeError(f"the run ended by itself ({process.returncode}) before it was killed {kills} times")
        kill_group(process)
        events.append({"after_s": round(time.monotonic() - began, 2), "saved": saved, "step": run.step()})
        progress.update(task, advance=1)
    return events


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of a few MiB; None where it cannot be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def fill_again_and_again(run: Run, disk: Path, *, times: int, rng: random.Random, progress: Progress) -> int:
    """Fill the run's disk `times` times; returns how often the run gave up with its one line."""
    task, gave_up = progress.add_task("full disk", total=times), 0
    filler = disk / "filler"
    for _ in range(times):
        before, process = run.step(), run.start()
        while process.poll() is None and run.step() == before:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.5))
        with filler.open("wb", buffering=0) as file, suppress(OSError):  # full, as wanted
            while True:
                file.write(bytes(4096))
        status = process.wait(timeout=120)
        gave_up += status == 2
        filler.unlink()
        run.step()
        progress.update(task, advance=1)
    return gave_up


def same_weights(one: Path, two: Path) -> bool:
    a, b = (load_pretrained(path) for path in (one, two))
    return all(
        torch.equal(x, y)
        for first, second in ((a.encoder, b.encoder), (a.objective, b.objective))
        for x, y in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kills", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--full-disks", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kills.json"))
    options = parser.parse_args(args)
    rng = random.Random(options.seed)
    result: dict[str, Any] = {"steps": CONFIG["trainer"]["max_steps"]}
    with tempfile.TemporaryDirectory() as temporary, Progress(transient=True) as progress:
        folder = Path(temporary)
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(CONFIG))
        unbroken, killed = (Run(folder / "runs", name, config) for name in ("unbroken", "killed"))
        unbroken.finish()
        result["kills"] = kill_again_and_again(killed, kills=options.kills, rng=rng, progress=progress)
        killed.finish()
        result["killed_equals_unbroken"] = same_weights(unbroken.path, killed.path)
        with small_disk(folder / "disk") as disk:
            if disk is None:
                result["full_disk"] = "not tried: a file system could not be mounted"
            else:
                filled = Run(disk / "runs", "filled", config)
                filled._log = folder / "filled.log"
                gave_up = fill_again_and_again(filled, disk, times=options.full_disks, rng=rng, progress=progress)
                filled.finish()
                equal = same_weights(unbroken.path, filled.path)
                result["full_disk"] = {
                    "times": options.full_disks,
                    "one_line_errors": gave_up,
                    "equals_unbroken": equal,
                }
    show(result)
    write_result(options.out, result)
    ok = result["killed_equals_unbroken"] and (disk is None or result["full_disk"]["equals_unbroken"])
    return 0 if ok else 1


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"A run of {result['steps']} steps that is broken off and resumed")
    for column in ("what", "times", "weights equal to the unbroken run's"):
        table.add_column(column)
    steps = [event["step"] for event in result["kills"]]
    table.add_row(
        f"kill -9, steps {min(steps)} to {max(steps)}", str(len(steps)), str(result["killed_equals_unbroken"])
    )
    full = result["full_disk"]
    row = ("-", full) if isinstance(full, str) else (str(full["times"]), str(full["equals_unbroken"]))
    table.add_row("disk full while it saves", *row)
    Console(width=110 if not sys.stdout.isatty() else None).print(table)


if __name__ == "__main__":
    sys.exit(main())
