"""One encoder, one way to text, some tasks: train once, answer each task, score, and write the rows of results.

OUT/KIND/ROUTE-TRAINING-sSEED/  model/ (of what was trained), metrics.csv, answers_TASK.jsonl, scores.json
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evals.data.labelled import LabelledSet
from evals.data.loading import MAX_FAULT_SHARE, MIN_COUNTED
from evals.encoder import Provenance, TokenEncoder, seeing_whole_pictures
from evals.features import FeatureConfig, cached_features
from evals.multimodal.answers import Kept, read_kept, score, write_kept
from evals.multimodal.config import RecipeConfig
from evals.multimodal.data.tasks import TaskConfig
from evals.multimodal.examples import ExampleSet, Generation, InstructionSet
from evals.multimodal.feeding import CachedPictures, NoPictures, Pictures, PixelPictures, step_loader
from evals.multimodal.module import AnswerModule
from evals.multimodal.routes import Route, generation_for
from evals.multimodal.shots import Shots
from evals.probe.fit import build_trainer, fit_or_go_on, forget_checkpoint, quiet
from evals.results import RESULTS, EvalResult, append, code_hash, command_line, finished, hash_of
from pretrain.files import write_atomically
from pretrain.types import UserError

#: The encoder of a model that sees no picture: what language alone says.
NO_IMAGE = Provenance("none", "no image", objective="none", samples_seen=0, training_flops=0.0)


@dataclass(frozen=True)
class JobConfig:
    """What is done, and where it goes.

    Attributes:
        kind: of the command: "vqa" or "caption".
        recipe: the model and its training.
        generation: how answers are generated; a task's own `max_tokens` counts.
        shots: examples in each prompt.
        pictures: "cached" encodes each picture once and keeps its tokens on disk, "online" encodes it whenever it is needed.
        features: how tokens are made and kept.
        num_workers: processes that read pictures, with "online".
        out: folder for models, answers and pictures.
        results: file of rows.
    """

    kind: Literal["vqa", "caption"]
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    generation: Generation = field(default_factory=Generation)
    shots: int = 0
    pictures: Literal["cached", "online"] = "cached"
    features: FeatureConfig = field(default_factory=FeatureConfig)
    num_workers: int = 0
    out: Path = Path("runs/evals")
    results: Path = RESULTS

    def check(self) -> None:
        """Raise UserError for what cannot be meant."""
        self.recipe.check()
        self.generation.check()
        self.features.check()
        if self.shots < 0:
            raise UserError(f"shots={self.shots} must not be negative")


@dataclass(frozen=True)
class Task:
    """A task's config and its examples."""

    config: TaskConfig
    dataset: ExampleSet


@dataclass(frozen=True)
class Outcome:
    """What one task came to: its rows, and the answers behind them."""

    task: Task
    rows: list[EvalResult]
    kept: Kept
    folder: Path


