"""What `make eval-vqa` and `make eval-caption` share: arguments, encoders by routes, the table, differences, pictures."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.arguments import encoder_arguments, output_arguments
from evals.encoder import TokenEncoder, card
from evals.features import FeatureConfig, default_device
from evals.imagenet import LATEST, read_groups
from evals.load import load_encoder
from evals.multimodal.answers import paired
from evals.multimodal.config import DECODER, ConnectorTrainConfig, RecipeConfig, TrainConfig
from evals.multimodal.data.instructions import InstructionConfig, load_instructions
from evals.multimodal.data.tasks import TaskConfig
from evals.multimodal.decoder_route import DecoderRoute
from evals.multimodal.examples import Generation, InstructionSet
from evals.multimodal.job import AnswerJob, JobConfig, Outcome, Task, padded
from evals.multimodal.language import LanguageConfig
from evals.multimodal.routes import ConnectorRoute, Route
from evals.results import EvalResult
from evals.tables import cell
from pretrain.cli import shorten
from pretrain.data.terminal import run_command
from pretrain.types import UserError

ROUTES = ("connector", "decoder", "decoder_frozen")
NO_IMAGE_LABEL = "no image"
#: Side of drawn scenes for a model that sees none: they are not looked at.
_UNSEEN_SIZE = 32


@dataclass(frozen=True)
class Answered:
    """An encoder's outcome on one task by one route; a baseline has none ("")."""

    label: str
    route: str
    outcome: Outcome

    @property
    def name(self) -> str:
        """As tables and pictures call it."""
        plain = self.label == NO_IMAGE_LABEL or not self.route
        return self.label if plain else f"{self.label}, {ROUTE_NAMES[self.route]}"

    @property
    def short(self) -> str:
        """As pictures call it, where there is less room."""
        label = self.label
        if label.startswith(f"{LATEST} ("):
            label = label.removeprefix(f"{LATEST} (").removesuffix(")")
        label = label.removesuffix(", same architecture")
        return label if self.label == NO_IMAGE_LABEL or not self.route else f"{label}, {SHORT_NAMES[self.route]}"


SHORT_NAMES = {"connector": "LM", "decoder": "tuned", "decoder_frozen": "kept"}
ROUTE_NAMES = {"connector": "connector + LM", "decoder": "kept decoder, tuned", "decoder_frozen": "kept decoder"}


def build_parser(prog: str, description: str, *, tasks: Sequence[str], routes: Sequence[str]) -> ArgumentParser:
    """Arguments of a command.

    Args:
        prog: its name.
        description: one line.
        tasks: names that are there.
        routes: those that are taken where none is named.
    """
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    encoder_arguments(parser)
    parser.add_argument("--task", action="append", type=str, help=f"a .yaml, or one of {', '.join(tasks)}; repeatable")
    parser.add_argument(
        "--data", type=str | None, default=None, help="the task's folder; of several, what holds one each"
    )
    parser.add_argument("--images", type=str | None, default=None, help="folder of the pictures, where it is elsewhere")
    parser.add_argument("--limit", type=int | None, default=None, help="a random part of each task, about so many")
    parser.add_argument(
        "--route", action="append", type=str, help=f"of {', '.join(ROUTES)}; repeatable; {', '.join(routes)} by default"
    )
    parser.add_argument(
        "--no_image", type=bool | None, default=None, help="also a model without pictures; yes if no encoder is named"
    )
    parser.add_argument(
        "--taught", type=str | None, default=None, help="training data: a .yaml or a name; the task's own"
    )
    parser.add_argument("--taught_data", type=str | None, default=None, help="where the training data lies")
    parser.add_argument("--taught_images", type=str | None, default=None, help="folder of its pictures")
    parser.add_argument("--shots", type=int, default=0, help="examples in each prompt (published: 0, 4, 8)")
    parser.add_argument("--pictures", type=str, default="cached", help="cached: encoded once; online: whenever needed")
    parser.add_argument(
        "--num_workers", type=int, default=0, help="processes that read pictures, with --pictures=online"
    )
    parser.add_argument("--img_size", type=int | None, default=None, help="side of the encoder's pictures; its own")
    output_arguments(parser)
    parser.add_class_arguments(LanguageConfig, "lm")
    parser.add_class_arguments(ConnectorTrainConfig, "train")
    parser.add_class_arguments(TrainConfig, "decoder")
    parser.set_defaults({f"decoder.{name}": getattr(DECODER, name) for name in ("steps", "batch_size")})
    parser.add_class_arguments(Generation, "generation", skip={"max_tokens"})
    parser.add_class_arguments(FeatureConfig, "features")
    return parser


