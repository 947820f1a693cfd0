"""Grounding of referring expressions: `make eval-refcoco`.

python -m evals refcoco                                          the last run next to a random encoder, on scenes, minutes
python -m evals refcoco --encoder runs/a --dataset refcoco --data /data/refcoco          RefCOCO in its official layout
python -m evals refcoco --encoder ours=runs/a,runs/b --encoder timm:aimv2_large_patch14_224 --dataset refcocog
python -m evals refcoco --model grounding_dino                   a small Grounding DINO on the encoder
python -m evals refcoco --model grounding_dino --dino mm_grounding_dino --encoder runs/a --data /data      the paper's protocol
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.arguments import encoder_arguments, output_arguments
from evals.encoder import card
from evals.features import FeatureConfig, default_device
from evals.grounding.album import draw_album, draw_learning, load_answers
from evals.grounding.answers import read_answers
from evals.grounding.datasets import RefConfig, RefData, load_ref_config, ref_names
from evals.grounding.dino_config import DinoRecipe, load_recipe
from evals.grounding.dino_job import DinoJob, DinoJobConfig
from evals.grounding.job import JobConfig, LightJob
from evals.grounding.light_config import LightConfig
from evals.grounding.metrics import paired_difference, place
from evals.grounding.ref_set import RefSet
from evals.imagenet import read_groups
from evals.load import load_encoder
from evals.results import EvalResult
from evals.statistics import Estimate
from evals.tables import cell
from pretrain.cli import shorten
from pretrain.data.terminal import run_command
from pretrain.types import UserError

DEFAULT_DATASET = "scenes"
MODELS = ("light", "grounding_dino")
#: Metrics and controls as rows name them -> columns of the table.
METRICS = {"precision_at_1": "precision@1", "precision_at_5": "@5", "precision_at_10": "@10", "mean_iou": "mean IoU"}
CONTROLS = {"other_picture": "other picture", "other_sentence": "other sentence"}
Labelled = list[tuple[str, list[EvalResult]]]


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m evals refcoco", description=__doc__.split("\n")[0], exit_on_error=False, allow_abbrev=False
    )
    encoder_arguments(parser)
    parser.add_argument("--dataset", type=str | None, default=None, help=f"a .yaml, or one of {', '.join(ref_names())}")
    parser.add_argument(
        "--data", type=str | None, default=None, help="where the data set lies; refcoco if none is named"
    )
    parser.add_argument("--images", type=str | None, default=None, help="folder of the pictures, where it is elsewhere")
    parser.add_argument(
        "--model",
        type=str,
        default=MODELS[0],
        help="light: a small head on frozen tokens; grounding_dino: Grounding DINO",
    )
    parser.add_argument(
        "--dino",
        type=str | None,
        default=None,
        help="recipe of Grounding DINO: a .yaml, or a name in configs/evals/grounding; a small one where none is named",
    )
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read pictures for Grounding DINO")
    output_arguments(parser)
    parser.add_class_arguments(LightConfig, "light")
    parser.add_class_arguments(FeatureConfig, "features")
    return parser


def read_dataset(options: Namespace) -> RefConfig:
    """Scenes where nothing is named; RefCOCO where only a place is."""
    name = options.dataset or (DEFAULT_DATASET if options.data is None else "refcoco")
    return load_ref_config(name, path=options.data)


def summarise(labelled: Labelled) -> Table:
    """A row for each group and split: mean and deviation over seeds, or of one seed the interval over pictures."""
    rows = [row for _, found in labelled for row in found]
    synthetic = "synthetic, " if rows[0].synthetic else ""
    table = Table(title=f"Grounding on {rows[0].dataset} ({synthetic}IoU 0.5 or more is right): percent of sentences")
    metrics = [metric for metric in METRICS if any(row.metric == metric for row in rows)]
    controls = [name for name in CONTROLS if any(name in row.details.get("controls", {}) for row in rows)]
    for column in ("split", "encoder", *(METRICS[m] for m in metrics), *(CONTROLS[c] for c in controls), "sentences"):
        table.add_column(column)
    for split in dict.fromkeys(row.split for row in rows):
        table.add_section()
        for label in dict.fromkeys(label for label, _ in labelled):
            own = [row for one, found in labelled if one == label for row in found if row.split == split]
            cells = [cell([row for row in own if row.metric == metric]) for metric in metrics]
            told = [row.details["controls"] for row in own if "controls" in row.details]
            cells += [_mean([one[name] for one in told if name in one]) for name in controls]
            table.add_row(split, escape(label), *cells, f"{own[0].n:,}")
        chance = next(r.details["chance"] for r in rows if r.split == split and "chance" in r.details)
        for name, key in (("any object of the picture", "random_object"), ("best constant box", "constant")):
            table.add_row(split, f"[dim]chance: {name}[/dim]", f"[dim]{chance[key]:.1f}[/dim]")
    return table


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f}" if values else "-"


def difference(labelled: Labelled, dataset: RefSet) -> tuple[str, str, Estimate] | None:
    """How far the first group's first encoder is above the second group's on a split, with a paired interval."""
    firsts = dict(reversed(labelled))
    labels = list(dict.fromkeys(label for label, _ in labelled))[:2]
    if len(labels) < 2:
        return None
    answers = [read_answers(Path(firsts[label][0].run) / f"answers_{dataset.split}.csv") for label in labels]
    known = set.intersection(*({answer.sent_id for answer in found} for found in answers))
    kept = [expression for expression in dataset.expressions if expression.sent_id in known]
    placed = [place(kept, [a for a in found if a.sent_id in known], top_k=(1,)) for found in answers]
    return labels[0], labels[1], paired_difference(*placed)


def run_all(options: Namespace, config: RefConfig, note: Callable[[str], None]) -> tuple[Labelled, dict[str, RefData]]:
    """Rows of every encoder, and the splits by label."""
    start, told, wanted_size = prepare(options, config)
    built: dict[int, RefData] = {}
    labelled: Labelled = []
    used: dict[str, RefData] = {}
    for group in read_groups(options):
        for number, spec in enumerate(group.specs):
            seed = options.seed + number
            encoder = load_encoder(spec, seed=seed)
            sizes, fingerprint = card(encoder), encoder.fingerprint()
            size = wanted_size or sizes.img_size
            # scenes are drawn at the encoder's size; what is read from files is the same for all
            key = size if config.kind == "scenes" else 0
            if key not in built:
                built[key] = config.build(img_size=size, images=options.images, note=note)
            data = built[key]
            used.setdefault(group.label, data)  # the first of a group is the one that is shown and compared
            job = start(encoder.to(default_device()), data, seed=seed, note=note, fingerprint=fingerprint)
            note(
                f"{group.label}: {spec}, {encoder.provenance.architecture}, {sizes.params / 1e6:.2f} M parameters, at {size} "
                f"pixels; {told}; {len(data.train):,} sentences to train on"
            )
            labelled.append((group.label, job.run()))
    return labelled, used


def prepare(options: Namespace, config: RefConfig) -> tuple[Callable[..., LightJob | DinoJob], str, int | None]:
    """What makes a job of an encoder and the splits, how it trains in words, and the pictures' size where it is given."""
    if options.model == "light":
        light = JobConfig(options.light, options.features, options.out, options.results)
        light.check()
        job = partial(LightJob, config=light)
        return job, f"a light head on frozen tokens, {options.light.epochs} epochs", options.light.img_size
    recipe: DinoRecipe = load_recipe(
        options.dino or ("grounding_dino_scenes" if config.kind == "scenes" else "grounding_dino_small")
    )
    dino = DinoJobConfig(recipe, options.num_workers, options.out, options.results)
    frozen = "frozen" if recipe.backbone.frozen else "trained"
    told = f"Grounding DINO, the encoder {frozen}, {recipe.training.epochs} epochs"
    return partial(DinoJob, config=dino), told, recipe.img_size


