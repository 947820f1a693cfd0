"""Proof that Grounding DINO's targets, boxes and losses are right: a small one over-fits eight photographs.

python -m evals.grounding.overfit_dino                            about 5 minutes on one core
python -m evals.grounding.overfit_dino --data ../shared/data --steps 150 --out runs/overfit/grounding_dino

Eight photographs of refcoco_mini with two sentences each, for different objects: a model that does not read gets half of them
at most. The encoder starts from random weights. Over-fitting says nothing about an encoder.
"""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from evals.detection.backbone import EncoderBackbone
from evals.detection.canvas import CanvasTransform
from evals.grounding.batches import expression_loader
from evals.grounding.dino_config import load_recipe
from evals.grounding.dino_model import build_grounding_dino
from evals.grounding.dino_module import GroundingDinoModule
from evals.grounding.expressions import Located
from evals.grounding.metrics import place
from evals.grounding.ref_set import RefSet
from evals.grounding.release import read_release
from evals.load import load_encoder
from evals.probe.fit import quiet, unless_interrupted
from pretrain.cli import shorten
from pretrain.data.terminal import run_command
from pretrain.files import write_atomically
from pretrain.types import UserError

#: Two sentences of the training split for each of eight pictures, by id; their boxes fill at least 2.5% of the picture.
SENT_IDS = (2, 0, 8, 12, 76, 78, 92, 94, 96, 100, 132, 128, 154, 158, 186, 188)
#: Percent right that proves it.
WANTED = 80.0
ENCODER = "random:timm:aimv2_tiny_patch14_112"
RECIPE = "grounding_dino_small"


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m evals.grounding.overfit_dino", description=__doc__.split("\n")[0], exit_on_error=False
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="holds refcoco_mini and coco_mini")
    parser.add_argument("--out", type=Path, default=Path("runs/overfit/grounding_dino"))
    parser.add_argument("--steps", type=int, default=150, help="of the optimiser, each on all sentences")
    parser.add_argument("--every", type=int, default=25, help="steps between two lines")
    parser.add_argument("--encoder", type=str, default=ENCODER)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def chosen_expressions(data: Path) -> RefSet:
    """The sixteen sentences. Raises UserError where they are not there."""
    whole = RefSet(
        read_release(data / "refcoco_mini" / "refcoco"), data / "coco_mini", name="refcoco_mini", split="train"
    )
    places = {expression.sent_id: number for number, expression in enumerate(whole.expressions)}
    if missing := [sent_id for sent_id in SENT_IDS if sent_id not in places]:
        raise UserError(
            f"{data / 'refcoco_mini'}: sentence {missing[0]} is not in its training split; give the whole set"
        )
    return whole.subset([places[sent_id] for sent_id in SENT_IDS])


class Watch:
    """Prints a line at each look at the sixteen sentences, and keeps what it saw."""

    def __init__(self, dataset: RefSet, *, every: int) -> None:
        self.dataset, self.every, self.started = dataset, every, time.perf_counter()
        self.curve: list[dict[str, float]] = []
        self.module: GroundingDinoModule

    def __call__(self, located: Sequence[Located]) -> dict[str, float]:
        placed = place(self.dataset.expressions, located)
        seen = {"precision@1": placed.precision(1), "precision@10": placed.precision(10), "mean_iou": placed.mean_iou()}
        loss = self.module.losses[-1] if self.module.losses else {"loss": float("nan")}
        step, seconds = self.module.global_step, time.perf_counter() - self.started
        self.curve.append({"step": step, "seconds": seconds, "loss": loss["loss"], **seen})
        print(
            f"step {step:4d}  {seconds:4.0f} s  loss {loss['loss']:6.2f}  "
            + "  ".join(f"{name} {value:5.1f}" for name, value in seen.items()),
            flush=True,
        )
        return seen


def build_module(options: Namespace, dataset: RefSet, watch: Watch) -> GroundingDinoModule:
    recipe = load_recipe(RECIPE)
    steps = replace(recipe.training, epochs=options.steps, batch_size=len(dataset))
    backbone = EncoderBackbone(load_encoder(options.encoder, seed=options.seed), recipe.backbone)
    detector = build_grounding_dino(backbone, recipe.dino, seed=options.seed)
    # an epoch is a step on all sentences
    return GroundingDinoModule(detector, steps, steps_per_epoch=1, seed=options.seed, name=dataset.name, score=watch)


def run(options: Namespace) -> int:
    if options.steps < 1 or options.every < 1:
        raise UserError(f"steps={options.steps} and every={options.every} must be at least 1")
    quiet()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    dataset = chosen_expressions(options.data)
    for expression in dataset.expressions:
        box = ", ".join(f"{side:.0f}" for side in expression.box)
        key = dataset.pictures.key(dataset.pictures.index(expression.image_id))
        print(f"{key}  {expression.text!r}  box {box}")
    watch = Watch(dataset, every=options.every)
    watch.module = build_module(options, dataset, watch)
    transform = CanvasTransform(load_recipe(RECIPE).img_size)
    numbers = np.arange(len(dataset))
    loaders = [
        expression_loader(dataset, numbers, transform, batch_size=len(dataset), seed=seed)
        for seed in (options.seed, None)
    ]
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=options.steps,
        check_val_every_n_epoch=min(options.every, options.steps),
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    unless_interrupted(trainer, lambda: trainer.fit(watch.module, *loaders))
    if not watch.curve or watch.curve[-1]["step"] < options.steps:
        unless_interrupted(trainer, lambda: trainer.validate(watch.module, loaders[1], verbose=False))
    return finish(options, dataset, watch)


def finish(options: Namespace, dataset: RefSet, watch: Watch) -> int:
    """Write what came out, and say whether it is enough; 1 where it is not."""
    value = watch.curve[-1]["precision@1"] if watch.curve else 0.0
    passed = value > WANTED
    content = {
        "task": "overfit",
        "model": "grounding_dino",
        "dataset": dataset.name,
        "split": dataset.split,
        "synthetic": dataset.synthetic,
        "metric": "precision@1",
        "value": value,
        "wanted_above": WANTED,
        "passed": passed,
        "n": len(dataset),
        "pictures": [dataset.pictures.key(index) for index in range(len(dataset.pictures))],
        "sent_ids": list(SENT_IDS),
        "encoder": options.encoder,
        "seed": options.seed,
        "wall_s": time.perf_counter() - watch.started,
        "curve": watch.curve,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "overfit.json", json.dumps(content, indent=1).encode())
    verdict = "passed" if passed else "FELL SHORT"
    print(
        f"{verdict}: precision@1 {value:.1f}% of {len(dataset)} sentences on {len(dataset.pictures)} photographs, "
        f"wanted above {WANTED:.0f}%; {content['wall_s']:.0f} s; {options.out / 'overfit.json'}"
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
