"""Grounding DINO on one encoder and one data set, the paper's protocol: training, scores, and the rows of results.

Shape letters: X expressions of a split.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save

from evals.detection.backbone import checked_backbone
from evals.detection.canvas import CanvasTransform
from evals.encoder import TokenEncoder
from evals.grounding.answers import has_answers, write_answers
from evals.grounding.batches import expression_loader
from evals.grounding.chance import all_chances
from evals.grounding.datasets import RefData
from evals.grounding.dino_config import DinoRecipe
from evals.grounding.dino_model import build_grounding_dino
from evals.grounding.dino_module import GroundingDinoModule
from evals.grounding.expressions import Located
from evals.grounding.metrics import TOP_K, Placed, place
from evals.grounding.record import result_rows, row_key
from evals.grounding.ref_set import RefSet
from evals.grounding.text_features import load_text_encoder, model_fingerprint
from evals.probe.fit import build_trainer, fit_or_go_on, forget_checkpoint, quiet, unless_interrupted
from evals.results import RESULTS, EvalResult, append, code_hash, finished, hash_of
from pretrain.files import write_atomically

TASK = "grounding_dino"


@dataclass(frozen=True)
class DinoJobConfig:
    """What is done, and where it goes.

    Attributes:
        recipe: model and training.
        num_workers: processes that read pictures; nothing depends on it but time.
        out: folder for detectors, answers and pictures.
        results: file of rows.
    """

    recipe: DinoRecipe
    num_workers: int = 0
    out: Path = Path("runs/evals")
    results: Path = RESULTS


class DinoJob:
    """One encoder on one data set; the rows that there are already are not made again.

    Args:
        encoder: of `load_encoder`, for this job alone: it is trained in place unless the recipe freezes it.
        data: the splits.
        config: what is done.
        seed: of the detector's new weights, the order and the intervals.
        note: takes one line about what is reused or left out.
        fingerprint: the encoder's, where it is known already.
        accelerator: Lightning's.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        data: RefData,
        config: DinoJobConfig,
        *,
        seed: int,
        note: Callable[[str], None] = print,
        fingerprint: str | None = None,
        accelerator: str = "auto",
    ) -> None:
        config.recipe.check()
        self.fingerprint = fingerprint or encoder.fingerprint()
        self.encoder, self.data, self.config, self.seed = encoder, data, config, seed
        self.note, self.accelerator = note, accelerator
        # of the encoder as it was loaded: training changes it
        self._digest = self._settings()

    @property
    def folder(self) -> Path:
        # an interrupted fit is gone on with by the code that began it: its row names one code
        settings = hash_of([self._digest, code_hash()])
        return self.config.out / TASK / self.data.name / f"{self.fingerprint}-{settings}-s{self.seed}"

    def _settings(self) -> str:
        recipe = self.config.recipe
        sets = [part.identity() for part in (self.data.train, self.data.watch, *self.data.scored)]
        text = model_fingerprint(load_text_encoder(recipe.dino.language.model)[1])
        return hash_of([asdict(recipe), text, sets, self.encoder.transform.identity()])

    def run(self) -> list[EvalResult]:
        """Rows of precision@1, @5, @10 and mean IoU on each split that is scored."""
        started = time.perf_counter()
        where = self.encoder.provenance
        key = row_key(
            TASK, dataset=self.data.name, seed=self.seed, config_hash=self._digest, fingerprint=self.fingerprint
        )
        if (found := finished(key, self.config.results)) and has_answers(self.folder, self.data.scored):
            self.note(f"{where.spec}: {TASK} on {self.data.name} is in {self.config.results} already")
            return found
        module, trainer = self._fit()
        chances = all_chances(self.data.train, self.data.scored)
        rows: list[EvalResult] = []
        for part in self.data.scored:
            loader = self._loader(part)
            module.faults["test"].unreadable.clear()  # of this split only
            unless_interrupted(trainer, lambda loader=loader: trainer.test(module, loader, verbose=False))
            best = [Located(one.sent_id, one.box_K4[: max(TOP_K)], one.score_K[: max(TOP_K)]) for one in module.answers]
            write_answers(self.folder / f"answers_{part.split}.csv", part, best)
            placed = self._place(part, module.answers, top_k=TOP_K)
            details = {
                "chance": chances[part.split].plain(),
                "held_out_precision_at_1": [one["precision_at_1"] for one in module.held_out],
                "watched": self.data.watch.split,
                "pictures": len(np.unique(placed.image_id_N)),
                "unreadable": {name: len(count.unreadable) for name, count in module.faults.items()},
                "leaks": {"pictures": self.data.leaks.num_pictures, "expressions": self.data.leaks.num_samples},
                "repaired": {split.split: split.repaired for split in self.data.splits()},
            }
            about = {"folder": self.folder, "started": started, "details": details}
            rows += result_rows(key, part, placed, where, top_k=TOP_K, **about)
        rows[-1].details["last_of_task"] = True
        self._save(module, rows)
        append(rows, self.config.results)
        forget_checkpoint(self.folder)
        return rows

    @staticmethod
    def _place(dataset: RefSet, answers: list[Located], *, top_k: tuple[int, ...]) -> Placed:
        """Of the sentences whose picture could be read."""
        known = {answer.sent_id for answer in answers}
        kept = [expression for expression in dataset.expressions if expression.sent_id in known]
        return place(kept, answers, top_k=top_k)

    def _canvas(self) -> CanvasTransform:
        return CanvasTransform(self.config.recipe.img_size or self.encoder.transform.spec.img_size)

    def _loader(self, dataset: RefSet, *, seed: int | None = None) -> Any:
        batch_size = min(self.config.recipe.training.batch_size, len(dataset))
        workers = self.config.num_workers
        numbers = np.arange(len(dataset))
        return expression_loader(
            dataset, numbers, self._canvas(), batch_size=batch_size, seed=seed, num_workers=workers
        )

    def _fit(self) -> tuple[GroundingDinoModule, Any]:
        """Train, or go on from the last whole epoch."""
        quiet()
        recipe, fit = self.config.recipe, self._loader(self.data.train, seed=self.seed)

        def score(answers: list[Located]) -> dict[str, float]:
            placed = self._place(self.data.watch, answers, top_k=(1,))
            return {"precision_at_1": placed.precision(1)}

        backbone = checked_backbone(self.encoder, recipe.backbone, fingerprint=self.fingerprint)
        module = GroundingDinoModule(
            build_grounding_dino(backbone, recipe.dino, seed=self.seed),
            recipe.training,
            steps_per_epoch=len(fit.sampler),
            seed=self.seed,
            name=self.data.name,
            score=score,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        trainer = build_trainer(
            self.folder,
            max_epochs=recipe.training.epochs,
            check_val_every_n_epoch=1,
            accelerator=self.accelerator,
            accumulate=recipe.training.accumulate,
        )
        fit_or_go_on(trainer, module, fit, self._loader(self.data.watch), self.folder)
        return module, trainer

    def _save(self, module: GroundingDinoModule, rows: list[EvalResult]) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.detector.state_dict().items()}
        write_atomically(self.folder / "detector.safetensors", save(tensors))
        scores = {f"{row.split}/{row.metric}": {"value": row.value, "interval": row.interval} for row in rows}
        content = {
            "scores": scores,
            "details": {row.split: row.details for row in rows if len(row.details) > 1},
            "recipe": asdict(self.config.recipe),
        }
        write_atomically(self.folder / "scores.json", (json.dumps(content, indent=2, default=str) + "\n").encode())