def report(options: Namespace, labelled: Labelled, used: dict[str, RefData]) -> None:
    """Table, difference and pictures; what they are made from lies in the folders of the rows."""
    Console(width=None if sys.stdout.isatty() else 160).print(summarise(labelled))
    data = next(iter(used.values()))
    dataset = next(part for part in data.scored if part.split == data.reported)
    same = {label: rows for label, rows in reversed(labelled) if used[label] is data}  # the first of each group
    labels = [label for label in used if label in same]
    comparable = [(label, same[label]) for label in labels]
    if found := difference(comparable, dataset):
        first, second, by = found
        print(
            f"{dataset.split}: {first} is {by.value:+.1f} points above {second} on the same sentences "
            f"(95% over pictures {by.interval[0]:+.1f} to {by.interval[1]:+.1f})"
        )
    about = f"{dataset.name} {dataset.split}{', synthetic' if dataset.synthetic else ''}; right is IoU 0.5 or more"
    folder = options.out / labelled[0][1][0].task / dataset.name / f"pictures-s{options.seed}"
    answers = {label: load_answers(rows[0].run, dataset) for label, rows in comparable}
    pages = draw_album(folder, dataset, answers, about=about)
    curves = [(label, next(r for r in rows if r.split == dataset.split)) for label, rows in comparable]
    pages.append(draw_learning(folder / "learning.png", curves, title=f"Grounding on {dataset.name}"))
    for label, rows in labelled:
        print(f"{label}: {rows[0].run}")
    print(f"pictures: {', '.join(map(str, pages))}")


def run(options: Namespace, given: Mapping[str, object]) -> int:
    console, started = Console(stderr=True, highlight=False), time.perf_counter()

    def note(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    if options.model not in MODELS:
        raise UserError(f"--model={options.model!r} is unknown; there are {', '.join(MODELS)}")
    refuse_unused(options, given)
    config = read_dataset(options)
    labelled, used = run_all(options, config, note)
    report(options, labelled, used)
    print(f"{time.perf_counter() - started:.0f} s; rows: {options.results}; heads and answers: the folders above")
    return 0


def refuse_unused(options: Namespace, given: Mapping[str, object]) -> None:
    """Raise UserError for what was given and is another model's."""
    unused = {"light": ("dino", "num_workers"), "grounding_dino": ("light", "features")}[options.model]
    for name in unused:
        if given.get(name) is not None:
            hint = (
                "say --model=grounding_dino" if options.model == "light" else "its settings are a recipe's: --dino=FILE"
            )
            raise UserError(f"--{name}: it is not used by --model={options.model}; {hint}, or leave it out")


def main(args: Sequence[str] | None = None) -> int:
    torch.set_float32_matmul_precision("high")
    parser = build_parser()
    try:
        given = parser.parse_args(args, defaults=False).as_dict()
        options = parser.instantiate_classes(parser.parse_args(args))
    except ArgumentError as error:
        print(f"error: {shorten(str(error))}", file=sys.stderr)
        return 2
    return run_command(lambda: run(options, given))
