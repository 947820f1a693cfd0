"""Classification with frozen features: attentive and linear probes, k-NN and few-shot, each a few rows of results.

Shape letters: S pictures of a split, E width of summaries, C classes.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evals.data.augment import train_transform
from evals.data.config import DatasetConfig, build_set
from evals.data.labelled import LabelledSet
from evals.data.split import few_shot_indices, hold_out
from evals.encoder import TokenEncoder, feature_width
from evals.features import CachedFeatures, FeatureConfig, cached_features
from evals.neighbours import KS, PENALTIES, accuracy, fit_ridge, knn_votes
from evals.probe.config import ProbeConfig
from evals.probe.feeding import CachedRows, Pictures, batch_loader
from evals.probe.fit import Loaders, fit_probe, forget_checkpoint
from evals.probe.heads import HeadConfig
from evals.probe.module import ProbeModule
from evals.results import RESULTS, EvalResult, append, code_hash, command_line, finished, hash_of
from evals.statistics import wilson
from pretrain.types import UserError

#: Metrics that are no share of the pictures scored, and have no interval of one.
NOT_SHARES = ("mean_per_class", "top1_best_on_test")
TASKS = ("attentive_probe", "linear_probe", "knn", "few_shot")
#: A linear read-out needs larger steps than a pooled one; the grid is ours.
LINEAR = ProbeConfig(lrs=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), head=HeadConfig(kind="linear"))


@dataclass(frozen=True)
class ClassifyConfig:
    """What is evaluated, and how.

    Attributes:
        tasks: of TASKS.
        probe: the attentive probe.
        linear: the linear probe, on the model's own summary of a picture or the mean of its tokens.
        shots: examples of each class for few-shot classification.
        num_draws: draws of the examples, whose scores are averaged.
        best_on_test: report the best setting on the test set too, as papers do; labelled as such.
        features: how features are encoded and kept.
        out: folder for heads, predictions and the rest.
        results: file of rows.
    """

    tasks: tuple[str, ...] = TASKS
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    linear: ProbeConfig = LINEAR
    shots: tuple[int, ...] = (1, 5, 10)
    num_draws: int = 5
    best_on_test: bool = False
    features: FeatureConfig = field(default_factory=FeatureConfig)
    out: Path = Path("runs/evals")
    results: Path = RESULTS

    def check(self) -> None:
        """Raise UserError for what cannot be meant."""
        if unknown := [task for task in self.tasks if task not in TASKS]:
            raise UserError(f"tasks: {unknown[0]!r} is unknown; there are {', '.join(TASKS)}")
        if not self.shots or min(self.shots) < 1 or self.num_draws < 1:
            raise UserError(f"shots={list(self.shots)} and num_draws={self.num_draws} must be at least 1")
        self.probe.check()
        self.linear.check()
        self.features.check()


class Evaluation:
    """One encoder on one data set: its parts, its features when they are needed, and the rows that there are already.

    Args:
        encoder: on the device that it is to run on.
        dataset: the data set.
        config: what is evaluated.
        seed: of the held-out part, the heads, the order and the examples of few-shot classification.
        note: takes one line about what is reused or left out.
        fingerprint: the encoder's, where it is known already.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        dataset: DatasetConfig,
        config: ClassifyConfig,
        *,
        seed: int,
        note: Callable[[str], None] = print,
        fingerprint: str | None = None,
    ) -> None:
        config.check()
        self.encoder, self.dataset, self.config, self.seed, self.note = encoder, dataset, config, seed, note
        self.fingerprint = fingerprint or encoder.fingerprint()
        size = encoder.transform.spec.img_size
        self.train: LabelledSet = build_set(dataset, "train", img_size=size)
        self.test: LabelledSet = build_set(dataset, "test", img_size=size)
        self.num_classes = len(self.train.classes)
        self._check_classes()
        self._name_partial()
        self._features: dict[str, CachedFeatures] = {}

    def _check_classes(self) -> None:
        """Labels mean the same in both parts."""
        pairs = enumerate(zip_longest(self.train.classes, self.test.classes))
        for label, (one, other) in pairs:
            if one != other:
                raise UserError(
                    f"{self.dataset.name}: label {label} is {one!r} in the training split and {other!r} in the test split; both "
                    "must list the same classes in the same order"
                )

    def _name_partial(self) -> None:
        """A set of another size than the published one is not called by its name."""
        sizes = {"train": (len(self.train), self.dataset.num_train), "test": (len(self.test), self.dataset.num_test)}
        wrong = {part: pair for part, pair in sizes.items() if pair[1] is not None and pair[0] != pair[1]}
        if wrong:  # with check_sizes it would have been an error
            told = ", ".join(
                f"{there:,} of {expected:,} pictures in {part}" for part, (there, expected) in wrong.items()
            )
            self.note(f"{self.dataset.name}: {told}: rows and tables call it {self.dataset.name}-partial")
            self.dataset = replace(self.dataset, name=f"{self.dataset.name}-partial")

    def features(self, part: str) -> CachedFeatures:
        """Of "train" or "test", encoded on first use."""
        if part not in self._features:
            dataset = self.train if part == "train" else self.test
            self._features[part] = cached_features(
                self.encoder,
                dataset,
                self.config.features,
                text=f"{self.encoder.provenance.spec}: {dataset.name} {part}",
                fingerprint=self.fingerprint,
            )
            if self._features[part].num_unreadable:
                self.note(
                    f"{dataset.name} {part}: {self._features[part].num_unreadable:,} unreadable pictures left out"
                )
        return self._features[part]

    def split(self, usable_N: np.ndarray, *, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Training pictures to fit on, and those that settings are chosen on."""
        label_N = self.train.label_N[usable_N]
        if np.bincount(label_N).max() > 1:
            fit, held = hold_out(label_N, share=share, seed=self.seed)
        else:  # one picture a class: some classes are held out whole
            order = np.random.default_rng(self.seed).permutation(len(usable_N))
            count = max(1, round(share * len(usable_N)))
            held, fit = np.sort(order[:count]), np.sort(order[count:])
            self.note(
                f"{self.train.name}: too few pictures of a class to hold some out of each; {count} are held out of all"
            )
        return usable_N[fit], usable_N[held]

    def run(self) -> list[EvalResult]:
        """Rows of all tasks; those that are in the file already are not made again."""
        rows: list[EvalResult] = []
        tasks: dict[str, Callable[[str], list[EvalResult]]] = {
            "attentive_probe": lambda digest: self._probe("attentive_probe", self.config.probe, digest),
            "linear_probe": lambda digest: self._probe("linear_probe", self.config.linear, digest),
            "knn": self._knn,
            "few_shot": self._few_shot,
        }
        for task in self.config.tasks:
            digest = self._config_hash(task)
            found = self.finished_rows(task, digest)
            if found:
                self.note(
                    f"{self.encoder.provenance.spec}: {task} on {self.dataset.name} is in {self.config.results} already"
                )
            else:
                found = tasks[task](digest)
                append(found, self.config.results)
                if "probe" in task:
                    forget_checkpoint(Path(found[0].run))
            rows += found
        return rows

    def _config_hash(self, task: str) -> str:
        own: Any = {
            "attentive_probe": lambda: (asdict(self.config.probe), self.config.best_on_test),
            "linear_probe": lambda: (asdict(self.config.linear), self.config.best_on_test),
            "knn": lambda: (KS, self.config.probe.held_out),
            "few_shot": lambda: (self.config.shots, self.config.num_draws, PENALTIES),
        }[task]()
        features = {name: getattr(self.config.features, name) for name in ("dtype", "precision")}
        if "probe" in task:
            own = (*own, self.dataset.augment, self.dataset.batch_size, self.dataset.warmup_epochs)
        return hash_of([own, features, self.train.identity(), self.test.identity(), self.encoder.transform.identity()])

    def finished_rows(self, task: str, digest: str) -> list[EvalResult]:
        """The task's rows of an earlier run, all of them."""
        wanted = {"task": task, "dataset": self.dataset.name, "seed": self.seed, "config_hash": digest}
        wanted |= {"checkpoint_hash": self.fingerprint, "code_hash": code_hash()}
        return finished(wanted, self.config.results)

    def make_rows(
        self,
        task: str,
        digest: str,
        values: Iterable[tuple[str, float, dict[str, Any]]],
        *,
        started: float,
        n: int,
        folder: Path | None = None,
    ) -> list[EvalResult]:
        where = self.encoder.provenance
        rows = [
            EvalResult(
                task=task,
                dataset=self.dataset.name,
                synthetic=self.train.synthetic,
                split="test",
                metric=metric,
                value=value,
                n=n,
                seed=self.seed,
                encoder=where.spec,
                objective=where.objective,
                samples_seen=where.samples_seen,
                training_flops=where.training_flops,
                config_hash=digest,
                checkpoint_hash=self.fingerprint,
                code_hash=code_hash(),
                run=str(folder or where.run),
                command=command_line(),
                wall_s=round(time.perf_counter() - started, 1),
                interval=wilson(value, n) if metric not in NOT_SHARES else None,
                details=details,
            )
            for metric, value, details in values
        ]
        rows[-1].details["last_of_task"] = True
        return rows

    def _probe(self, task: str, config: ProbeConfig, digest: str) -> list[EvalResult]:
        started = time.perf_counter()
        # the code's hash too: an interrupted fit must not go on under other code
        name = f"{self.fingerprint}-{digest}-{code_hash()[:8]}-s{self.seed}"
        folder = self.config.out / task / self.dataset.name / name
        batch_size = config.batch_size or self.dataset.batch_size
        linear = config.head.kind == "linear"
        cached = config.mode == "cached"
        usable_N = self.features("train").usable_N if cached else np.arange(len(self.train))
        fit_N, held_N = self.split(usable_N, share=config.held_out)
        batch_size = min(batch_size, len(fit_N))
        if cached:
            train, test = (CachedRows(self.features(part), summaries=linear) for part in ("train", "test"))
            held, test_N, workers = train, self.features("test").usable_N, 0
            width = self.features("train").summary_SE.shape[1] if linear else self.encoder.embed_dim
        else:
            augment = train_transform(self.dataset.augment, transform=self.encoder.transform, seed=self.seed)
            train, held = Pictures(self.train, augment), Pictures(self.train, self.encoder.transform)
            test, test_N = Pictures(self.test, self.encoder.transform), np.arange(len(self.test))
            workers, width = self.config.features.num_workers, feature_width(self.encoder, kind=config.head.kind)
        loaders = Loaders(
            batch_loader(train, fit_N, batch_size=batch_size, seed=self.seed, num_workers=workers),
            batch_loader(held, held_N, batch_size=batch_size, num_workers=workers),
            batch_loader(test, test_N, batch_size=batch_size, num_workers=workers),
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            module = ProbeModule(
                config,
                embed_dim=width,
                num_classes=self.num_classes,
                steps_per_epoch=len(loaders.fit.sampler),
                warmup_epochs=config.warmup(self.dataset.warmup_epochs),
                encoder=None if cached else self.encoder,
                precision=self.config.features.precision,
            )
        keys = [self.test.key(index) for index in range(len(self.test))]
        outcome = fit_probe(
            module, loaders, folder, classes=self.train.classes, keys=keys, best_on_test=self.config.best_on_test
        )
        scores, n = outcome.scores, len(outcome.scores.tested)
        unreadable = self._unreadable() if cached else len(module.unreadable)
        per_class = dict(zip(self.train.classes, scores.per_class, strict=True))
        present = np.unique(self.test.label_N)
        values: list[tuple[str, float, dict[str, Any]]] = [
            (
                "top1",
                scores.top1,
                {"setting": outcome.setting, "per_class": per_class, "unreadable": unreadable},
            ),
            ("top5", scores.top5, {}),
            ("mean_per_class", float(np.mean([scores.per_class[label] for label in present])), {}),
        ]
        if scores.best_on_test is not None:
            values.append(
                ("top1_best_on_test", scores.best_on_test, {"note": "the setting was chosen on the test set"})
            )
        return self.make_rows(task, digest, values, started=started, n=n, folder=folder)

    def _unreadable(self) -> dict[str, int]:
        return {part: self.features(part).num_unreadable for part in ("train", "test")}

    def _summaries(self, part: str, index_N: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(part)
        return features.summaries(index_N), torch.from_numpy(features.label_S[index_N]).long()

    def _knn(self, digest: str) -> list[EvalResult]:
        """k is chosen on the held-out pictures; the test set then has all training pictures as neighbours."""
        started = time.perf_counter()
        train_N, test_N = self.features("train").usable_N, self.features("test").usable_N
        fit_N, held_N = self.split(train_N, share=self.config.probe.held_out)
        ks = [k for k in KS if k <= len(fit_N)] or [1]
        (fit, fit_y), (held, held_y) = self._summaries("train", fit_N), self._summaries("train", held_N)
        votes = knn_votes(held, fit, fit_y, num_classes=self.num_classes, ks=ks)
        chosen = max(ks, key=lambda k: accuracy(votes[k], held_y))
        (train, train_y), (test, test_y) = self._summaries("train", train_N), self._summaries("test", test_N)
        vote_BC = knn_votes(test, train, train_y, num_classes=self.num_classes, ks=[chosen])[chosen]
        top1 = accuracy(vote_BC, test_y)
        details = {"k": chosen, "unreadable": self._unreadable()}
        return self.make_rows("knn", digest, [("top1", top1, details)], started=started, n=len(test_N))

    def _few_shot(self, digest: str) -> list[EvalResult]:
        """Ridge regression on a few examples of each class; the penalty is chosen on other training pictures."""
        started = time.perf_counter()
        train_N, test_N = self.features("train").usable_N, self.features("test").usable_N
        label_N = self.train.label_N[train_N]
        test, test_y = self._summaries("test", test_N)
        values: list[tuple[str, float, dict[str, Any]]] = []
        for shots in self.config.shots:
            if np.bincount(label_N, minlength=self.num_classes).min() < shots:
                self.note(f"{self.train.name}: {shots}-shot is left out, a class has fewer training pictures")
                continue
            scores, penalties = [], []
            for draw in range(self.config.num_draws):
                chosen = few_shot_indices(label_N, shots=shots, seed=1000 * self.seed + draw)
                x, y = self._summaries("train", train_N[chosen])
                others = np.setdiff1d(np.arange(len(train_N)), chosen)
                rest = np.random.default_rng(draw).permutation(others)[:2000]
                penalty = PENALTIES[len(PENALTIES) // 2]
                if len(rest):
                    held, held_y = self._summaries("train", train_N[np.sort(rest)])
                    fits = {p: fit_ridge(x, y, num_classes=self.num_classes, penalty=p) for p in PENALTIES}
                    penalty = max(PENALTIES, key=lambda p: accuracy(fits[p](held), held_y))
                scores.append(accuracy(fit_ridge(x, y, num_classes=self.num_classes, penalty=penalty)(test), test_y))
                penalties.append(penalty)
            deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
            details = {
                "draws": scores,
                "deviation": deviation,
                "penalties": penalties,
                "unreadable": self._unreadable(),
            }
            values.append((f"top1_{shots}shot", float(np.mean(scores)), details))
        if not values:
            return []
        return self.make_rows("few_shot", digest, values, started=started, n=len(test_N))
