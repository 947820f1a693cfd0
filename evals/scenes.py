"""What a pre-trained encoder and its decoder know about scenes: a plain probe, and the names in generated captions.

    python -m evals.scenes RUN [RUN ...]

For each run: a linear probe on the frozen encoder for the largest object's shape and colour, next to a random encoder of
the same architecture, and how often the caption's first colour and first shape are the largest object's, next to the same
model shown a grey picture. Several runs of one config (other seeds) are summed up as mean and deviation.

Shape letters: B batch, C channels, H/W pixels, N patches, D width.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.models import VisionTransformer
from torch import Tensor

from pretrain.data.scene_render import render
from pretrain.data.scenes import COLORS, LEVELS, SHAPES, Scene, draw_scene
from pretrain.export import Pretrained, find_export, load_pretrained
from pretrain.files import write_atomically
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.types import ImageSpec, UserError

#: Seed of the scenes that evaluations use; their splits have nothing in common with training's.
EVAL_SEED = 0
#: Scenes of the validation split below this number are the training run's own validation set.
PROBE_START = 100_000
#: Strengths of the probe's penalty, chosen on a held-out fifth of its training scenes.
PROBE_C = (0.01, 0.1, 1.0, 10.0)
GREY = 128


@dataclass(frozen=True)
class SceneSet:
    """Scenes with their pictures and labels.

    Attributes:
        scenes: the scenes.
        image_BCHW: uint8.
        level: name of each scene's level.
    """

    scenes: list[Scene]
    image_BCHW: Tensor
    level: np.ndarray

    def labels(self, kind: str) -> np.ndarray:
        return np.array([getattr(scene, f"largest_{kind}_label") for scene in self.scenes])


def draw_set(split: str, *, num: int, img_size: int, start: int = 0, levels: Sequence[str] = tuple(LEVELS)) -> SceneSet:
    """`num` scenes, the same number of each level."""
    scenes = [draw_scene(EVAL_SEED, split, start + index, {levels[index % len(levels)]: 1.0}) for index in range(num)]
    pictures = np.stack([render(scene, img_size) for scene in scenes])
    return SceneSet(scenes, torch.from_numpy(pictures).permute(0, 3, 1, 2), np.array([scene.level for scene in scenes]))


def batches(image_BCHW: Tensor, spec: ImageSpec, *, size: int = 250, text: str = "") -> Iterator[Tensor]:
    for start in track(range(0, len(image_BCHW), size), description=text, transient=True, disable=not text):
        yield spec.normalise(image_BCHW[start : start + size])


@torch.no_grad()
def pooled_features(encoder: VisionTransformer, image_BCHW: Tensor, spec: ImageSpec, *, text: str = "") -> np.ndarray:
    """Mean of the last layer's patch tokens under full attention: [B, D]."""
    return torch.cat([encoder.forward_features(part).mean(1) for part in batches(image_BCHW, spec, text=text)]).numpy()


def fit_probe(features_BD: np.ndarray, labels_B: np.ndarray) -> Any:
    """Multinomial logistic regression on standardised features; the penalty is chosen on a held-out fifth."""

    def fit(c: float, x: np.ndarray, y: np.ndarray) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=3000)).fit(x, y)

    fit_x, held_x, fit_y, held_y = train_test_split(features_BD, labels_B, test_size=0.2, random_state=0)
    best = max(PROBE_C, key=lambda c: fit(c, fit_x, fit_y).score(held_x, held_y))
    return fit(best, features_BD, labels_B)


def probe(
    encoder: VisionTransformer, spec: ImageSpec, *, train: SceneSet, test: SceneSet, text: str = ""
) -> dict[str, np.ndarray]:
    """For "shape" and "color": bool [B], whether the probe names the largest object's."""
    train_BD = pooled_features(encoder, train.image_BCHW, spec, text=f"{text}: training scenes" if text else "")
    test_BD = pooled_features(encoder, test.image_BCHW, spec, text=f"{text}: test scenes" if text else "")
    return {
        kind: fit_probe(train_BD, train.labels(kind)).predict(test_BD) == test.labels(kind)
        for kind in ("shape", "color")
    }


def first_word(caption: str, words: Sequence[str]) -> int | None:
    """Index in `words` of the one that the caption names first, None where it names none."""
    found = re.search(r"\b(" + "|".join(map(re.escape, words)) + r")s?\b", caption)
    return words.index(found.group(1)) if found else None


