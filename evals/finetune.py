"""Full fine-tuning on a classification data set: `make finetune`.

python -m evals finetune                                          the last run next to a random encoder, on scenes, minutes
python -m evals finetune --encoder runs/a --dataset cifar10_parquet --finetune.epochs=20 --finetune.warmup_epochs=1
python -m evals finetune --config configs/evals/finetune_mae_base.yaml --encoder timm:vit_base_patch16_224.mae --data /imagenet
"""

import sys
import time
from collections.abc import Sequence

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.arguments import data_arguments, encoder_arguments, output_arguments
from evals.data.config import DatasetConfig, load_dataset_config
from evals.encoder import card
from evals.features import default_device
from evals.finetuning.config import FinetuneConfig
from evals.finetuning.job import FinetuneJob, JobConfig
from evals.imagenet import read_groups
from evals.load import load_encoder
from evals.results import EvalResult
from evals.tables import cell
from pretrain.cli import shorten
from pretrain.data.terminal import run_command

DEFAULT_DATASET = "scenes_shape"


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m evals finetune", description=__doc__.split("\n")[0], exit_on_error=False, allow_abbrev=False
    )
    encoder_arguments(parser)
    data_arguments(parser, default=DEFAULT_DATASET, published="imagenet1k")
    parser.add_argument("--num_workers", type=int, default=1, help="processes that read pictures")
    output_arguments(parser)
    parser.add_class_arguments(FinetuneConfig, "finetune")
    return parser


def read_config(options: Namespace) -> JobConfig:
    config = JobConfig(options.finetune, options.num_workers, options.out, options.results)
    config.check()
    return config


def read_dataset(options: Namespace) -> DatasetConfig:
    """Scenes where nothing is named; ImageNet-1k where only a place is."""
    name = options.dataset or (DEFAULT_DATASET if options.data is None else "imagenet1k")
    allow = options.data is not None if options.allow_sizes is None else options.allow_sizes
    return load_dataset_config(name, path=options.data, allow_sizes=allow)


def summarise(labelled: Sequence[tuple[str, list[EvalResult]]]) -> Table:
    """A row for each group: mean and deviation over seeds, or of one seed the interval over pictures.

    Args:
        labelled: a group's label with the rows of one encoder, on one data set.
    """
    first = labelled[0][1][0]
    synthetic = "synthetic, " if first.synthetic else ""
    chance = f"chance {100 / len(first.details['per_class']):.1f}"
    table = Table(title=f"Fine-tuned on {first.dataset} ({synthetic}{chance}): percent right on the test set")
    for column in ("encoder", "top1", "top5", "mean per class", "held out, by epoch", "pictures"):
        table.add_column(column)
    for label in dict.fromkeys(label for label, _ in labelled):
        own = [row for one, rows in labelled if one == label for row in rows]
        by_metric = {m: [r for r in own if r.metric == m] for m in ("top1", "top5", "mean_per_class")}
        curves = [_curve(row.details["held_out_top1"]) for row in by_metric["top1"]]
        table.add_row(escape(label), *map(cell, by_metric.values()), "\n".join(curves), f"{own[0].n:,}")
    return table


def _curve(values: Sequence[float], *, most: int = 5) -> str:
    """Of the first and the last epochs."""
    told = [f"{value:.1f}" for value in values]
    return " ".join(told if len(told) <= most else [told[0], "...", *told[1 - most :]])


def run(options: Namespace) -> int:
    console, started = Console(stderr=True, highlight=False), time.perf_counter()
    config, dataset = read_config(options), read_dataset(options)

    def note(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    labelled: list[tuple[str, list[EvalResult]]] = []
    for group in read_groups(options):
        for number, spec in enumerate(group.specs):
            encoder = load_encoder(spec, seed=options.seed + number)
            sizes, fingerprint = card(encoder), encoder.fingerprint()
            job = FinetuneJob(
                encoder.to(default_device()),
                dataset,
                config,
                seed=options.seed + number,
                note=note,
                fingerprint=fingerprint,
            )
            note(
                f"{group.label}: {spec}, {encoder.provenance.architecture}, {sizes.params / 1e6:.2f} M parameters, "
                f"{sizes.num_tokens} tokens at {sizes.img_size} pixels; {config.finetune.epochs} epochs of "
                f"{len(job.train):,} pictures"
            )
            labelled.append((group.label, job.run()))
    Console(width=None if sys.stdout.isatty() else 160).print(summarise(labelled))
    for label, rows in labelled:
        print(f"{label}: {rows[0].run}")
    print(
        f"{time.perf_counter() - started:.0f} s; rows: {config.results}; encoders, heads, predictions: the folders above"
    )
    return 0


def main(args: Sequence[str] | None = None) -> int:
    torch.set_float32_matmul_precision("high")
    parser = build_parser()
    try:
        options = parser.instantiate_classes(parser.parse_args(args))
    except ArgumentError as error:
        print(f"error: {shorten(str(error))}", file=sys.stderr)
        return 2
    return run_command(lambda: run(options))
