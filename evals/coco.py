"""Detection and segmentation on COCO, or on any data in its layout: `make eval-coco`.

python -m evals coco                                              the last run next to a random encoder, on scenes, minutes
python -m evals coco --encoder runs/a --dataset coco2017 --data /my/coco --config configs/evals/mask_rcnn_vitdet_large.yaml
python -m evals coco --encoder timm:vit_base_patch16_224.dino --dataset folder --data /mine --train.backbone.frozen=true
python -m evals coco --model grounding_dino                       Grounding DINO, which is asked for the classes by name
python -m evals coco --model grounding_dino --dino mm_grounding_dino --dataset lvis_v1 --data /my/coco --encoder runs/a
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.arguments import data_arguments, encoder_arguments, output_arguments
from evals.detection.config import DetectionConfig
from evals.detection.datasets import load_detection_config
from evals.detection.intervals import Difference, paired_difference
from evals.detection.job import DetectionJob, JobConfig
from evals.detection.pages import draw_pages
from evals.detection.recipes import MODELS, Recipe, choose_recipe
from evals.detection.scoring import Outcome
from evals.encoder import card
from evals.features import default_device
from evals.imagenet import read_groups
from evals.load import load_encoder
from evals.results import EvalResult, append, code_hash, command_line, hash_of, read
from evals.tables import cell
from pretrain.cli import shorten
from pretrain.data.terminal import run_command

DEFAULT_DATASET = "scenes"
#: Grounding DINO's recipe there.
SCENES_RECIPE = "grounding_dino_scenes"
#: Metrics of rows -> columns of the table.
COLUMNS = {
    "box_ap": "box AP",
    "box_ap50": "AP50",
    "box_ap75": "AP75",
    "box_ap_small": "small",
    "box_ap_medium": "medium",
    "box_ap_large": "large",
    "box_ap_rare": "rare",
    "box_ap_common": "common",
    "box_ap_frequent": "frequent",
    "mask_ap": "mask AP",
    "mask_ap50": "AP50",
    "mask_ap75": "AP75",
    "mask_ap_rare": "rare",
    "mask_ap_common": "common",
    "mask_ap_frequent": "frequent",
}


@dataclass(frozen=True)
class Entry:
    """A detector with the label of its group and the spec of its encoder."""

    label: str
    spec: str
    outcome: Outcome


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m evals coco", description=__doc__.split("\n")[0], exit_on_error=False, allow_abbrev=False
    )
    encoder_arguments(parser)
    data_arguments(parser, default=DEFAULT_DATASET, published="coco2017")
    parser.add_argument("--model", type=str, default=MODELS[0], help=f"detector: {' or '.join(MODELS)}")
    parser.add_argument(
        "--dino",
        type=str | None,
        default=None,
        help="grounding_dino's recipe: a name in configs/evals/grounding or a .yaml; one for small encoders if none is named",
    )
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read pictures")
    output_arguments(parser)
    parser.add_class_arguments(DetectionConfig, "train")
    return parser


def given_options(parser: ArgumentParser, args: Sequence[str] | None) -> dict[str, Any]:
    """What of `--train` was given, on the command line or in a file, by name; a name with parts of its own has a dictionary."""
    return parser.parse_args(args, defaults=False).as_dict().get("train") or {}


def read_recipe(options: Namespace, dataset: str, *, given: Mapping[str, Any]) -> Recipe:
    """The detector; Grounding DINO's settings for scenes where scenes are detected and no others are named."""
    dino = options.dino
    if options.model == "grounding_dino" and dino is None and dataset == DEFAULT_DATASET:
        dino = SCENES_RECIPE
    return choose_recipe(options.model, options.train, dino=dino, given=given)


def build_job(options: Namespace, note: Callable[[str], None], *, given: Mapping[str, Any]) -> DetectionJob:
    name = options.dataset or (DEFAULT_DATASET if options.data is None else "coco2017")
    recipe = read_recipe(options, name, given=given)
    config = JobConfig(recipe, options.num_workers, options.out, options.results)
    config.check()
    allow = options.data is not None if options.allow_sizes is None else options.allow_sizes
    data = load_detection_config(name, path=options.data, allow_sizes=allow)
    train, test = data.build(with_masks=recipe.masks)
    for part, expected in ((train, data.num_train), (test, data.num_test)):
        counts = part.counts
        told = ", ".join(f"{value:,} {kind.replace('_', ' ')}" for kind, value in counts.items() if value)
        note(f"{part.name} {part.split}: {told}")
        if part.repaired:
            note(f"{part.name} {part.split}: {part.describe_repairs()}")
        if part.num_leaks:
            note(f"{part.name} {part.split}: {part.num_leaks:,} pictures are left out, the test set has them too")
        if (
            expected is not None and len(part) + part.num_leaks != expected
        ):  # with check_sizes it would have been an error
            note(
                f"{part.name}: {len(part):,} of {expected:,} pictures in {part.split}: rows call it {part.name}-partial"
            )
            train.name = test.name = f"{data.name}-partial"
    return DetectionJob(train, test, config, note=note)


