"""Train a detector on an encoder and score it: a folder with weights, detections and numbers, and the rows of results."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors.torch import save

from evals.detection.canvas import CanvasTransform
from evals.detection.chance import blind_detections
from evals.detection.coco_records import Kind
from evals.detection.coco_set import CocoSet
from evals.detection.feeding import detection_loader
from evals.detection.recipes import MaskRCNNRecipe, Recipe, TrainedDetector
from evals.detection.record import read_detections, write_detections
from evals.detection.samples import Detections
from evals.detection.scoring import Curve, Outcome, most_detections, result_rows, score_on, score_outcome
from evals.encoder import Provenance, TokenEncoder
from evals.probe.fit import build_trainer, fit_or_go_on, forget_checkpoint, quiet, unless_interrupted
from evals.results import RESULTS, EvalResult, append, code_hash, finished, hash_of
from pretrain.files import write_atomically
from pretrain.rng import draw_rng
from pretrain.types import UserError

CHANCE_TASK = "detection_chance"


@dataclass(frozen=True)
class JobConfig:
    """What is done, and where it goes.

    Attributes:
        recipe: the detector and its training.
        num_workers: processes that read pictures; 0 reads in this one. Nothing depends on it but time.
        out: folder for detectors, detections and pictures.
        results: file of rows.
    """

    recipe: Recipe = field(default_factory=MaskRCNNRecipe)
    num_workers: int = 0
    out: Path = Path("runs/evals")
    results: Path = RESULTS

    def check(self) -> None:
        """Raise UserError for what cannot be meant."""
        self.recipe.check()
        if self.num_workers < 0:
            raise UserError(f"num_workers={self.num_workers} must be 0 or more")


class DetectionJob:
    """Detectors on one data set, each on an encoder; what there is already is not made again.

    Args:
        train: pictures to train on.
        test: pictures to score.
        config: what is done.
        note: takes one line about what is reused or left out.
        accelerator: Lightning's.
    """

    def __init__(
        self,
        train: CocoSet,
        test: CocoSet,
        config: JobConfig,
        *,
        note: Callable[[str], None] = print,
        accelerator: str = "auto",
    ) -> None:
        config.check()
        self.train, self.test, self.config, self.note, self.accelerator = train, test, config, note, accelerator
        self.recipe = config.recipe
        self.kinds: list[Kind] = ["box", "mask"] if self.recipe.masks else ["box"]
        self.truth = test.ground_truth()
        if all(annotation.get("iscrowd") for annotation in self.truth["annotations"]):
            raise UserError(f"{test.name} {test.split}: no object is annotated, so that nothing can be scored")

    def run(self, encoder: TokenEncoder, *, seed: int, fingerprint: str | None = None) -> Outcome:
        """Train on an encoder (in place) and score the test set.

        Args:
            encoder: of `load_encoder`, for this job alone.
            seed: of heads, order, augmentation and held-out pictures.
            fingerprint: the encoder's, where it is known already.
        """
        started, fingerprint, task = time.perf_counter(), fingerprint or encoder.fingerprint(), self.recipe.task
        where, digest = encoder.provenance, self._digest(encoder)
        # an interrupted training is gone on with by the code that began it: its row names one code
        name = f"{fingerprint}-{hash_of([digest, code_hash()])}-s{seed}"
        folder = self.config.out / task / self.test.name / name
        wanted = {"task": task, "dataset": self.test.name, "seed": seed, "config_hash": digest}
        wanted |= {"checkpoint_hash": fingerprint, "code_hash": code_hash()}
        rows = finished(wanted, self.config.results)
        detections_file = folder / "detections.json"
        if rows and detections_file.is_file():
            self.note(f"{where.spec}: {task} on {self.test.name} is in {self.config.results} already")
            found = read_detections(detections_file, category_ids=self.test.category_ids)
            curve = [tuple(point) for point in rows[0].details["curve"]]
            return self._outcome(found, curve=curve, folder=folder, rows=rows)
        module = self._fit(encoder, folder, seed=seed, fingerprint=fingerprint)
        write_detections(detections_file, module.found, category_ids=self.test.category_ids)
        outcome = self._outcome(module.found, curve=module.curve, folder=folder)
        unreadable = {part: len(count.unreadable) for part, count in module.faults.items()}
        if unreadable["test"]:
            self.note(
                f"{self.test.name}: {unreadable['test']:,} test pictures could not be read; all in them counts as missed"
            )
        details = {"curve": module.curve, "unreadable": unreadable, "epochs": self.recipe.feeding().epochs}
        key, seconds = {**wanted, "run": str(folder)}, time.perf_counter() - started
        rows = result_rows(outcome, self.test, where, key, seconds=seconds, details=details)
        self._write(module, outcome)
        append(rows, self.config.results)
        forget_checkpoint(folder)
        return replace(outcome, rows=rows)

    def chance(self) -> Outcome:
        """The level of detections that have not looked at the picture."""
        started = time.perf_counter()
        most, masks = most_detections(self.test), self.recipe.masks
        outcome = self._outcome(blind_detections(self.train, self.test, num=most, with_masks=masks))
        digest = hash_of([self.train.identity(), self.test.identity(), masks])
        wanted = {"task": CHANCE_TASK, "dataset": self.test.name, "seed": 0, "config_hash": digest}
        wanted |= {"checkpoint_hash": "", "code_hash": code_hash()}
        rows = finished(wanted, self.config.results)
        if not rows:
            where = Provenance("chance", "", objective="none", samples_seen=0, training_flops=0.0)
            seconds = time.perf_counter() - started
            rows = result_rows(outcome, self.test, where, {**wanted, "run": ""}, seconds=seconds, details={})
            append(rows, self.config.results)
        return replace(outcome, rows=rows)

    def _digest(self, encoder: TokenEncoder) -> str:
        sets = [self.train.identity(), self.test.identity()]
        return hash_of([self.recipe.settings(), sets, encoder.transform.identity()])

    def _fit(self, encoder: TokenEncoder, folder: Path, *, seed: int, fingerprint: str) -> TrainedDetector:
        config, workers = self.recipe.feeding(), self.config.num_workers
        size = config.img_size or encoder.transform.spec.img_size
        fit_S, held_S = self._split(seed)
        training = CanvasTransform(size, jitter=config.jitter, flip=config.flip, seed=seed)
        plain = CanvasTransform(size)
        batch_size = min(config.batch_size, len(fit_S))
        fit = detection_loader(self.train, fit_S, training, batch_size=batch_size, seed=seed, num_workers=workers)
        held = detection_loader(self.train, held_S, plain, batch_size=config.batch_size, num_workers=workers)
        test = detection_loader(
            self.test, np.arange(len(self.test)), plain, batch_size=config.batch_size, num_workers=workers
        )
        module = self.recipe.build(
            encoder,
            self.train,
            steps_per_epoch=len(fit.sampler),
            seed=seed,
            score_held_out=self._scorer(held_S) if len(held_S) else None,
            fingerprint=fingerprint,
        )
        quiet()
        folder.mkdir(parents=True, exist_ok=True)
        trainer = build_trainer(
            folder,
            max_epochs=config.epochs,
            check_val_every_n_epoch=config.check_every_epochs or config.epochs,
            accelerator=self.accelerator,
            accumulate=config.accumulate,
        )
        fit_or_go_on(trainer, module, fit, held if len(held_S) else None, folder)
        unless_interrupted(trainer, lambda: trainer.test(module, test, verbose=False))
        return module

    def _split(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Training pictures to fit on, and those that are only looked at."""
        total, config = len(self.train), self.recipe.feeding()
        num_held = config.num_held_out if config.check_every_epochs else 0
        if num_held >= total:
            raise UserError(
                f"train.num_held_out={num_held}: {self.train.name} has {total:,} training pictures; hold out fewer (0 for none)"
            )
        order = draw_rng(seed, "detection/held-out", 0).permutation(total)
        return np.sort(order[num_held:]), np.sort(order[:num_held])

    def _scorer(self, held_S: np.ndarray) -> Callable[[list[Detections]], tuple[float, float]]:
        truth = self.train.subset(self.train.image_ids[held_S]).ground_truth()

        def ap(found: list[Detections]) -> tuple[float, float]:
            scores = score_on(self.train, truth, found)
            return scores.ap or 0.0, scores.ap50 or 0.0

        return ap

    def _outcome(
        self,
        found: list[Detections],
        *,
        curve: Curve | None = None,
        folder: Path | None = None,
        rows: list[EvalResult] | None = None,
    ) -> Outcome:
        about = {"curve": curve, "folder": folder, "rows": rows}
        return score_outcome(self.test, self.truth, found, kinds=self.kinds, **about)

    def _write(self, module: TrainedDetector, outcome: Outcome) -> None:
        folder = outcome.folder
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.detector.state_dict().items()}
        write_atomically(folder / "detector.safetensors", save(tensors))
        content = {
            **{kind: {**scores.metrics(), "per_class": scores.per_class} for kind, scores in outcome.scores.items()},
            "held_out_curve": outcome.curve,
            "classes": list(self.test.classes),
            "config": self.recipe.settings(),
        }
        write_atomically(folder / "scores.json", (json.dumps(content, indent=2, default=str) + "\n").encode())
