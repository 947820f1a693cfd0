"""What the probe's 14 settings cost: all at once against one alone, on cached features and on pictures encoded every time.

    python -m benchmarks.probe_grid

Steps of both are timed in turns, in one run, on the same batches; the best and the median of the rounds are reported.

Shape letters: B batch, T tokens, D width.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.output import write_result
from evals.data.augment import AugmentTransform
from evals.encoder import TokenEncoder
from evals.load import load_encoder
from evals.probe.config import ProbeConfig
from evals.probe.module import ProbeBatch, ProbeModule
from pretrain.data.terminal import run_command

OUT = Path("benchmarks/results/probe_grid.json")
#: One setting in the middle of the grid.
SINGLE = {"lrs": (3e-4,), "weight_decays": (0.1,)}


@dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
        name: of the table's row.
        encoder: spec; its tokens' number and width are those of the features.
        batch_size: B.
        num_classes: C.
        augmented: whether a step draws, augments and encodes its pictures.
    """

    name: str
    encoder: str
    batch_size: int
    num_classes: int
    augmented: bool


CASES = (
    Case("cached, nano (64 tokens of 128), 10 classes", "random:timm:aimv2_nano_patch4_32", 512, 10, False),
    Case("cached, tiny (64 tokens of 192), 100 classes", "random:timm:aimv2_tiny_patch14_112", 512, 100, False),
    Case("augmented, nano at 32 pixels, 10 classes", "random:timm:aimv2_nano_patch4_32", 256, 10, True),
    Case("augmented, tiny at 112 pixels, 100 classes", "random:timm:aimv2_tiny_patch14_112", 64, 100, True),
)


class Step:
    """One training step of a probe, as the LightningModule takes it."""

    def __init__(self, config: ProbeConfig, encoder: TokenEncoder, case: Case) -> None:
        torch.manual_seed(0)
        self.module = ProbeModule(
            config, embed_dim=encoder.embed_dim, num_classes=case.num_classes, steps_per_epoch=100, encoder=encoder
        )
        built = self.module.configure_optimizers()
        self.optimizer, self.scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]

    def __call__(self, batch: ProbeBatch) -> None:
        self.module.losses(batch).sum().backward()
        self.module.configure_gradient_clipping(self.optimizer)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()


def make_batch(case: Case, encoder: TokenEncoder) -> Callable[[int], ProbeBatch]:
    """The batch of a step: the same rows of features each time, or pictures that are augmented anew."""
    rng = np.random.default_rng(0)
    size = encoder.transform.spec.img_size
    label_B = torch.from_numpy(rng.integers(0, case.num_classes, case.batch_size))
    index_B = torch.arange(case.batch_size)
    if not case.augmented:
        rows, columns = encoder.grid(size, size)
        # float16, as rows of the cache are
        stored = rng.normal(size=(case.batch_size, rows * columns, encoder.embed_dim)).astype(np.float16)
        return lambda step: ProbeBatch(torch.from_numpy(stored).float(), None, label_B, index_B)
    images = [Image.fromarray(rng.integers(0, 256, (size * 2, size * 2, 3), dtype=np.uint8)) for _ in range(16)]
    augment = AugmentTransform(encoder.transform.spec, 0)

    def pictures(step: int) -> ProbeBatch:
        drawn = [augment(images[index % 16], epoch=step, index=index) for index in range(case.batch_size)]
        return ProbeBatch(None, torch.stack(drawn), label_B, index_B)

    return pictures


def time_case(case: Case, *, rounds: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Seconds of a step with all settings and with one, taken in turns; the first round warms up and is not counted."""
    encoder = load_encoder(case.encoder)
    config = ProbeConfig()
    steps = {"all": Step(config, encoder, case), "one": Step(replace(config, **SINGLE), encoder, case)}
    batch_of = make_batch(case, encoder)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            started = clock()
            step(batch_of(number))
            if number:
                seconds[name].append(clock() - started)
    return summarise(case, seconds, num_settings=len(config.settings()))


def summarise(case: Case, seconds: dict[str, list[float]], *, num_settings: int) -> dict[str, Any]:
    """Best and median times in ms, and their ratios: all / one, and all / (settings * one)."""
    result: dict[str, Any] = {"case": case.name, "augmented": case.augmented, "rounds": len(seconds["all"])}
    for kind, function in (("best", min), ("median", np.median)):
        both, one = float(function(seconds["all"])), float(function(seconds["one"]))
        result |= {f"{kind}_all_ms": 1000 * both, f"{kind}_one_ms": 1000 * one}
        result |= {f"{kind}_over_one": both / one, f"{kind}_over_{num_settings}_single": both / (num_settings * one)}
    return result


def show(results: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="14 settings of the attentive probe in one computation; best (median) of the rounds")
    for column in (
        "step",
        "14 settings, ms",
        "one setting, ms",
        "14 over one",
        "14 over fourteen single steps",
        "rounds",
    ):
        table.add_column(column)
    for result in results:
        pairs = [
            (f"{{best_{key}:{form}}}" + f" ({{median_{key}:{form}}})").format(**result)
            for key, form in (("all_ms", ".0f"), ("one_ms", ".0f"), ("over_one", ".2f"), ("over_14_single", ".2f"))
        ]
        table.add_row(result["case"], *pairs, str(result["rounds"]))
    return table


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.probe_grid", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=15, help="steps of each kind that are timed")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(args)

    def run() -> None:
        results = []
        for case in CASES:
            print(f"{case.name} ...", file=sys.stderr, flush=True)
            results.append(time_case(case, rounds=options.rounds))
        write_result(options.out, {"results": results})
        Console(width=None if sys.stdout.isatty() else 140).print(show(results))

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