def compare(job: DetectionJob, entries: Sequence[Entry], *, seed: int) -> list[tuple[str, EvalResult]]:
    """Rows of the first group's AP less each other group's, seed by seed, on the same pictures."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.label, []).append(entry)
    firsts, *others = groups.values()
    rows = []
    for first, other in ((first, other) for group in others for first, other in zip(firsts, group)):
        for kind in first.outcome.matches:
            found = paired_difference(first.outcome.matches[kind], other.outcome.matches[kind])
            for metric, difference in found.items():
                row = _difference_row(job, first, other, f"{kind}_{metric}", difference, seed=seed)
                rows.append((f"{first.label} less {other.label}", row))
    return rows


def _difference_row(
    job: DetectionJob, first: Entry, other: Entry, metric: str, difference: Difference, *, seed: int
) -> EvalResult:
    one, two = first.outcome.rows[0], other.outcome.rows[0]
    return EvalResult(
        task=f"{job.recipe.task}_difference",
        dataset=one.dataset,
        synthetic=one.synthetic,
        split=one.split,
        metric=metric,
        value=difference.value,
        n=one.n,
        seed=seed,
        encoder=one.encoder,
        objective=one.objective,
        samples_seen=one.samples_seen,
        training_flops=one.training_flops,
        config_hash=hash_of([one.config_hash, two.config_hash, two.seed]),
        checkpoint_hash=f"{one.checkpoint_hash}-{two.checkpoint_hash}",
        code_hash=code_hash(),
        run=one.run,
        command=command_line(),
        wall_s=0.0,
        interval=difference.interval,
        details={"less": two.encoder, "less_seed": two.seed, "metric_unit": "points of percent"},
    )


def summarise(
    recipe: Recipe, entries: Sequence[Entry], chance: Outcome, differences: Sequence[tuple[str, EvalResult]]
) -> Table:
    """A row for each group: mean and deviation over seeds, or of one seed the interval over pictures."""
    first = entries[0].outcome.rows[0]
    kind = "synthetic, " if first.synthetic else ""
    table = Table(title=f"{recipe.title} on {first.dataset} ({kind}{first.n:,} pictures), percent")
    labelled = [("chance (picture-blind)", chance.rows)]
    labelled += [(entry.label, entry.outcome.rows) for entry in entries]
    shown = [m for m in COLUMNS if any(row.metric == m for _, rows in labelled for row in rows)]
    table.add_column("encoder")
    for metric in shown:
        table.add_column(COLUMNS[metric], justify="right")
    for label in dict.fromkeys(label for label, _ in labelled):
        own = [row for one, rows in labelled if one == label for row in rows]
        table.add_row(escape(label), *(cell([row for row in own if row.metric == metric]) for metric in shown))
    if differences:
        table.add_section()
    for label in dict.fromkeys(label for label, _ in differences):
        own = [row for one, row in differences if one == label]
        table.add_row(escape(label), *(cell([row for row in own if row.metric == metric]) for metric in shown))
    return table


def draw(job: DetectionJob, entries: Sequence[Entry], chance: Outcome, folder: Path) -> list[Path]:
    """Pages of pictures, of the first seed of each label."""
    outcomes = {entry.label: entry.outcome for entry in reversed(entries)}
    return draw_pages(job.test, job.truth, {entry.label: outcomes[entry.label] for entry in entries}, chance, folder)


def run(options: Namespace, *, given: Mapping[str, Any]) -> int:
    console, started = Console(stderr=True, highlight=False), time.perf_counter()

    def note(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    groups = read_groups(options)
    job = build_job(options, note, given=given)
    chance = job.chance()
    entries: list[Entry] = []
    for group in groups:
        for number, spec in enumerate(group.specs):
            encoder = load_encoder(spec, seed=options.seed + number)
            sizes, fingerprint = card(encoder), encoder.fingerprint()
            config = job.recipe.feeding()
            note(
                f"{group.label}: {spec}, {encoder.provenance.architecture}, {sizes.params / 1e6:.2f} M parameters; "
                f"canvas of {config.img_size or sizes.img_size} pixels, {config.epochs} epochs in batches of {config.batch_size}"
            )
            outcome = job.run(encoder.to(default_device()), seed=options.seed + number, fingerprint=fingerprint)
            entries.append(Entry(group.label, spec, outcome))
    differences = compare(job, entries, seed=options.seed)
    if differences:
        old = {row.key() for row in read(options.results)}
        append([row for _, row in differences if row.key() not in old], options.results)
    pages = draw(job, entries, chance, options.out / job.recipe.task / job.test.name / f"pictures-s{options.seed}")
    Console(width=None if sys.stdout.isatty() else 180).print(summarise(job.recipe, entries, chance, differences))
    for entry in entries:
        print(f"{entry.label}: {entry.outcome.folder}")
    print("pictures: " + ", ".join(map(str, pages)))
    print(
        f"{time.perf_counter() - started:.0f} s; rows: {options.results}; detectors and detections: the folders above"
    )
    return 0


def main(args: Sequence[str] | None = None) -> int:
    torch.set_float32_matmul_precision("high")
    parser = build_parser()
    try:
        options = parser.instantiate_classes(parser.parse_args(args))
        given = given_options(parser, args)
    except ArgumentError as error:
        print(f"error: {shorten(str(error))}", file=sys.stderr)
        return 2
    return run_command(lambda: run(options, given=given))
