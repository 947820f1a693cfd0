"""Zero-shot classification and image-text retrieval: `make eval-zeroshot`.

python -m evals zeroshot                                               the last run next to a random one, on scenes
python -m evals zeroshot --encoder open_clip:NAME@FILE --data /imagenet    on ImageNet-1k in its official folders
python -m evals zeroshot --encoder runs/a runs/b --retrieval coco --data /coco

Encoders with a text tower, this suite's own contrastive runs (clip, siglip) among them, are scored by the cosine of pictures and
texts. Its other runs have a decoder instead and are scored by the likelihood of a text as the picture's caption; tables and rows
say "caption likelihood".
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from evals.data.config import DatasetConfig, build_set, load_dataset_config
from evals.data.labelled import LabelledSet, Subset
from evals.default_run import load_or_train
from evals.encoder import TokenEncoder
from evals.features import default_device
from evals.results import RESULTS, EvalResult
from evals.text.caption_scorer import RANDOM, CaptionScorer, CaptionScoring, load_decoder
from evals.text.evaluate import Job, classification_job, retrieval_job, run_job
from evals.text.prompts import PromptConfig, default_prompts, load_prompts
from evals.text.retrieval_sets import RetrievalConfig, build_retrieval_set, load_retrieval_config
from evals.text.run_towers import RunTowerScorer, load_towers
from evals.text.scorers import ImageTextScorer, TowerScorer
from pretrain.data.terminal import run_command
from pretrain.rng import draw_rng
from pretrain.types import UserError

LATEST = "runs/latest"
DEFAULT_DATASETS = ("scenes_shape", "scenes_shape_color")
#: Pictures of a generated data set where no number is given; of others it is all.
NUM_SYNTHETIC = 500
#: What of a caption's likelihood is its score. A class is asked for as the beginning of a caption: the rest may name other
#: things. A caption for retrieval is a whole one, and the mean over its tokens keeps short ones from winning for being short;
#: which picture a text finds does not depend on this, nor on `prior`. A text's own probability is not taken off: what the
#: decoder says of a grey picture, which it never met in training, is a poor measure of it. Measured on a default run of one
#: seed: shapes of 500 scenes 40.0% (prior off 32.8%, end included 37.4%), colours 98.8% (95.2%, 98.6%); captions of 200 scenes
#: found first 80.5% (sum 74.5%, prior off 60.5%, sum and prior off 20.5%).
CLASSIFICATION = CaptionScoring(tokens="sum", prior="none", end=False)
RETRIEVAL = CaptionScoring(tokens="mean", prior="none", end=True)


@dataclass(frozen=True)
class Options:
    """The command line.

    Attributes:
        encoders: specs.
        datasets: names for classification.
        prompts: name of the class prompts; each data set's own where None.
        retrieval: names for retrieval.
        data: where the one data set lies.
        allow_sizes: take splits of other sizes than the data set's.
        num: pictures of each; the data sets' own numbers where None.
        seed: of their choice and of random weights.
        alone: leave out the random twins.
        tokens: in place of the scoring's own.
        prior: likewise.
        num_workers: processes that read pictures.
        results: file of rows.
    """

    encoders: list[str]
    datasets: list[str]
    prompts: str | None
    retrieval: list[str]
    data: str | None
    allow_sizes: bool
    num: int | None
    seed: int
    alone: bool
    tokens: str | None
    prior: str | None
    num_workers: int
    results: Path

    def scoring(self, default: CaptionScoring) -> CaptionScoring:
        return replace(default, tokens=self.tokens or default.tokens, prior=self.prior or default.prior)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evals zeroshot", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "--encoder",
        nargs="+",
        action="extend",
        metavar="SPEC",
        help=f"a run, open_clip:..., hf:..., ...; {LATEST} where not given",
    )
    parser.add_argument(
        "--dataset",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="classify these; scenes where neither this nor --retrieval is given",
    )
    parser.add_argument("--prompts", help="name or .yaml of class prompts; each data set's own where not given")
    parser.add_argument(
        "--retrieval", nargs="+", action="extend", metavar="NAME", help="scenes, flickr1k, coco or a .yaml"
    )
    parser.add_argument("--data", help="where the one data set lies; imagenet1k if none is named")
    parser.add_argument(
        "--allow_sizes", action="store_true", help="take splits of other sizes; so is a place that --data names"
    )
    parser.add_argument(
        "--num", type=int, help="pictures of each data set; 500 scenes to classify, 200 to retrieve, all of others"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pictures and of random weights")
    parser.add_argument("--alone", action="store_true", help="leave out the random twin of each encoder")
    parser.add_argument(
        "--tokens", choices=("sum", "mean"), help="caption likelihood: sum or mean over a text's tokens"
    )
    parser.add_argument(
        "--prior", choices=("none", "grey"), help="caption likelihood: take off what a grey picture gives"
    )
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read pictures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file that rows are appended to")
    return parser


def read_options(args: Sequence[str] | None) -> Options:
    """The command line, checked.

    Raises:
        UserError: numbers or combinations that cannot be meant.
    """
    given = build_parser().parse_args(args)
    for name, least in (("num", 1), ("seed", 0), ("num_workers", 0)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise UserError(f"--{name}={value} must be at least {least}")
    datasets, retrieval = given.dataset or [], given.retrieval or []
    if not datasets and not retrieval:
        datasets, retrieval = (["imagenet1k"], []) if given.data else (list(DEFAULT_DATASETS), ["scenes"])
    if given.data and len(datasets) + len(retrieval) > 1:
        raise UserError(f"--data={given.data} names one place: give one --dataset or one --retrieval with it")
    if given.prompts and not datasets:
        raise UserError(f"--prompts={given.prompts} words classes: give a --dataset with it")
    return Options(
        encoders=given.encoder or [LATEST],
        datasets=datasets,
        prompts=given.prompts,
        retrieval=retrieval,
        data=given.data,
        allow_sizes=given.allow_sizes,
        num=given.num,
        seed=given.seed,
        alone=given.alone,
        tokens=given.tokens,
        prior=given.prior,
        num_workers=given.num_workers,
        results=given.results,
    )


def build_scorer(encoder: TokenEncoder, *, scoring: CaptionScoring, seed: int) -> ImageTextScorer:
    """The text tower where there is one, else the text tower or the decoder beside a run.

    Raises:
        UserError: neither.
    """
    if encoder.text is not None:
        return TowerScorer(encoder)
    spec = encoder.provenance.spec
    if (towers := load_towers(spec, seed=seed)) is not None:
        objective, tokenizer = towers
        return RunTowerScorer(encoder, objective=objective, tokenizer=tokenizer)
    found = load_decoder(spec, seed=seed)
    if found is None:
        raise UserError(
            f"--encoder={spec}: it has neither a text tower nor a decoder that predicts captions, so that no text can be "
            "compared with its pictures; give a run with its decoder or text tower, or a CLIP or SigLIP model"
        )
    objective, tokenizer = found
    return CaptionScorer(encoder, objective=objective, tokenizer=tokenizer, scoring=scoring)


def choose(dataset: LabelledSet, *, num: int | None, seed: int) -> LabelledSet:
    """`num` pictures of the set, drawn at random and kept in its order."""
    num = NUM_SYNTHETIC if num is None and dataset.synthetic else num
    if num is None or num >= len(dataset):
        return dataset
    return Subset(dataset, draw_rng(seed, "zeroshot", 0).permutation(len(dataset))[:num])


def plan(options: Options) -> tuple[list[tuple[DatasetConfig, PromptConfig]], list[RetrievalConfig]]:
    """Data sets and prompts by name, so that a wrong name is an error before any work is done."""
    classification = []
    for name in options.datasets:
        config = load_dataset_config(
            name, path=options.data, allow_sizes=options.allow_sizes or options.data is not None
        )
        wanted = options.prompts or config.prompts
        classification.append((config, load_prompts(wanted) if wanted else default_prompts(config.name)))
    return classification, [load_retrieval_config(name, options.data) for name in options.retrieval]


def evaluate(spec: str, options: Options, console: Console) -> list[EvalResult]:
    """All rows of one encoder."""
    encoder = load_or_train(spec, seed=options.seed).to(default_device())
    fingerprint, size = encoder.fingerprint(), encoder.transform.spec.img_size
    classification, retrieval = plan(options)
    jobs: list[tuple[Job, CaptionScoring]] = []
    for config, prompts in classification:
        whole = build_set(config, "test", img_size=size)
        if config.num_test not in (None, len(whole)):  # as evals.imagenet names it
            whole.name = f"{config.name}-partial"
            console.print(f"{config.name}: {len(whole):,} of {config.num_test:,} pictures: rows call it {whole.name}")
        dataset = choose(whole, num=options.num, seed=options.seed)
        jobs.append((classification_job(dataset, prompts), CLASSIFICATION))
    for config in retrieval:
        pictures = build_retrieval_set(config, img_size=size, num=options.num, seed=options.seed)
        jobs.append((retrieval_job(pictures), RETRIEVAL))
    rows = []
    unread = [f"--{name}" for name in ("tokens", "prior") if getattr(options, name) is not None]
    for job, scoring in jobs:
        scorer = build_scorer(encoder, scoring=options.scoring(scoring), seed=options.seed)
        if unread and not isinstance(scorer, CaptionScorer):
            raise UserError(
                f"{unread[0]} is of caption likelihood: {encoder.provenance.spec} is scored by its text tower"
            )
        rows += run_job(
            job,
            scorer,
            seed=options.seed,
            results=options.results,
            fingerprint=fingerprint,
            num_workers=options.num_workers,
            note=lambda line: console.print(line, markup=False),
        )
    return rows


def summarise(by_encoder: Sequence[tuple[str, list[EvalResult]]]) -> Table:
    """One table: a line for each data set and metric, a column for each encoder."""
    table = Table(title="Zero-shot classification and image-text retrieval, percent right [95% interval]")
    for column in ("data set", "metric", "n", "chance"):
        table.add_column(column)
    for spec, rows in by_encoder:
        labels = ", ".join(dict.fromkeys(row.details["scorer"] for row in rows))
        table.add_column(f"{spec}\nby {labels}", justify="right")
    last = None
    for lines in zip(*(rows for _, rows in by_encoder), strict=True):
        first = lines[0]
        if last not in (None, (first.task, first.dataset)):
            table.add_section()
        shown = f"{first.dataset}{' (synthetic)' if first.synthetic else ''}"
        if left_out := max(row.details["left_out"] for row in lines):
            shown += f"\n{left_out:,} pictures left out"
        name = first.metric.replace("image_to_text", "picture to text,").replace("text_to_image", "text to picture,")
        cells = [f"{row.value:.1f}{_interval(row)}" for row in lines]
        table.add_row(
            "" if last == (first.task, first.dataset) else shown,
            name.replace("_", " "),
            f"{first.n:,}",
            f"{first.details['chance']:.1f}",
            *cells,
        )
        last = (first.task, first.dataset)
    return table


def _interval(row: EvalResult) -> str:
    return "" if row.interval is None else f" [dim]\\[{row.interval[0]:.1f}, {row.interval[1]:.1f}][/dim]"


def run(options: Options) -> int:
    console, started = Console(stderr=True, highlight=False), time.perf_counter()
    plan(options)
    by_encoder = []
    for spec in options.encoders:
        twins = [] if options.alone or spec.startswith(RANDOM) else [f"{RANDOM}{spec}"]
        by_encoder += [(name, evaluate(name, options, console)) for name in (spec, *twins)]
    Console(width=None if sys.stdout.isatty() else 200).print(summarise(by_encoder))
    if options.retrieval:
        print("Captions that are the same are one text, right for every picture that has it; intervals count pictures.")
    seconds, predictions = time.perf_counter() - started, options.results.parent / "zeroshot"
    print(f"{seconds:.0f} s; rows: {options.results}; best texts of each picture: {predictions}")
    return 0


def main(args: Sequence[str] | None = None) -> int:
    return run_command(lambda: run(read_options(args)))
