"""Proof that the detector's targets, boxes, masks and losses are right: a small Mask R-CNN over-fits eight photographs.

python -m evals.detection.overfit                                 about 11 minutes on one core
python -m evals.detection.overfit --data ../shared/data --epochs 12 --out runs/overfit/mask_rcnn

The encoder starts from random weights. Over-fitting says nothing about an encoder: the pictures that are trained on are scored.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from evals.detection.backbone import BackboneConfig
from evals.detection.canvas import CanvasTransform
from evals.detection.coco_eval import score
from evals.detection.config import DetectionConfig, MaskRCNNConfig
from evals.detection.datasets import load_detection_config
from evals.detection.draw import Example, draw_examples
from evals.detection.feeding import detection_loader
from evals.detection.misses import nothing_found
from evals.detection.module import DetectionModule
from evals.detection.record import write_detections
from evals.detection.samples import Detections
from evals.features import default_device
from evals.load import load_encoder
from evals.probe.fit import build_trainer, quiet, unless_interrupted
from pretrain.cli import shorten
from pretrain.data.terminal import run_command
from pretrain.files import write_atomically
from pretrain.types import UserError

#: Training pictures of coco_mini without crowds, whose objects are all at least 45 pixels wide and high on the canvas.
IMAGE_IDS = (84533, 249346, 163497, 353072, 281789, 187334, 213148, 194322)
IMG_SIZE = 256
#: AP50 of boxes, in percent, that proves it.
WANTED = 80.0
ENCODER = "random:timm:aimv2_tiny_patch14_112"
#: Steps between two scorings; an epoch of the trainer.
STEPS_PER_EPOCH = 25
CONFIG = DetectionConfig(
    detector=MaskRCNNConfig(
        factors=(4.0, 2.0, 1.0, 0.5),
        anchor_scale=6.0,
        fc_channels=256,
        mask_convs=2,
        num_proposals=100,
        num_anchors=128,
        num_rois=48,
        score_threshold=0.05,
    ),
    backbone=BackboneConfig(window=0),
    img_size=IMG_SIZE,
    flip=False,
    lr=1e-3,
    layer_decay=1.0,
    weight_decay=0.0,
    warmup_steps=20,
    clip=5.0,
    epochs=10,
    batch_size=8,
    check_every_epochs=1,
)


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m evals.detection.overfit", description=__doc__.split("\n")[0], exit_on_error=False
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="holds coco_mini")
    parser.add_argument("--out", type=Path, default=Path("runs/overfit/mask_rcnn"))
    parser.add_argument("--epochs", type=int, default=CONFIG.epochs, help=f"of {STEPS_PER_EPOCH} steps each")
    parser.add_argument("--lr", type=float, default=CONFIG.lr)
    parser.add_argument("--encoder", type=str, default=ENCODER)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def run(options: Namespace) -> int:
    started, config = time.perf_counter(), replace(CONFIG, epochs=options.epochs, lr=options.lr)
    whole, _ = load_detection_config("coco_mini", path=str(options.data / "coco_mini")).build(with_masks=True)
    pictures = whole.subset(IMAGE_IDS)
    truth, ids = pictures.ground_truth(), pictures.category_ids
    if any(annotation["iscrowd"] for annotation in truth["annotations"]):
        raise UserError("over-fitting: the listed pictures must be without crowds")
    print(
        f"over-fitting {len(pictures)} pictures of coco_mini, {len(truth['annotations'])} objects: {list(IMAGE_IDS)}",
        flush=True,
    )
    plain, one_pass = CanvasTransform(IMG_SIZE), np.arange(len(pictures))
    repeated = np.tile(one_pass, STEPS_PER_EPOCH)
    fit = detection_loader(pictures, repeated, plain, batch_size=config.batch_size, seed=options.seed)
    again = detection_loader(pictures, one_pass, plain, batch_size=config.batch_size)

    def look(found: list[Detections]) -> tuple[float, float]:
        scores = score(truth, found, category_ids=ids)
        took = time.perf_counter() - started
        print(
            f"{len(module.curve) * STEPS_PER_EPOCH + STEPS_PER_EPOCH:>5} steps, {took:4.0f} s: box AP50 {scores.ap50:.1f}",
            flush=True,
        )
        return scores.ap or 0.0, scores.ap50 or 0.0

    module = DetectionModule(
        load_encoder(options.encoder, seed=options.seed).to(default_device()),
        config,
        num_classes=len(pictures.classes),
        steps_per_epoch=len(fit.sampler),
        seed=options.seed,
        score_held_out=look,
    )
    quiet()
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(options.out, max_epochs=config.epochs, check_val_every_n_epoch=1, accelerator="auto")
    unless_interrupted(trainer, lambda: trainer.fit(module, fit, again))
    unless_interrupted(trainer, lambda: trainer.test(module, again, verbose=False))
    scores = {kind: score(truth, module.found, category_ids=ids, kind=kind) for kind in ("box", "mask")}
    write_detections(options.out / "detections.json", module.found, category_ids=ids)
    found = {one.image_id: one for one in module.found}
    examples = []
    for index, image_id in enumerate(pictures.image_ids.tolist()):
        examples.append(Example(*pictures.load(index), {"found": found.get(image_id, nothing_found(image_id))}))
    title = "Eight photographs, over-fitted"
    page = draw_examples(options.out / "examples.png", examples, classes=pictures.classes, title=title)
    content = {
        "image_ids": list(IMAGE_IDS),
        **{f"{kind}_{name}": value for kind, own in scores.items() for name, value in own.metrics().items()},
        "steps": config.epochs * len(fit.sampler),
        "encoder": options.encoder,
        "seed": options.seed,
        "wall_s": round(time.perf_counter() - started, 1),
    }
    write_atomically(options.out / "overfit.json", (json.dumps(content, indent=2) + "\n").encode())
    passed = scores["box"].ap50 > WANTED
    print(
        f"{'passed' if passed else 'FELL SHORT'}: box AP50 {scores['box'].ap50:.1f} (wanted above {WANTED:.0f}), mask AP50 "
        f"{scores['mask'].ap50:.1f}, box AP {scores['box'].ap:.1f}; {content['wall_s']:.0f} s; {options.out}, {page}"
    )
    return 0 if passed else 1


def main(args: Sequence[str] | None = None) -> int:
    parser = build_parser()
    try:
        options = parser.parse_args(args)
    except ArgumentError as error:
        print(f"error: {shorten(str(error))}", file=sys.stderr)
        return 2
    return run_command(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