class Command:
    """One call of a command.

    Args:
        options: parsed.
        kind: "vqa" or "caption".
        tasks: their configs.
        routes: those that are taken where none is named.
        note: takes lines for the user.
        always_taught: whether the training data is needed though nothing is trained, for a baseline.
    """

    def __init__(
        self,
        options: Namespace,
        *,
        kind: str,
        tasks: Sequence[TaskConfig],
        routes: Sequence[str],
        note: Callable[[str], None],
        always_taught: bool = False,
    ) -> None:
        self.options, self.tasks, self.note = options, tasks, note
        self.always_taught = always_taught
        self.routes = options.route or list(routes)
        if unknown := [route for route in self.routes if route not in ROUTES]:
            raise UserError(f"--route={unknown[0]!r} is unknown; there are {', '.join(ROUTES)}")
        if options.shots:
            if named := [route for route in options.route or [] if route != "connector"]:
                raise UserError(f"--shots={options.shots}: --route={named[0]} reads one picture; leave one of them out")
            self.routes = ["connector"]
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise UserError(f"--task: {names} has a name twice; name each task once")
        if wrong := [task.name for task in tasks if (task.metric == "captions") != (kind == "caption")]:
            other = "vqa" if kind == "caption" else "caption"
            raise UserError(f"--task={wrong[0]}: it is not of this command; say python -m evals {other}")
        if options.pictures not in ("cached", "online"):
            raise UserError(f"--pictures={options.pictures!r} is unknown; there are cached and online")
        recipe = RecipeConfig(lm=options.lm, train=options.train, decoder=options.decoder, img_size=options.img_size)
        self.config = JobConfig(
            kind=kind,
            recipe=recipe,
            generation=options.generation,
            shots=options.shots,
            pictures=options.pictures,
            features=options.features,
            num_workers=options.num_workers,
            out=options.out,
            results=options.results,
        )
        self.config.check()
        self.taught = self._find_taught()
        self._built: dict[int, tuple[list[Task], InstructionSet | None]] = {}

    def _find_taught(self) -> InstructionConfig | None:
        """What is trained on: named, or the tasks' own."""
        trains = any(route != "decoder_frozen" for route in self.routes)
        if not trains and not self.always_taught:
            return None
        names = [self.options.taught] if self.options.taught else list(dict.fromkeys(t.taught for t in self.tasks))
        if not all(names):
            raise UserError(f"--taught: {self.tasks[0].name} has no training data of its own; name some")
        if len(names) > 1:
            raise UserError(
                f"--task: the tasks have different training data of their own ({', '.join(names)}); name --taught"
            )
        return load_instructions(names[0], path=self.options.taught_data)

    def data(self, img_size: int) -> tuple[list[Task], InstructionSet | None]:
        """Tasks and training data; scenes are drawn at the encoder's size, the rest is the same for all."""
        drawn = any(task.is_drawn for task in self.tasks) or (self.taught is not None and self.taught.is_drawn)
        key = img_size if drawn else 0
        if key not in self._built:
            options, made = self.options, []
            for config in self.tasks:
                images = None if config.is_drawn else options.images
                dataset = config.build(
                    img_size=img_size, images=images, limit=options.limit, seed=options.seed, note=self.note
                )
                made.append(Task(config, dataset))
            taught = None
            if self.taught is not None:
                taught = self.taught.build(img_size=img_size, images=options.taught_images, note=self.note)
            self._built[key] = made, taught
        return self._built[key]

    def taught_set(self) -> InstructionSet:
        """The training data, of whatever picture size."""
        return next(taught for _, taught in self._built.values() if taught is not None)

    def run(self) -> list[Answered]:
        """Every encoder by every route on every task."""
        found: list[Answered] = []
        for group in read_groups(self.options):
            for number, spec in enumerate(group.specs):
                seed = self.options.seed + number
                encoder = load_encoder(spec, seed=seed).to(default_device())
                fingerprint, sizes = encoder.fingerprint(), card(encoder)
                seeing = padded(encoder, img_size=self.options.img_size)
                side = seeing.transform.spec.img_size
                self.note(
                    f"{group.label}: {spec}, {encoder.provenance.architecture}, {sizes.params / 1e6:.2f} M parameters, at "
                    f"{side} pixels"
                )
                for name in self.routes:
                    route = self._route(name, seeing, spec, seed=seed)
                    if route is not None:
                        found += self._answer(route, seeing, group.label, side, seed=seed, fingerprint=fingerprint)
        wanted = self.options.no_image if self.options.no_image is not None else not self.options.encoder
        if wanted and "connector" in self.routes:
            self.note(f"{NO_IMAGE_LABEL}: the same language model, trained and asked without pictures")
            route = ConnectorRoute(self.config.recipe, encoder=None, seed=self.options.seed)
            found += self._answer(route, None, NO_IMAGE_LABEL, _UNSEEN_SIZE, seed=self.options.seed, fingerprint="none")
        if not found:
            raise UserError("--route: none of the encoders has what it takes; see above")
        return found

    def _route(self, name: str, encoder: TokenEncoder, spec: str, *, seed: int) -> Route | None:
        if name == "connector":
            return ConnectorRoute(self.config.recipe, encoder=encoder, seed=seed)
        if not DecoderRoute.serves(spec):
            if self.options.route:
                raise UserError(
                    f"--route={name}: {spec} has no decoder; give a run of this suite, or leave the route out"
                )
            self.note(f"{spec}: it has no decoder, so that {ROUTE_NAMES[name]} is left out")
            return None
        return DecoderRoute(
            self.config.recipe,
            encoder=encoder,
            spec=spec,
            seed=seed,
            frozen=name == "decoder_frozen",
            captions=self.config.kind == "caption",
        )

    def _answer(
        self, route: Route, encoder: TokenEncoder | None, label: str, side: int, *, seed: int, fingerprint: str
    ) -> list[Answered]:
        tasks, taught = self.data(side)
        config = self.config
        if not route.is_trained:
            taught = None
        job = AnswerJob(route, encoder, taught, config, seed=seed, note=self.note, fingerprint=fingerprint)
        return [Answered(label, route.name, outcome) for outcome in job.run(tasks)]


