"""What an encoder costs to use: latency, throughput, parameters, FLOPs, tokens and memory, side by side.

    python -m benchmarks.inference [--size large|base] [--encoders SPEC ...] [--img-sizes 224 336 448] [--precision bf16]

AIMv2, CLIP, SigLIP and DINOv2 architectures of one class with random weights, from normalised pixels to the picture's vector,
pooling included, heads and projections behind it not. Models of one picture size are timed in turn, round by round, so that a
noisy machine disturbs all alike; rounds go on until the budget is spent. Ratios are against the first model of the same size.

Shape letters: B batch, C channels, H/W pixels.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from rich.progress import Progress
from torch import Tensor, nn

from benchmarks.inference_memory import peak_growth_mib
from benchmarks.inference_models import (
    DTYPES,
    IMG_SIZES,
    SIZES,
    Case,
    Cost,
    count_cost,
    make_images,
    pass_once,
    ready,
)
from benchmarks.inference_table import markdown, show
from benchmarks.output import write_result
from pretrain.data.terminal import progress_bar
from pretrain.files import write_atomically
from pretrain.types import UserError

#: Pictures at once for the throughput, where nothing else is asked for. On a CPU a large model gains nothing from more, and
#: has time for more rounds.
BATCH_SIZES = {"cpu": 2, "cuda": 64}


def seconds(function: Callable[[], Any], *, device: str) -> float:
    """Time of one call; on a GPU between two events, the device being done before and after."""
    if device == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def in_turn(
    passes: Sequence[Callable[[], float]],
    *,
    budget_s: float,
    max_rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    advance: Callable[[], None] = lambda: None,
) -> list[list[float]]:
    """Run the passes in turn, round by round; what each of them returned, by round.

    There is one round at least, and no more is begun than fit in the budget if it takes as long as those before it.
    """
    taken: list[list[float]] = [[] for _ in passes]
    start = clock()
    for done in range(max_rounds):
        if done and (clock() - start) * (done + 1) / done > budget_s:
            break
        for run_pass, times in zip(passes, taken, strict=True):
            times.append(run_pass())
            advance()
    return taken


def time_models(
    models: Sequence[nn.Module],
    pairs: Sequence[tuple[Case, Cost]],
    *,
    batch_size: int,
    device: str,
    budget_s: float,
    max_rounds: int,
    advance: Callable[[], None],
) -> list[dict[str, Any]]:
    """Latency and throughput of models on one device, timed in turn: fields of a row each."""
    begin = time.perf_counter()
    passes: list[Callable[[], float]] = []
    with torch.inference_mode():
        for model, (case, cost) in zip(models, pairs, strict=True):
            for count in (1, batch_size):
                images = make_images(count, cost.img_size, precision=case.precision, device=device)
                passes.append(partial(seconds, partial(model, images), device=device))
                # a GPU and compiled code choose kernels for each shape; plain code on a CPU is warm after one picture
                eager_cpu = device == "cpu" and not case.compiled
                for _ in range(int(count == 1) if eager_cpu else 3):
                    model(images)
                    advance()
        left_s = budget_s - (time.perf_counter() - begin)
        taken = in_turn(passes, budget_s=left_s, max_rounds=max_rounds, advance=advance)
    return [
        timing_fields(single, batch, batch_size=batch_size)
        for single, batch in zip(taken[::2], taken[1::2], strict=True)
    ]


def timing_fields(single: Sequence[float], batch: Sequence[float], *, batch_size: int) -> dict[str, Any]:
    """Best and median of latency and throughput from seconds by round, of one picture and of a batch."""
    return {
        "rounds": len(single),
        "latency_ms": 1e3 * min(single),
        "latency_ms_median": 1e3 * median(single),
        "imgs_per_s": batch_size / min(batch),
        "imgs_per_s_median": batch_size / median(batch),
    }


def cuda_peak_mib(model: nn.Module, image_BCHW: Tensor) -> float:
    """Most memory that a pass allocates above weights and pictures."""
    with torch.inference_mode():
        model(image_BCHW)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model(image_BCHW)
        torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def add_ratios(rows: Sequence[dict[str, Any]]) -> None:
    """Each row's latency and throughput over those of the first row of the same picture size, best with best."""
    first: dict[int, dict[str, Any]] = {}
    for row in rows:
        base = first.setdefault(row["img_size"], row)
        row["against"] = base["name"]
        for name in ("latency_ms", "imgs_per_s", "latency_ms_median", "imgs_per_s_median"):
            row[f"{name}_ratio"] = row[name] / base[name]


