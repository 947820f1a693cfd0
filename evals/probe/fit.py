"""Fit a probe and score it: one folder with the head, the scores and what was predicted."""

import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from evals.probe.heads import save_head
from evals.probe.module import ProbeModule
from evals.probe.scored import ProbeBatch, TestScores
from pretrain.callbacks.checkpoint import AtomicCheckpointIO
from pretrain.files import atomic_file, write_atomically

_KNOWN_WARNINGS = (
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Experiment logs directory .*",
    ".*smaller than the logging interval.*",
    ".*isinstance.treespec.*",
    ".*You defined a `validation_step` but have no `val_dataloader`.*",
    ".*No positive samples in targets.*",  # a class without a test picture: its accuracy is 0
    ".*num_workers.*",
)


@dataclass(frozen=True)
class Loaders:
    """Batches of the three parts; the test set's are asked for once, at the end."""

    fit: DataLoader[ProbeBatch]
    held: DataLoader[ProbeBatch]
    test: DataLoader[ProbeBatch]


@dataclass(frozen=True)
class Outcome:
    """A fitted probe.

    Attributes:
        setting: the chosen one, with its accuracy on the held-out pictures.
        held_out: accuracy in percent of every setting on them.
        scores: on the test set.
        folder: holds head.safetensors, predictions.csv, scores.json, metrics.csv.
    """

    setting: dict[str, float]
    held_out: list[float]
    scores: TestScores
    folder: Path


def quiet() -> None:
    """Silence Lightning's notes and the warnings about what is so on purpose."""
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def build_trainer(
    folder: Path,
    *,
    max_epochs: int,
    check_val_every_n_epoch: int,
    accelerator: str,
    accumulate: int = 1,
) -> lightning.Trainer:
    """One device, a whole checkpoint after each epoch, a bar, metrics.csv.

    There is no bound on steps: with one, Lightning 2.6 takes a run that goes on from the end of an epoch for one that was stopped
    inside it, and trains a batch too many (`FitLoop.restarting`).
    """
    checkpoint = ModelCheckpoint(
        folder / "checkpoints",
        filename="last",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
        every_n_epochs=1,
    )
    return lightning.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=max_epochs,
        check_val_every_n_epoch=check_val_every_n_epoch,
        accumulate_grad_batches=accumulate,
        num_sanity_val_steps=0,
        gradient_clip_val=None,
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[checkpoint, RichProgressBar(leave=False)],
        plugins=[AtomicCheckpointIO()],
        enable_model_summary=False,
        log_every_n_steps=10,
        default_root_dir=folder,
    )


def fit_probe(
    module: ProbeModule,
    loaders: Loaders,
    folder: Path,
    *,
    classes: Sequence[str],
    keys: Sequence[str] | None = None,
    best_on_test: bool = False,
    accelerator: str = "auto",
) -> Outcome:
    """Train all settings, choose one on the held-out pictures, score it on the test set, and write all of it to `folder`.

    An interrupted fit goes on from the last whole epoch.

    Raises:
        KeyboardInterrupt: interrupted; what is finished is kept.
        UserError: too many unreadable pictures, or every setting diverged.
    """
    quiet()
    folder.mkdir(parents=True, exist_ok=True)
    epochs = module.config.epochs
    every = 1 if module.config.mode == "cached" else epochs  # held-out pictures are encoded anew each time
    trainer = build_trainer(folder, max_epochs=epochs, check_val_every_n_epoch=every, accelerator=accelerator)
    fit_or_go_on(trainer, module, loaders.fit, loaders.held, folder)
    setting = module.settings[module.choose()]
    module.test_all = best_on_test
    unless_interrupted(trainer, lambda: trainer.test(module, loaders.test, verbose=False))
    held_out = (100 * module.held_out_G).tolist()
    chosen = {**setting._asdict(), "held_out_top1": held_out[module.chosen]}
    outcome = Outcome(chosen, held_out, module.scores, folder)
    _write(outcome, module, classes=classes, keys=keys)
    return outcome


def fit_or_go_on(
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    fit: DataLoader[Any],
    held: DataLoader[Any] | None,
    folder: Path,
) -> None:
    """Train, from the last whole epoch where `folder` has a checkpoint.

    Raises:
        KeyboardInterrupt: interrupted.
    """
    last = folder / "checkpoints" / "last.ckpt"
    set_first_epoch(fit, last)
    start = str(last) if last.is_file() else None
    unless_interrupted(trainer, lambda: trainer.fit(module, fit, held, ckpt_path=start))


def set_first_epoch(loader: DataLoader[ProbeBatch], checkpoint: Path) -> None:
    """Tell the order which epoch a fit goes on with.

    Lightning does so too, but after it has asked for the first batches of a loader with workers, which are of the order's
    epoch at that time.
    """
    if checkpoint.is_file():
        loader.sampler.set_epoch(torch.load(checkpoint, weights_only=True)["epoch"] + 1)


def forget_checkpoint(folder: Path) -> None:
    """Delete the checkpoint of a fit that is finished and recorded: its moments are twice as large as what is kept."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def unless_interrupted(trainer: lightning.Trainer, function: Any) -> None:
    """Lightning leaves the process on Ctrl-C; here the command says what is kept."""
    try:
        function()
    except SystemExit as error:
        if trainer.interrupted:
            raise KeyboardInterrupt from error
        raise
    if trainer.interrupted:
        raise KeyboardInterrupt


def _write(outcome: Outcome, module: ProbeModule, *, classes: Sequence[str], keys: Sequence[str] | None) -> None:
    folder, scores = outcome.folder, outcome.scores
    save_head(module.grid.eval().head(module.chosen), folder / "head.safetensors", classes=list(classes))
    content = {
        "setting": outcome.setting,
        "held_out_top1": [
            {**setting._asdict(), "top1": value}
            for setting, value in zip(module.settings, outcome.held_out, strict=True)
        ],
        "test": {"top1": scores.top1, "top5": scores.top5, "best_on_test_top1": scores.best_on_test},
        "per_class": dict(zip(classes, scores.per_class, strict=True)),
        "config": asdict(module.config),
        "unreadable": len(module.unreadable),
    }
    write_atomically(folder / "scores.json", (json.dumps(content, indent=2) + "\n").encode())
    write_predictions(folder / "predictions.csv", scores, keys=keys)


def write_predictions(path: Path, scores: TestScores, *, keys: Sequence[str] | None) -> None:
    """One line for each picture of the test set: its key, its label, the likeliest class, whether the label is among five."""
    with atomic_file(path) as file:
        file.write(b"picture,label,predicted,in_top5\n")
        for number, label, *top in np.asarray(scores.tested).tolist():
            name = keys[number] if keys is not None else number
            file.write(f"{name},{label},{top[0]},{int(label in top)}\n".encode())
