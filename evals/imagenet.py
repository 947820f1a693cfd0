"""Classification with frozen encoders: `make eval-imagenet`.

python -m evals imagenet                                            the last run next to a random encoder, on scenes
python -m evals imagenet --encoder runs/a --data /imagenet          on ImageNet-1k in its official folders
python -m evals imagenet --encoder ours=runs/a,runs/b --encoder random=random:runs/a,random:runs/b --dataset cifar10_parquet
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.arguments import encoder_arguments, output_arguments, place_arguments
from evals.classify import LINEAR, TASKS, ClassifyConfig, Evaluation
from evals.data.config import DatasetConfig, load_dataset_config
from evals.default_run import load_or_train
from evals.encoder import card
from evals.features import FeatureConfig, default_device
from evals.groups import Group, parse_groups
from evals.load import load_encoder
from evals.probe.config import ProbeConfig
from evals.results import EvalResult
from evals.tables import cell
from pretrain.cli import shorten
from pretrain.data.terminal import run_command
from pretrain.types import UserError

LATEST = "runs/latest"
DEFAULT_DATASETS = ("scenes_shape", "scenes_shape_color")


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m evals imagenet", description=__doc__.split("\n")[0], exit_on_error=False, allow_abbrev=False
    )
    encoder_arguments(parser)
    parser.add_argument(
        "--dataset", type=str | list[str] | None, default=None, help="name or file of a data set, or a list of them"
    )
    place_arguments(parser, published="imagenet1k")
    parser.add_argument("--tasks", type=list[str] | None, default=None, help=f"of {', '.join(TASKS)}")
    parser.add_argument("--shots", type=list[int], default=[1, 5, 10])
    parser.add_argument("--num_draws", type=int, default=5)
    parser.add_argument(
        "--best_on_test", type=bool, default=False, help="also the best setting on the test set, labelled so"
    )
    output_arguments(parser)
    parser.add_class_arguments(ProbeConfig, "probe")
    parser.add_class_arguments(ProbeConfig, "linear")
    parser.add_class_arguments(FeatureConfig, "features")
    linear = {f"linear.{name}": getattr(LINEAR, name) for name in ("lrs",)} | {"linear.head.kind": "linear"}
    parser.set_defaults(linear)
    return parser


def read_config(options: Namespace) -> ClassifyConfig:
    """The evaluation's settings; augmented probes leave the other tasks out unless they are named."""
    probe = options.probe
    tasks = options.tasks or (("attentive_probe",) if probe.mode == "augmented" else TASKS)
    config = ClassifyConfig(
        tasks=tuple(tasks),
        probe=probe,
        linear=options.linear,
        shots=tuple(options.shots),
        num_draws=options.num_draws,
        best_on_test=options.best_on_test,
        features=options.features,
        out=options.out,
        results=options.results,
    )
    config.check()
    return config


def read_datasets(options: Namespace) -> list[DatasetConfig]:
    """Scenes where nothing is named; ImageNet-1k where only a place is."""
    named = [options.dataset] if isinstance(options.dataset, str) else options.dataset
    names = named or (DEFAULT_DATASETS if options.data is None else ("imagenet1k",))
    if options.data is not None and len(names) > 1:
        raise UserError(f"--data names one place: give one --dataset with it, not {len(names)}")
    allow = options.data is not None if options.allow_sizes is None else options.allow_sizes
    return [load_dataset_config(name, path=options.data, allow_sizes=allow) for name in names]


def read_groups(options: Namespace) -> list[Group]:
    """The encoders; where none is named, the last run and a random encoder of its architecture."""
    if options.encoder:
        return parse_groups(options.encoder)
    load_or_train(LATEST, seed=options.seed)
    run = Path(LATEST).resolve().name
    return [Group(f"{LATEST} ({run})", (LATEST,)), Group("random, same architecture", (f"random:{LATEST}",))]


