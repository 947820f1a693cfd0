"""Proof that the light grounding head's targets, boxes and loss are right: it over-fits eight photographs.

python -m evals.grounding.overfit_light                           half a minute on one core
python -m evals.grounding.overfit_light --data ../shared/data --epochs 12 --out runs/overfit/light

The photographs and sentences are those of evals.grounding.overfit_dino: two for each picture, for different objects, so that a
head that does not read gets half of them at most. The encoder has random weights and is frozen, as in an evaluation with this
head. Over-fitting says nothing about an encoder.
"""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback

from evals.data.labelled import BadSample
from evals.encoder import TokenEncoder, seeing_whole_pictures
from evals.features import FeatureConfig, cached_features, default_device
from evals.grounding.album import best_box
from evals.grounding.draw import Answered, draw_answers
from evals.grounding.expressions import Located
from evals.grounding.feeding import LightSplit, light_loader
from evals.grounding.light_config import LightConfig
from evals.grounding.metrics import Placed, place
from evals.grounding.module import LightModule
from evals.grounding.overfit_dino import SENT_IDS, chosen_expressions
from evals.grounding.ref_set import RefSet
from evals.grounding.scoring import answer, controls
from evals.grounding.text_features import text_features
from evals.load import load_encoder
from evals.probe.fit import quiet, unless_interrupted
from pretrain.cli import shorten
from pretrain.data.terminal import run_command
from pretrain.files import write_atomically
from pretrain.types import UserError

#: Percent right that proves it.
WANTED = 90.0
ENCODER = "random:timm:aimv2_tiny_patch14_112"
#: Steps between two lines, each on as many sentences as there are; an epoch of the trainer.
STEPS_PER_EPOCH = 25
CONFIG = LightConfig(epochs=12, warmup_epochs=1.0, weight_decay=0.0)


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m evals.grounding.overfit_light", description=__doc__.split("\n")[0], exit_on_error=False
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="holds refcoco_mini and coco_mini")
    parser.add_argument("--out", type=Path, default=Path("runs/overfit/light"))
    parser.add_argument("--epochs", type=int, default=CONFIG.epochs, help=f"of {STEPS_PER_EPOCH} steps each")
    parser.add_argument("--lr", type=float, default=CONFIG.lr)
    parser.add_argument("--img_size", type=int, default=112, help="side in pixels that pictures are squeezed into")
    parser.add_argument("--encoder", type=str, default=ENCODER)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def read_config(options: Namespace) -> LightConfig:
    """How the head is trained. Raises UserError for values that cannot be meant."""
    # one epoch has no room for a whole one of warm-up
    warmup_epochs = min(CONFIG.warmup_epochs, options.epochs / 2)
    min_lr = min(CONFIG.min_lr, options.lr)
    own = {"epochs": options.epochs, "lr": options.lr, "img_size": options.img_size}
    config = replace(CONFIG, **own, warmup_epochs=warmup_epochs, min_lr=min_lr, batch_size=len(SENT_IDS))
    config.check()
    return config


class Watch(Callback):
    """Prints a line at each look at the sentences, and keeps what it saw."""

    def __init__(self) -> None:
        self.started, self.curve = time.perf_counter(), []

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: LightModule) -> None:
        step, seconds = trainer.global_step, time.perf_counter() - self.started
        loss, right = float(trainer.callback_metrics["train/loss"]), pl_module.held_out[-1]
        self.curve.append({"step": step, "seconds": round(seconds, 1), "loss": loss, "precision@1": right})
        print(f"step {step:4d}  {seconds:4.0f} s  loss {loss:6.3f}  precision@1 {right:5.1f}", flush=True)


def build_split(dataset: RefSet, encoder: TokenEncoder, folder: Path) -> LightSplit:
    """The sentences with the encoder's tokens. Raises UserError where a picture cannot be read."""
    config = FeatureConfig(folder=folder, num_workers=0)
    features = cached_features(encoder, dataset.pictures, config, text="over-fitting")
    if features.num_unreadable:
        number = next(n for n in range(len(dataset.pictures)) if n not in features.usable_N)
        raise UserError(f"over-fitting: {dataset.pictures.file(number)} cannot be read; give the whole set")
    text = text_features([expression.text for expression in dataset.expressions], folder=folder)
    side = encoder.transform.spec.img_size
    return LightSplit(dataset, features, text, num_patches=int(np.prod(encoder.grid(side, side))))