def measure_size(
    pairs: Sequence[tuple[Case, Cost]],
    *,
    device: str,
    batch_size: int,
    deadline: float,
    max_rounds: int,
    show: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Rows of models at one picture size: memory one after the other, then times in turn until `deadline` (perf_counter)."""
    rows = []
    for case, cost in pairs:
        row = {**asdict(case), **asdict(cost), "batch_size": batch_size}
        row["weights_mib"] = cost.params * DTYPES[case.precision].itemsize / 2**20
        if device == "cpu":
            show(f"memory of {case.name} at {cost.img_size}")
            row["peak_mib"] = peak_growth_mib(partial(pass_once, case), name=f"{case.name} at {cost.img_size}")
        rows.append(row)
    text = f"timing at {pairs[0][1].img_size}"
    show(text)
    models = [ready(case, device=device) for case, _ in pairs]
    timings = time_models(
        models,
        pairs,
        batch_size=batch_size,
        device=device,
        budget_s=deadline - time.perf_counter(),
        max_rounds=max_rounds,
        advance=partial(show, text),
    )
    if device != "cpu":
        for model, row in zip(models, rows, strict=True):
            image = make_images(1, row["img_size"], precision=row["precision"], device=device)
            row["peak_mib"] = cuda_peak_mib(model, image)
    return [row | timing for row, timing in zip(rows, timings, strict=True)]


def run(
    cases: Sequence[Case], *, device: str, batch_size: int, budget_s: float, max_rounds: int, progress: Progress
) -> list[dict[str, Any]]:
    """A row for each case; cases of one picture size are held in memory together.

    Each size gets the share of the remaining budget that its FLOPs are of the remaining FLOPs.
    """
    begin = time.perf_counter()
    task = progress.add_task("counting", total=budget_s)  # seconds of the budget

    def show(text: str) -> None:
        progress.update(task, description=text, completed=min(budget_s, time.perf_counter() - begin))

    pairs = [(case, count_cost(case)) for case in cases]
    sizes = sorted({cost.img_size for _, cost in pairs})
    flops = [sum(cost.flops for _, cost in pairs if cost.img_size == size) for size in sizes]
    rows: list[dict[str, Any]] = []
    for number, size in enumerate(sizes):
        now = time.perf_counter()
        deadline = now + (begin + budget_s - now) * flops[number] / sum(flops[number:])
        chosen = [pair for pair in pairs if pair[1].img_size == size]
        rows += measure_size(
            chosen, device=device, batch_size=batch_size, deadline=deadline, max_rounds=max_rounds, show=show
        )
    add_ratios(rows)
    return rows


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--size", choices=SIZES, default="large", help="class of the four architectures")
    parser.add_argument(
        "--encoders",
        nargs="+",
        metavar="SPEC",
        help="these instead: timm names (random weights), runs, timm:..., hf:...",
    )
    parser.add_argument(
        "--img-sizes", nargs="+", type=int, metavar="PX", help="224 336 448; with --encoders each encoder's own"
    )
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--device", choices=BATCH_SIZES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, help="pictures at once for images/s; 2 on a CPU, 64 on a GPU")
    parser.add_argument("--budget-s", type=float, default=600.0, help="seconds for the whole; one round is always run")
    parser.add_argument("--rounds", type=int, default=20, help="most rounds, whatever is left of the budget")
    parser.add_argument("--compile", action="store_true", help="compiled blocks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/inference.json"))
    return parser.parse_args(args)


def make_cases(options: argparse.Namespace) -> list[Case]:
    """All models at all sizes; raises UserError for numbers that cannot be meant."""
    for name in ("batch_size", "rounds", "budget_s"):
        if (value := getattr(options, name)) is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')}={value} must be above 0")
    models = {spec: spec for spec in options.encoders} if options.encoders else SIZES[options.size]
    img_sizes = options.img_sizes or ([None] if options.encoders else IMG_SIZES)
    if any(size is not None and size < 1 for size in img_sizes):
        raise UserError(f"--img-sizes: {min(img_sizes)} must be at least 1")
    return [
        Case(name, spec, size, options.precision, options.compile)
        for size in img_sizes
        for name, spec in models.items()
    ]


def main(args: Sequence[str] | None = None) -> int:
    options = parse(args)
    begin = time.perf_counter()
    try:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device=cuda: torch sees no GPU here; give cpu")
        cases = make_cases(options)
        batch_size = options.batch_size or BATCH_SIZES[options.device]
        with progress_bar() as progress:
            rows = run(
                cases,
                device=options.device,
                batch_size=batch_size,
                budget_s=options.budget_s,
                max_rounds=options.rounds,
                progress=progress,
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    content = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "precision": options.precision,
        "compiled": options.compile,
        "batch_size": batch_size,
        "budget_s": options.budget_s,
        "wall_s": time.perf_counter() - begin,
        "rows": rows,
    }
    show(content)
    write_result(options.out, content)
    write_atomically(options.out.with_suffix(".md"), markdown(content).encode())
    print(f"written: {options.out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