#: (task, metric) -> column of the table.
COLUMNS = {
    ("attentive_probe", "top1"): "attentive top1",
    ("attentive_probe", "top5"): "top5",
    ("attentive_probe", "top1_best_on_test"): "top1, best setting on test",
    ("linear_probe", "top1"): "linear top1",
    ("knn", "top1"): "k-NN",
    ("few_shot", "top1_1shot"): "1-shot",
    ("few_shot", "top1_5shot"): "5-shot",
    ("few_shot", "top1_10shot"): "10-shot",
}


def summarise(labelled: Sequence[tuple[str, list[EvalResult]]]) -> Table:
    """One table, a row for each data set and group: mean and deviation over seeds, or of one seed the interval over pictures.

    Args:
        labelled: a group's label with the rows of one encoder on one data set.
    """
    rows = [row for _, found in labelled for row in found]
    shots = {key: key[1].removeprefix("top1_") for row in rows if (key := (row.task, row.metric))[0] == "few_shot"}
    columns = {
        key: title for key, title in {**COLUMNS, **shots}.items() if any((r.task, r.metric) == key for r in rows)
    }
    table = Table(title="Frozen encoders: percent right on the test set")
    for column in ("data set", "encoder", *columns.values(), "pictures"):
        table.add_column(column)
    for dataset in dict.fromkeys(row.dataset for row in rows):
        table.add_section()
        for label in dict.fromkeys(label for label, _ in labelled):
            own = [row for one, found in labelled if one == label for row in found if row.dataset == dataset]
            if own:
                cells = [cell([row for row in own if (row.task, row.metric) == key]) for key in columns]
                table.add_row(_about(dataset, rows), escape(label), *cells, f"{own[0].n:,}")
    return table


def _about(dataset: str, rows: Sequence[EvalResult]) -> str:
    """The data set's name, whether it is synthetic, and what guessing scores."""
    own = [row for row in rows if row.dataset == dataset]
    classes = next((len(row.details["per_class"]) for row in own if "per_class" in row.details), None)
    notes = ["synthetic"] * own[0].synthetic + ([f"chance {100 / classes:.1f}"] if classes else [])
    return dataset + (f"\n[dim]{', '.join(notes)}[/dim]" if notes else "")


def run(options: Namespace) -> int:
    console, started = Console(stderr=True, highlight=False), time.perf_counter()
    config, datasets = read_config(options), read_datasets(options)

    def note(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    labelled: list[tuple[str, list[EvalResult]]] = []
    for group in read_groups(options):
        for number, spec in enumerate(group.specs):
            encoder = load_encoder(spec, seed=options.seed + number).to(default_device())
            sizes, fingerprint = card(encoder), encoder.fingerprint()
            console.print(
                f"[bold]{escape(group.label)}[/bold]: {escape(spec)}, {escape(encoder.provenance.architecture)}, "
                f"{sizes.params / 1e6:.2f} M parameters, "
                f"{sizes.num_tokens} tokens of {sizes.embed_dim} at {sizes.img_size} pixels"
            )
            for dataset in datasets:
                evaluation = Evaluation(
                    encoder, dataset, config, seed=options.seed + number, note=note, fingerprint=fingerprint
                )
                labelled.append((group.label, evaluation.run()))
    Console(width=None if sys.stdout.isatty() else 160).print(summarise(labelled))
    print(
        f"{time.perf_counter() - started:.0f} s; rows: {config.results}; heads, predictions and scores by class: {config.out}; "
        f"features: {config.features.folder} (may be deleted)"
    )
    return 0


def main(args: Sequence[str] | None = None) -> int:
    torch.set_float32_matmul_precision("high")
    parser = build_parser()
    try:
        parsed = parser.parse_args(args)
        options = parser.instantiate_classes(parsed)
    except ArgumentError as error:
        print(f"error: {shorten(str(error))}", file=sys.stderr)
        return 2
    return run_command(lambda: run(options))
