"""How the training step's time grows with parameters, and with tokens at fixed width.

    python -m benchmarks.step_scaling [--precision bf16] [--rounds 5]

Times the whole step (forward, backward, clipping, optimiser) for encoders of growing width on 64 tokens, and for one encoder on
64 to 1,024 tokens; all sizes in turn, round by round, so that a noisy machine disturbs them alike. The exponent is the slope of
log time over log size, by least squares.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.output import write_result
from benchmarks.throughput import DTYPES, Size, make_step, seconds
from pretrain.models.decoder import DecoderConfig
from pretrain.models.sizes import swiglu_hidden_dim
from pretrain.models.vision import EncoderConfig, build_encoder

WIDTHS = (128, 192, 256, 384, 512, 768)
#: Sides of the grid of patches: 64, 144, 256, 576 and 1,024 tokens.
SIDES = (8, 12, 16, 24, 32)
FIXED_WIDTH = 192
_PATCH = 8


def encoder_config(*, embed_dim: int, side: int) -> EncoderConfig:
    """An encoder of 6 blocks with heads of 64, on `side` x `side` patches."""
    return EncoderConfig(
        "aimv2_nano_patch4_32",
        img_size=side * _PATCH,
        patch_size=_PATCH,
        embed_dim=embed_dim,
        depth=6,
        num_heads=embed_dim // 64,
        mlp_hidden_dim=swiglu_hidden_dim(embed_dim),
    )


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Slope of log time over log size."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def measure(
    configs: Sequence[EncoderConfig], *, batch_size: int, precision: str, rounds: int, progress: Progress
) -> list[float]:
    """Median seconds of each configuration's step."""
    decoder = DecoderConfig(embed_dim=128, depth=2, num_heads=2)
    steps = [make_step(Size(config, decoder, 512, batch_size), precision, dense=False)[0] for config in configs]
    task = progress.add_task(f"{len(steps)} sizes", total=(rounds + 1) * len(steps))
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds + 1):
        for step, taken in zip(steps, times, strict=True):
            taken.append(min(seconds(step) for _ in range(2)))
            progress.advance(task)
    return [median(taken[1:]) for taken in times]  # the first round warms up


def run(*, precision: str, rounds: int) -> dict[str, Any]:
    """Both series, with their exponents."""
    widths = [encoder_config(embed_dim=width, side=8) for width in WIDTHS]
    sides = [encoder_config(embed_dim=FIXED_WIDTH, side=side) for side in SIDES]
    with torch.device("meta"):
        params = [sum(p.numel() for p in build_encoder(config).blocks.parameters()) for config in widths]
    with Progress(transient=True) as progress:
        by_width = measure(widths, batch_size=16, precision=precision, rounds=rounds, progress=progress)
        by_tokens = measure(sides, batch_size=4, precision=precision, rounds=rounds, progress=progress)
    tokens = [side**2 for side in SIDES]
    return {
        "precision": precision,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "params": [
            {"embed_dim": width, "block_params": count, "step_ms": 1e3 * taken}
            for width, count, taken in zip(WIDTHS, params, by_width, strict=True)
        ],
        "params_exponent": exponent(params, by_width),
        "tokens": [{"tokens": count, "step_ms": 1e3 * taken} for count, taken in zip(tokens, by_tokens, strict=True)],
        "tokens_exponent": exponent(tokens, by_tokens),
    }


def show(result: dict[str, Any]) -> None:
    console = Console(width=110 if not sys.stdout.isatty() else None)
    for name, columns, what in (
        ("params", ("embed_dim", "block_params", "step_ms"), "encoder-block parameters, 64 tokens, batch 16"),
        ("tokens", ("tokens", "step_ms"), f"tokens, {FIXED_WIDTH} wide, batch 4"),
    ):
        console.print(f"Step time against {what}: exponent {result[f'{name}_exponent']:.2f} ({result['precision']})")
        table = Table()
        for column in columns:
            table.add_column(column, justify="right")
        for row in result[name]:
            table.add_row(*(f"{row[column]:,.0f}" for column in columns))
        console.print(table)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_scaling", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step_scaling.json"))
    options = parser.parse_args(args)
    result = run(precision=options.precision, rounds=options.rounds)
    show(result)
    write_result(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
