"""Full fine-tuning of one encoder on one data set: its parts, and the rows of results."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evals.classify import ClassifyConfig, Evaluation
from evals.data.augment import train_transform
from evals.data.config import DatasetConfig
from evals.encoder import TokenEncoder
from evals.finetuning.config import FinetuneConfig
from evals.finetuning.fit import FinetuneOutcome, fit_finetune
from evals.finetuning.module import FinetuneModule
from evals.finetuning.save import check_savable
from evals.probe.feeding import Pictures, batch_loader
from evals.probe.fit import Loaders, forget_checkpoint
from evals.results import RESULTS, EvalResult, append, code_hash, hash_of
from pretrain.types import UserError

TASK = "finetune"


@dataclass(frozen=True)
class JobConfig:
    """What is done, and where it goes.

    Attributes:
        finetune: the protocol.
        num_workers: processes that read pictures; 0 reads in this one. Nothing depends on it but time.
        out: folder for encoders, heads and predictions.
        results: file of rows.
    """

    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    num_workers: int = 1
    out: Path = Path("runs/evals")
    results: Path = RESULTS

    def check(self) -> None:
        """Raise UserError for what cannot be meant."""
        self.finetune.check()
        if self.num_workers < 0:
            raise UserError(f"num_workers={self.num_workers} must be 0 or more")


class FinetuneJob(Evaluation):
    """One encoder on one data set, to be trained on it; the rows that there are already are not made again.

    Args:
        encoder: of `load_encoder`, for this job alone: it is trained in place.
        dataset: the data set.
        config: what is done.
        seed: of the held-out part, the head, the order and the augmentations.
        note: takes one line about what is reused or left out.
        fingerprint: the encoder's, where it is known already.
        accelerator: Lightning's.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        dataset: DatasetConfig,
        config: JobConfig,
        *,
        seed: int,
        note: Callable[[str], None] = print,
        fingerprint: str | None = None,
        accelerator: str = "auto",
    ) -> None:
        config.check()
        config.finetune.check_encoder(encoder)
        check_savable(encoder)
        common = ClassifyConfig(out=config.out, results=config.results)
        super().__init__(encoder, dataset, common, seed=seed, note=note, fingerprint=fingerprint)
        self.job, self.accelerator = config, accelerator

    def run(self) -> list[EvalResult]:
        """Rows of top1, top5 and mean_per_class on the test set."""
        started, digest = time.perf_counter(), self._digest()
        found = self.finished_rows(TASK, digest)
        if found:
            spec = self.encoder.provenance.spec
            self.note(f"{spec}: {TASK} on {self.dataset.name} is in {self.config.results} already")
            return found
        # an interrupted fit is gone on with by the code that began it: its row names one code
        settings = hash_of([digest, code_hash()])
        folder = self.config.out / TASK / self.dataset.name / f"{self.fingerprint}-{settings}-s{self.seed}"
        loaders = self._loaders()
        module = FinetuneModule(
            self.encoder,
            self.job.finetune,
            num_classes=self.num_classes,
            steps_per_epoch=len(loaders.fit.sampler),
            seed=self.seed,
        )
        outcome = fit_finetune(
            module,
            loaders,
            folder,
            dataset=self.dataset.name,
            classes=self.train.classes,
            keys=[self.test.key(index) for index in range(len(self.test))],
            accelerator=self.accelerator,
        )
        n = len(outcome.scores.tested)
        rows = self.make_rows(TASK, digest, self._values(outcome, module), started=started, n=n, folder=folder)
        append(rows, self.config.results)
        forget_checkpoint(folder)
        return rows

    def _digest(self) -> str:
        sets = [self.train.identity(), self.test.identity(), self.dataset.augment]
        return hash_of([asdict(self.job.finetune), sets, self.encoder.transform.identity()])

    def _loaders(self) -> Loaders:
        config, own = self.job.finetune, self.encoder.transform
        fit_N, held_N = self.split(np.arange(len(self.train)), share=config.held_out)
        augmented = train_transform(self.dataset.augment, transform=own, seed=self.seed)
        size, workers = config.batch_size, self.job.num_workers
        test = Pictures(self.test, own)
        return Loaders(
            batch_loader(
                Pictures(self.train, augmented),
                fit_N,
                batch_size=min(size, len(fit_N)),
                seed=self.seed,
                num_workers=workers,
            ),
            batch_loader(Pictures(self.train, own), held_N, batch_size=size, num_workers=workers),
            batch_loader(test, np.arange(len(self.test)), batch_size=size, num_workers=workers),
        )

    def _values(self, outcome: FinetuneOutcome, module: FinetuneModule) -> list[tuple[str, float, dict[str, Any]]]:
        scores, config = outcome.scores, self.job.finetune
        present = np.unique(self.test.label_N)
        details = {
            "setting": {"lr": config.lr, "layer_decay": config.layer_decay, "epochs": config.epochs},
            "held_out_top1": outcome.held_out,
            "encoder": outcome.encoder,
            "per_class": dict(zip(self.train.classes, scores.per_class, strict=True)),
            "unreadable": len(module.unreadable),
        }
        return [
            ("top1", scores.top1, details),
            ("top5", scores.top5, {}),
            ("mean_per_class", float(np.mean([scores.per_class[label] for label in present])), {}),
        ]
