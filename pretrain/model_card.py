"""The README.md of an exported encoder: what it is, how it was trained, how it is loaded."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pretrain.export import Pretrained
from pretrain.models.layouts import Layout
from pretrain.objectives.build import UNKNOWN, exported_objective
from pretrain.types import ImageSpec

#: What an exported folder holds.
FILES = ("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
_TITLES: dict[Layout, str] = {
    "timm": "for timm",
    "hf": "for Hugging Face transformers",
    "aim": "in the layout of the released AIMv2 checkpoints (apple/ml-aim)",
}
_TIMM = """\
import timm
import torch

encoder = timm.create_model("local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder))  # PIL picture to tensor
with torch.no_grad():
    tokens = encoder.forward_features(torch.zeros(1, 3, {img_size}, {img_size}))  # [1, {num_patches}, {embed_dim}]
"""
_HF = """\
import torch
from transformers import Aimv2VisionModel, AutoImageProcessor

encoder = Aimv2VisionModel.from_pretrained("{folder}").eval()
processor = AutoImageProcessor.from_pretrained("{folder}")  # PIL picture to tensor
with torch.no_grad():
    tokens = encoder(torch.zeros(1, 3, {img_size}, {img_size})).last_hidden_state  # [1, {num_patches}, {embed_dim}]
"""
_AIM = """\
import json

import timm
import torch

# timm converts this layout by itself; with ml-aim installed, it is
#   model = aim.v2.torch.models.AIMv2VisionEncoder(**json.load(open("{folder}/config.json")))
#   model.load_state_dict(safetensors.torch.load_file("{folder}/model.safetensors"))
processing = json.load(open("{folder}/preprocessor_config.json"))
encoder = timm.create_model(
    "{architecture}",
    pretrained=True,
    pretrained_cfg_overlay=dict(
        file="{folder}/model.safetensors", mean=processing["image_mean"], std=processing["image_std"]
    ),
    **{model_args},
).eval()
with torch.no_grad():
    tokens = encoder.forward_features(torch.zeros(1, 3, {img_size}, {img_size}))  # [1, {num_patches}, {embed_dim}]
"""
_SNIPPETS: dict[Layout, str] = {"timm": _TIMM, "hf": _HF, "aim": _AIM}
_LIBRARIES: dict[Layout, str] = {"timm": "timm", "hf": "transformers", "aim": "timm"}
#: Objective, by `pretrain.objectives.build.objective_name`, -> what the weights were trained to do.
_HOW = {
    "aimv2": "AIMv2's objective (arXiv 2411.14402), patches and captions predicted by a causal decoder",
    "aimv1": "patches predicted by a causal decoder, no captions (after AIMv1, arXiv 2401.08541)",
    "captioner": "captions predicted by a causal decoder, no patches (after Cap, arXiv 2306.07915)",
    "cappa": "captions predicted by a decoder, some of them in parallel (after CapPa, arXiv 2306.07915)",
    "clip": "CLIP's objective (arXiv 2103.00020), pictures and captions contrasted by a softmax",
    "siglip": "SigLIP's objective (arXiv 2303.15343), pictures and captions contrasted by a sigmoid",
    "mae": "MAE's objective (arXiv 2111.06377), hidden patches restored, no captions",
    UNKNOWN: "with which objective is not recorded beside this export",
}
#: Where the data lies on somebody's disk is nobody else's business.
_PRIVATE = ("path", "images")


def model_card(
    model: Pretrained,
    layout: Layout,
    *,
    export: Path,
    sizes: dict[str, int],
    architecture: str,
    model_args: dict[str, Any],
) -> str:
    """Markdown, with the tags that model hubs read on top.

    Args:
        model: the encoder and what its export says about it.
        layout: whom the card is for.
        export: the folder that the weights come from; the run's config.yaml, beside it, tells the data.
        sizes: of the encoder, by name.
        architecture: timm's name for the encoder.
        model_args: timm's arguments for it.
    """
    name, objective = model.config.name, exported_objective(export)
    num_params = sum(parameter.numel() for parameter in model.encoder.parameters())
    num_patches = (sizes["img_size"] // sizes["patch_size"]) ** 2
    digest = hashlib.sha256((export / "encoder.safetensors").read_bytes()).hexdigest()
    snippet = _SNIPPETS[layout].format(
        folder=".", num_patches=num_patches, architecture=architecture, model_args=model_args, **sizes
    )
    rows = [("parameters", f"{num_params:,}"), *((key, f"{value:,}") for key, value in sizes.items())]
    lines = [
        *_front_matter(layout, objective),
        "",
        f"# {name}, {_TITLES[layout]}",
        "",
        f"A vision encoder without a head, pre-trained with aimv2-suite: {_HOW[objective]}. It gives one token per patch, under "
        "full attention.",
        *_apart(objective, layout),
        "",
        *_table("encoder", [*rows, ("patches", f"{num_patches:,}")]),
        "",
        "## How it is loaded",
        "",
        f"```python\n{snippet}```",
        "",
        "## Pictures",
        "",
        _pictures(model.image),
        "",
        "## How it was trained",
        "",
        *_training(model.info, export),
        "",
        f"Written from `encoder.safetensors` with SHA-256 `{digest}`.",
    ]
    return "\n".join(lines) + "\n"


def _front_matter(layout: Layout, objective: str) -> list[str]:
    # hubs list models by their tags: a rival's weights must not be found among AIMv2's
    own = [] if objective == UNKNOWN else [objective]
    return [
        "---",
        f"library_name: {_LIBRARIES[layout]}",
        "pipeline_tag: image-feature-extraction",
        f"tags: [{', '.join([*own, 'image-feature-extraction'])}]",
        "---",
    ]


def _apart(objective: str, layout: Layout) -> list[str]:
    """What else a reader might take these weights for."""
    lines = []
    if objective != "aimv2" and layout != "timm":
        lines.append(
            "The files' layout, and the class that loads them, are AIMv2's, because the architecture is; the weights were not "
            "trained with AIMv2's objective."
            if objective != UNKNOWN
            else "The files' layout, and the class that loads them, are AIMv2's, because the architecture is."
        )
    if objective in ("clip", "siglip"):
        lines.append(
            "The text tower, the pooling and the projections into the space shared with text are not part of this folder: it "
            "cannot compare pictures with texts."
        )
    return [line for text in lines for line in ("", text)]


def _pictures(image: ImageSpec) -> str:
    mean, std = (", ".join(f"{value:.8g}" for value in values) for values in (image.mean, image.std))
    return (
        f"RGB, short side to {image.img_size} pixels (bicubic), centre crop of {image.img_size} x {image.img_size}, bytes "
        f"divided by 255, then normalised with mean ({mean}) and standard deviation ({std})."
    )


def _training(info: dict[str, Any], export: Path) -> list[str]:
    data = _data(export.parent / "config.yaml") if export.name == "export" else None  # elsewhere it is not the run's
    if data is None:
        text = ["The data is not recorded beside this export."]
    else:
        synthetic = "kind: scenes" in data
        note = " Scenes are generated, synthetic pictures." if synthetic else ""
        text = [f"Data, from the run's config, without paths.{note}", "", f"```yaml\n{data}```"]
    if (start := info.get("started_from")) is not None:
        text = [f"It started from the weights `{Path(start).name}`, whose licence applies.", "", *text]
    rows = [*_flatten(_objective(export), "objective/"), *_flatten(_public(info))]
    return [*text, "", *_table("run", rows)]


def _objective(export: Path) -> dict[str, Any]:
    """The options that the objective's kind reads; empty for an export of the encoder alone."""
    try:
        fields = json.loads((export / "objective.json").read_text())["objective"]
        kind = fields.get("kind", "aimv2")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    rivals = {"contrastive", "mae"}
    if kind == "aimv2":
        return {name: value for name, value in fields.items() if name not in rivals}
    own = dict(fields.get("mae" if kind == "mae" else "contrastive", {}))
    own.pop({"clip": "bias", "siglip": "max_scale"}.get(kind), None)
    return {"kind": kind, **own}


def _data(config: Path) -> str | None:
    """The sources and the tokenizer in a run's config, as YAML without paths; None where there is none to read."""
    try:
        data = yaml.safe_load(config.read_text())["data"]
        kept = {key: _public(data[key]) for key in ("train", "mixture", "tokenizer") if data.get(key) is not None}
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError):
        return None
    return yaml.safe_dump(kept, sort_keys=False)


def _public(value: Any) -> Any:
    """`value` without fields that say where data lies, and with the last part alone of absolute paths."""
    if isinstance(value, str) and value.startswith(("/", "~", "..")):
        return Path(value).name
    if not isinstance(value, dict):
        return value
    return {key: _public(part) for key, part in value.items() if part is not None and key not in _PRIVATE}


def _flatten(info: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in info.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        elif value is not None:
            yield prefix + key, f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(title: str, rows: list[tuple[str, str]]) -> list[str]:
    return [f"| {title} | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)]