class AnswerJob:
    """One encoder on some tasks by one route; what is finished is not done again.

    Args:
        route: to text; it holds the encoder that is seen with, and makes what is trained.
        encoder: on its device; None where nothing is seen.
        taught: what is trained on; None where nothing is trained (the decoder as it was pre-trained).
        config: what is done.
        seed: of fresh weights, the order, sampling, shots and intervals.
        note: takes one line about what is reused or left out.
        fingerprint: the encoder's, where it is known already.
        accelerator: Lightning's.
    """

    def __init__(
        self,
        route: Route,
        encoder: TokenEncoder | None,
        taught: InstructionSet | None,
        config: JobConfig,
        *,
        seed: int,
        note: Callable[[str], None] = print,
        fingerprint: str | None = None,
        accelerator: str = "auto",
    ) -> None:
        config.check()
        self.route, self.taught, self.config, self.seed = route, taught, config, seed
        self.note, self.accelerator = note, accelerator
        self.encoder, self.where = encoder, NO_IMAGE if encoder is None else encoder.provenance
        self.fingerprint = fingerprint or ("none" if encoder is None else encoder.fingerprint())
        self._details: dict[str, Any] = {}
        self._keys: dict[str, dict[str, Any]] = {}

    @property
    def task_name(self) -> str:
        return f"{self.config.kind}_{self.route.name}"

    def training_digest(self) -> str:
        """Of everything but the encoder's weights, the seed and the code that decides the trained model."""
        return hash_of([self.route.settings(), self._sight(), None if self.taught is None else self.taught.identity()])

    def _sight(self) -> list[str]:
        if self.encoder is None:
            return []
        # how tokens are kept decides their last bits
        kept = [self.config.features.dtype, self.config.features.precision] if self.config.pictures == "cached" else []
        return [self.encoder.transform.identity(), self.config.pictures, *kept]

    @property
    def folder(self) -> Path:
        # an interrupted training is gone on with by the code that began it: its row names one code
        name = f"{self.route.name}-{self.fingerprint}-{hash_of([self.training_digest(), code_hash()])}-s{self.seed}"
        return self.config.out / self.config.kind / name

    def _key(self, task: Task) -> dict[str, Any]:
        if task.config.name not in self._keys:  # identities of large sets take seconds
            self._keys[task.config.name] = self._new_key(task)
        return self._keys[task.config.name]

    def _new_key(self, task: Task) -> dict[str, Any]:
        generation = asdict(generation_for(self.config.generation, max_tokens=task.config.max_tokens))
        asked = [task.config.metric, task.config.prompt, generation, self.config.shots]
        return {
            "task": self.task_name,
            "dataset": task.config.name,
            "split": task.dataset.split,
            "seed": self.seed,
            "config_hash": hash_of([self.training_digest(), task.dataset.identity(), asked]),
            "checkpoint_hash": self.fingerprint,
            "code_hash": code_hash(),
        }

    def _answers_file(self, task: Task) -> Path:
        return self.folder / f"answers_{task.config.name}_{self._key(task)['config_hash'][:8]}.jsonl"

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Rows and answers of every task; nothing is trained where all are finished.

        Raises:
            KeyboardInterrupt: interrupted; finished tasks and the last checkpoint are kept.
            UserError: data or settings that cannot be used.
        """
        done: dict[str, Outcome] = {}
        for task in tasks:
            rows = finished(self._key(task), self.config.results)
            if rows and self._answers_file(task).is_file():
                kept = read_kept(self._answers_file(task), metric=task.config.metric)
                done[task.config.name] = Outcome(task, rows, kept, self.folder)
                self.note(
                    f"{self.where.spec}: {self.task_name} on {task.config.name} is in {self.config.results} already"
                )
        left = [task for task in tasks if task.config.name not in done]
        if left:
            self._make_ready()
        for task in left:
            done[task.config.name] = self._answer(task)
        if left:
            self._write_scores([done[task.config.name] for task in tasks])
        return [done[task.config.name] for task in tasks]

    def _make_ready(self) -> None:
        """Train the route's model, or take it from where an earlier call left it."""
        if not self.route.is_trained:
            return
        model, started = self.folder / "model", time.perf_counter()
        if (self.folder / "trained.json").is_file():
            self._details = json.loads((self.folder / "trained.json").read_text())
            self.route.load(model)
            self.note(f"{self.where.spec}: the trained model is taken from {model}")
        else:
            self._fit()
            self.route.save(model)
            self._details["training_s"] = round(time.perf_counter() - started, 1)
            write_atomically(self.folder / "trained.json", (json.dumps(self._details, indent=2) + "\n").encode())
            forget_checkpoint(self.folder)
        self._to_device()

    def _to_device(self) -> None:
        if self.encoder is not None:
            self.route.model.to(next(self.encoder.parameters()).device)

    def _pictures(self, dataset: LabelledSet, about: str) -> Pictures:
        encoder = self.encoder
        if encoder is None:
            return NoPictures()
        side = encoder.transform.spec.img_size
        num_patches = int(np.prod(encoder.grid(side, side)))
        if self.config.pictures == "online":
            return PixelPictures(dataset, encoder.transform, num_patches=num_patches)
        text = f"{self.where.spec}: {about}"
        features = cached_features(encoder, dataset, self.config.features, text=text, fingerprint=self.fingerprint)
        if features.num_unreadable:
            self.note(f"{about}: {features.num_unreadable:,} unreadable pictures are left out")
        return CachedPictures(features, num_patches=num_patches)

    def _fit(self) -> None:
        """Train, or go on from the last checkpoint."""
        quiet()
        taught, config = self.taught, self.route.train_config
        pictures = self._pictures(taught.pictures, taught.name)
        model = self.route.build(taught)
        rows, num_rows, notes = self.route.rows(taught, pictures)
        for line in notes:
            self.note(f"{taught.name}: {line}")
        chunk = config.chunk_steps * config.accumulate
        loader = step_loader(
            rows,
            num_rows,
            batch_size=config.micro_batch_size,
            chunk=chunk,
            seed=self.seed,
            num_workers=self.config.num_workers if self.config.pictures == "online" else 0,
        )
        online = self.encoder if self.config.pictures == "online" else None
        route = self.route
        module = AnswerModule(
            model, config, encoder=online, fast=route.fast, fast_factor=route.fast_factor, seed=self.seed
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        trainer = build_trainer(
            self.folder,
            max_epochs=config.steps // config.chunk_steps,
            check_val_every_n_epoch=1,
            accelerator=self.accelerator,
            accumulate=config.accumulate,
        )
        fit_or_go_on(trainer, module, loader, None, self.folder)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self._details = {
            "trained_params": trained,
            "steps": config.steps,
            "batch_size": config.batch_size,
            "rows": num_rows,
            "notes": notes,
            "unreadable_training_pictures": len(module.unreadable),
        }
        model.eval().requires_grad_(False)

    def _answer(self, task: Task) -> Outcome:
        started, config = time.perf_counter(), task.config
        pictures = self._pictures(task.dataset.pictures, f"{config.name} {task.dataset.split}")
        shots = Shots(self.taught, num=self.config.shots, seed=self.seed)
        shot_pictures = self._pictures(self.taught.pictures, self.taught.name) if shots.num else None
        answers = self.route.answer(
            task.dataset,
            pictures,
            config.asked,
            generation_for(self.config.generation, max_tokens=config.max_tokens),
            shots=shots,
            shot_pictures=shot_pictures,
        )
        kept = score(task.dataset, answers, metric=config.metric)
        lost = len(task.dataset) - len(kept.examples)
        if lost > MAX_FAULT_SHARE * max(len(task.dataset), MIN_COUNTED):
            raise UserError(
                f"{config.name}: {lost:,} of {len(task.dataset):,} examples have pictures that cannot be read, more than "
                f"{MAX_FAULT_SHARE:.0%}: mend the pictures' folder"
            )
        if lost:
            self.note(f"{config.name}: {lost:,} examples have pictures that cannot be read and do not count")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_kept(kept, self._answers_file(task))
        rows = self._rows(task, kept, seconds=time.perf_counter() - started, lost=lost)
        append(rows, self.config.results)
        return Outcome(task, rows, kept, self.folder)

    def _rows(self, task: Task, kept: Kept, *, seconds: float, lost: int) -> list[EvalResult]:
        details = {
            "by_kind": kept.by_kind(),
            "answers": self._answers_file(task).name,
            "shots": self.config.shots,
            "generation": asdict(generation_for(self.config.generation, max_tokens=task.config.max_tokens)),
            "model": self.route.about(),
            "training": self._details,
            "taught": None if self.taught is None else self.taught.name,
            "unreadable": lost,
            "repaired": dict(task.dataset.repaired),
            "metric": dict(kept.scores.details),
        }
        rows = []
        for number, (metric, value) in enumerate(kept.scores.values.items()):
            rows.append(
                EvalResult(
                    **self._key(task),
                    synthetic=task.dataset.synthetic,
                    metric=metric,
                    value=value,
                    n=len(kept.scores.unit_U) or len(kept.examples),
                    encoder=self.where.spec,
                    objective=self.where.objective,
                    samples_seen=self.where.samples_seen,
                    training_flops=self.where.training_flops,
                    run=str(self.folder),
                    command=command_line(),
                    wall_s=round(seconds + self._details.get("training_s", 0.0), 1),
                    interval=kept.interval() if number == 0 else None,
                    details=details if number == 0 else {},
                )
            )
        rows[-1].details["last_of_task"] = True
        return rows

    def _write_scores(self, outcomes: Sequence[Outcome]) -> None:
        content = {
            outcome.task.config.name: {
                **{row.metric: {"value": row.value, "interval": row.interval, "n": row.n} for row in outcome.rows},
                "by_kind": outcome.rows[0].details.get("by_kind"),
            }
            for outcome in outcomes
        }
        about = {"encoder": self.where.spec, "fingerprint": self.fingerprint, "route": self.route.settings()}
        write_atomically(
            self.folder / "scores.json",
            (json.dumps({**about, "tasks": content}, indent=2, default=str) + "\n").encode(),
        )


def padded(encoder: TokenEncoder | None, *, img_size: int | None) -> TokenEncoder | None:
    """The encoder seeing whole pictures, padded to a square (reference, section 7, C1: PadToSquare and Resize)."""
    return None if encoder is None else seeing_whole_pictures(encoder, mode="pad", img_size=img_size)