def named_right(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """bool [B] each: the first colour named is the largest object's, the first shape is, both are.

    Captions name the largest object first, so that a caption that lists many colours gains nothing.
    """
    pairs = list(zip(captions, scenes, strict=True))
    color = np.array([first_word(caption, COLORS) == scene.largest_color_label for caption, scene in pairs])
    shape = np.array([first_word(caption, SHAPES) == scene.largest_shape_label for caption, scene in pairs])
    return {"color": color, "shape": shape, "both": color & shape}


@torch.no_grad()
def caption_images(model: Pretrained, image_BCHW: Tensor, *, text: str = "") -> list[str]:
    """Greedy captions."""
    captions: list[str] = []
    for part in batches(image_BCHW, model.image, text=text):
        ids_BL = model.objective.generate(model.encoder, part, eos_id=model.tokenizer.eos_id)
        captions += [model.tokenizer.decode(ids) for ids in ids_BL.tolist()]
    return captions


def random_encoder(run: str | Path, *, seed: int) -> VisionTransformer:
    """The run's architecture, untrained."""
    config = json.loads((find_export(run) / "encoder.json").read_text())["encoder"]
    torch.manual_seed(seed)
    return build_encoder(EncoderConfig(**config)).eval().requires_grad_(False)


def evaluate(run: str | Path, *, num_train: int, num_test: int) -> dict[str, Any]:
    """All scores of one run, in percent, over all levels and by level."""
    model = load_pretrained(run)
    size = model.image.img_size
    train = draw_set("val", num=num_train, img_size=size, start=PROBE_START)
    test = draw_set("test", num=num_test, img_size=size)
    seed = model.info["seed"]
    hits: dict[str, dict[str, np.ndarray]] = {
        "probe": probe(model.encoder, model.image, train=train, test=test, text="trained encoder"),
        "probe_random": probe(
            random_encoder(run, seed=seed), model.image, train=train, test=test, text="random encoder"
        ),
    }
    result: dict[str, Any] = {"run": str(run), "seed": seed, "num_train": num_train, "num_test": num_test}
    if model.objective is not None and model.objective.predicts_text:
        captions = caption_images(model, test.image_BCHW, text="captions")
        grey = caption_images(model, torch.full_like(test.image_BCHW[:1], GREY)) * num_test
        hits |= {"caption": named_right(captions, test.scenes), "caption_grey": named_right(grey, test.scenes)}
        result["examples"] = captions[:10]
    result["scores"] = {
        name: {
            kind: {"all": 100 * float(hit.mean()), **{lv: 100 * float(hit[test.level == lv].mean()) for lv in LEVELS}}
            for kind, hit in kinds.items()
        }
        for name, kinds in hits.items()
    }
    return result


ROWS = (
    ("probe", "linear probe, trained encoder"),
    ("probe_random", "linear probe, random encoder"),
    ("caption", "generated caption"),
    ("caption_grey", "generated caption, grey picture shown"),
)


def summarise(results: Sequence[dict[str, Any]]) -> Table:
    """Mean and deviation over runs."""
    first = results[0]
    table = Table(
        title=f"Scenes (synthetic), largest object, {first['num_test']:,} held-out scenes, levels {', '.join(LEVELS)} alike; "
        f"percent right, mean ± deviation over {len(results)} seed{'s' if len(results) > 1 else ''}"
    )
    for column in ("", "shape", "colour", "both", "shape, by level"):
        table.add_column(column)
    chance = [100 / len(SHAPES), 100 / len(COLORS), 100 / len(SHAPES) / len(COLORS)]
    table.add_row("chance", *(f"{value:.1f}" for value in chance), "")
    for key, name in ROWS:
        if key not in first["scores"]:
            continue
        cells = []
        for kind in ("shape", "color", "both"):
            values = [result["scores"][key][kind]["all"] for result in results if kind in result["scores"][key]]
            deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{deviation}" if values else "")
        levels = [np.mean([result["scores"][key]["shape"][level] for result in results]) for level in LEVELS]
        table.add_row(
            name, *cells, ", ".join(f"{level} {value:.0f}" for level, value in zip(LEVELS, levels, strict=True))
        )
    return table


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evals.scenes", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "runs", nargs="*", default=["runs/latest"], help="runs or exports; runs/latest where none is given"
    )
    parser.add_argument("--num-train", type=int, default=16_000, help="scenes that the probe is trained on")
    parser.add_argument("--num-test", type=int, default=1000, help="held-out scenes")
    parser.add_argument(
        "--out", type=Path, default=None, help="json for all results; RUN/evals/scenes.json each where not given"
    )
    options = parser.parse_args(args)
    try:
        results = []
        for run in options.runs:
            result = evaluate(run, num_train=options.num_train, num_test=options.num_test)
            path = Path(run) / "evals" / "scenes.json"
            write_atomically(path, (json.dumps(result, indent=2) + "\n").encode())
            results.append(result)
        if options.out is not None:
            write_atomically(options.out, (json.dumps(results, indent=2) + "\n").encode())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console(width=150 if not sys.stdout.isatty() else None).print(summarise(results))
    print("written: " + ", ".join(str(options.out or Path(run) / "evals" / "scenes.json") for run in options.runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