def summarise(found: Sequence[Answered], *, title: str, metrics: Sequence[str] | None = None) -> Table:
    """A row for each task and model: mean and deviation over seeds, or of one seed the interval over pictures.

    Args:
        found: outcomes.
        title: of the table.
        metrics: columns; the tasks' own metrics where None.
    """
    table = Table(title=title)
    names = metrics or list(dict.fromkeys(row.metric for one in found for row in one.outcome.rows))
    for column in ("task", "model", *names, "n"):
        table.add_column(column)
    for task in task_names_of(found):
        table.add_section()
        own = [one for one in found if one.outcome.task.config.name == task]
        synthetic = " (synthetic)" if own[0].outcome.task.dataset.synthetic else ""
        for name in dict.fromkeys(one.name for one in own):
            rows = [row for one in own if one.name == name for row in one.outcome.rows]
            cells = [_cell([row for row in rows if row.metric == metric]) for metric in names]
            table.add_row(task + synthetic, escape(name), *cells, f"{rows[0].n:,}")
    return table


def _cell(rows: Sequence[EvalResult]) -> str:
    return cell(rows) if rows else ""


def by_kind(found: Sequence[Answered]) -> Table:
    """Percent by kind of question: the first seed of each model, with its interval over pictures."""
    firsts = {(one.outcome.task.config.name, one.name): one for one in reversed(found)}
    models = list(dict.fromkeys(one.name for one in found))
    table = Table(title="By kind of question (first seed; 95% over pictures)")
    for column in ("task", "kind", "n", *map(escape, models)):
        table.add_column(column)
    for task in task_names_of(found):
        table.add_section()
        tables = {model: firsts[task, model].outcome.kept.by_kind() for model in models if (task, model) in firsts}
        for kind in dict.fromkeys(kind for kinds in tables.values() for kind in kinds):
            cells = []
            for model in models:
                one = tables.get(model, {}).get(kind)
                cells.append(
                    ""
                    if one is None
                    else "{value:.1f} [{low:.1f}, {high:.1f}]".format(
                        value=one["value"], low=one["interval"][0], high=one["interval"][1]
                    )
                )
            count = next(kinds[kind]["n"] for kinds in tables.values() if kind in kinds)
            table.add_row(task, kind, f"{count:,}", *cells)
    return table