def fit(split: LightSplit, encoder: TokenEncoder, config: LightConfig, watch: Watch, *, seed: int) -> LightModule:
    """Train on all sentences, each a row of its own, and look at them after each epoch."""
    rows = split.usable_X[:, None]
    repeated = np.tile(rows, (STEPS_PER_EPOCH, 1))
    loaders = [
        light_loader(split, repeated, batch_size=config.batch_size, seed=seed),
        light_loader(split, rows, batch_size=len(rows)),
    ]
    side = encoder.transform.spec.img_size
    module = LightModule(
        config,
        token_dim=encoder.embed_dim,
        text_dim=split.text.width,
        grid=encoder.grid(side, side),
        steps_per_epoch=len(loaders[0].sampler),
        seed=seed,
    )
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=config.epochs,
        num_sanity_val_steps=0,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    unless_interrupted(trainer, lambda: trainer.fit(module, *loaders))
    return module.to(default_device()).eval().requires_grad_(False)


def draw(path: Path, dataset: RefSet, located: Sequence[Located], placed: Placed) -> Path:
    """A page of all sentences with the head's boxes."""
    rows = []
    for expression, found, iou in zip(dataset.expressions, located, placed.best_iou_N.tolist(), strict=True):
        try:
            image = dataset.load(expression.image_id)
        except BadSample as error:
            raise UserError(f"over-fitting: {error}") from error
        rows.append(Answered(image, expression, {"light head": (best_box(found), iou)}))
    return draw_answers(path, rows, title="Eight photographs, over-fitted", subtitle="right is IoU 0.5 or more")


def run(options: Namespace) -> int:
    config, watch = read_config(options), Watch()
    quiet()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    dataset = chosen_expressions(options.data)
    for expression in dataset.expressions:
        box = ", ".join(f"{side:.0f}" for side in expression.box)
        key = dataset.pictures.key(dataset.pictures.index(expression.image_id))
        print(f"{key}  {expression.text!r}  box {box}")
    encoder = load_encoder(options.encoder, seed=options.seed).to(default_device())
    encoder = seeing_whole_pictures(encoder, img_size=config.img_size)
    split = build_split(dataset, encoder, options.out / "features")
    module = fit(split, encoder, config, watch, seed=options.seed)
    located = answer(module, split)
    placed = place(dataset.expressions, located, top_k=(1,))
    page = draw(options.out / "examples.png", dataset, located, placed)
    other = controls(module, split, seed=options.seed)
    return finish(options, dataset, placed, {"curve": watch.curve, "controls": other, "page": str(page)}, watch.started)


def finish(options: Namespace, dataset: RefSet, placed: Placed, about: dict[str, Any], started: float) -> int:
    """Write what came out, and say whether it is enough; 1 where it is not."""
    value = placed.precision(1)
    passed = value > WANTED
    content = {
        "task": "overfit",
        "model": "light",
        "dataset": dataset.name,
        "split": dataset.split,
        "synthetic": dataset.synthetic,
        "metric": "precision@1",
        "value": value,
        "mean_iou": placed.mean_iou(),
        "wanted_above": WANTED,
        "passed": passed,
        "n": len(dataset),
        "pictures": [dataset.pictures.key(index) for index in range(len(dataset.pictures))],
        "sent_ids": [expression.sent_id for expression in dataset.expressions],
        "encoder": options.encoder,
        "img_size": options.img_size,
        "seed": options.seed,
        "wall_s": round(time.perf_counter() - started, 1),
        **about,
    }
    write_atomically(options.out / "overfit.json", (json.dumps(content, indent=1) + "\n").encode())
    print(
        f"{'passed' if passed else 'FELL SHORT'}: precision@1 {value:.1f}% of {len(dataset)} sentences on "
        f"{len(dataset.pictures)} photographs, wanted above {WANTED:.0f}%, mean IoU {content['mean_iou']:.1f}; with the "
        f"sentence about another object {about['controls'].get('other_sentence', float('nan')):.1f}%; "
        f"{content['wall_s']:.0f} s; {options.out / 'overfit.json'}, {about['page']}"
    )
    return 0 if passed else 1


def main(args: Sequence[str] | None = None) -> int:
    torch.set_float32_matmul_precision("high")
    try:
        options = build_parser().parse_args(args)
    except ArgumentError as error:
        print(f"error: {shorten(str(error))}", file=sys.stderr)
        return 2
    return run_command(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