def differences(found: Sequence[Answered]) -> list[str]:
    """How far the first model is above each other one, on the same questions: a line each."""
    lines = []
    for task in task_names_of(found):
        own = {one.name: one for one in reversed(found) if one.outcome.task.config.name == task}
        first, *others = [own[name] for name in dict.fromkeys(one.name for one in found) if name in own]
        for other in others:
            if result := paired(first.outcome.kept, other.outcome.kept):
                value, (low, high), count = result
                lines.append(
                    f"{task}: {first.name} is {value:+.1f} points above {other.name} on the same {count:,} "
                    f"(first seeds; 95% over pictures {low:+.1f} to {high:+.1f})"
                )
    return lines


def pages_folder(options: Namespace, kind: str) -> Path:
    """Where a command's pictures go."""
    return options.out / kind / f"pictures-s{options.seed}"


def first_of_each(found: Sequence[Answered], task: str) -> dict[str, Outcome]:
    """By short name: the first seed's outcome on a task."""
    firsts: dict[str, Outcome] = {}
    for one in found:
        if one.outcome.task.config.name == task:
            firsts.setdefault(one.short, one.outcome)
    return firsts


def task_names_of(found: Sequence[Answered]) -> list[str]:
    """In their order, each once."""
    return list(dict.fromkeys(one.outcome.task.config.name for one in found))


def about_task(outcome: Outcome) -> str:
    """What a page is about, in a line."""
    dataset = outcome.task.dataset
    return f"{dataset.name} {dataset.split}{', synthetic' if dataset.synthetic else ''}"


def task_places(names: Sequence[str], data: str | None) -> list[str | None]:
    """Each task's folder: the one that is given, or the one of its name in it where there are several tasks."""
    if data is None or len(names) == 1:
        return [data] * len(names)
    return [str(Path(data) / Path(name).stem) for name in names]


def run_main(parser: ArgumentParser, args: Sequence[str] | None, run: Callable[[Namespace, Callable], int]) -> int:
    """Parse and run; errors of the user are one line."""
    torch.set_float32_matmul_precision("high")
    try:
        options = parser.instantiate_classes(parser.parse_args(args))
    except ArgumentError as error:
        print(f"error: {shorten(str(error))}", file=sys.stderr)
        return 2
    console = Console(stderr=True, highlight=False)

    def note(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    return run_command(lambda: run(options, note))


def show(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def where_all_lies(found: Sequence[Answered], options: Namespace, *, started: float) -> None:
    """The last lines of a command."""
    for one in {one.outcome.folder: one for one in found}.values():
        print(f"{one.name}: {one.outcome.folder}")
    print(
        f"{time.perf_counter() - started:.0f} s; rows: {options.results}; models and answers: the folders above (scored again "
        "without the model by: python -m evals.multimodal.rescore FILE)"
    )
