"""`python -m pretrain export RUN --to timm|hf|aim`: an encoder for other libraries, each format in a folder of its own.

timm   `timm.create_model("local-dir:FOLDER", pretrained=True)`, without this suite; any encoder
hf     `transformers.Aimv2VisionModel.from_pretrained(FOLDER)`; aimv2_* encoders
aim    the layout of the released checkpoints (apple/ml-aim); aimv2_* encoders

Every folder holds model.safetensors, config.json, the preprocessing (timm keeps it in its config.json, the others in
preprocessor_config.json) and a README.md that says what it is and how it is loaded. Features are those of the encoder.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pretrain.export import Pretrained, find_export, load_pretrained, save_json, save_tensors
from pretrain.files import write_atomically
from pretrain.model_card import FILES, model_card
from pretrain.models.layouts import Layout, to_layout
from pretrain.models.sizes import VISION_SIZES
from pretrain.models.vision import mlp_ratio, timm_args
from pretrain.types import ImageSpec, UserError

#: Plain timm does not know this suite's own sizes; they are this model of timm's with other numbers.
TIMM_BASE = "aimv2_large_patch14_224"


def encoder_sizes(model: Pretrained) -> dict[str, int]:
    """Widths in features, picture and patch in pixels, counts; as the built encoder has them."""
    encoder = model.encoder
    mlp = encoder.blocks[0].mlp
    return {
        "img_size": model.image.img_size,
        "patch_size": encoder.patch_embed.patch_size[0],
        "embed_dim": encoder.embed_dim,
        "depth": len(encoder.blocks),
        "num_heads": encoder.blocks[0].attn.num_heads,
        "mlp_hidden_dim": mlp.fc2.in_features,
    }


def timm_model(model: Pretrained) -> tuple[str, dict[str, Any]]:
    """Name and arguments with which timm alone builds the encoder."""
    args = timm_args(model.config)
    name = model.config.name.split(".")[0]
    if name not in VISION_SIZES:
        return name, args
    sizes = encoder_sizes(model)
    hidden = sizes.pop("mlp_hidden_dim")
    return TIMM_BASE, args | sizes | {"mlp_ratio": mlp_ratio(hidden, embed_dim=sizes["embed_dim"])}


def _timm_files(model: Pretrained) -> dict[str, dict[str, Any]]:
    architecture, args = timm_model(model)
    image = model.image
    pretrained_cfg = {
        "num_classes": 0,
        "input_size": [3, image.img_size, image.img_size],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": list(image.mean),
        "std": list(image.std),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return {
        "config.json": {
            "architecture": architecture,
            "num_classes": 0,
            "num_features": model.encoder.embed_dim,
            "global_pool": "avg",
            "model_args": args,
            "pretrained_cfg": pretrained_cfg,
        }
    }


def _preprocessor(image: ImageSpec) -> dict[str, Any]:
    """Hugging Face's image processor for `EvalTransform`: short side to the size, centre crop, statistics."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": image.img_size},
        "resample": 3,  # PIL's bicubic
        "do_center_crop": True,
        "crop_size": {"height": image.img_size, "width": image.img_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }


def _hf_files(model: Pretrained) -> dict[str, dict[str, Any]]:
    sizes = encoder_sizes(model)
    config = {
        "architectures": ["Aimv2VisionModel"],
        "model_type": "aimv2_vision_model",
        "hidden_size": sizes["embed_dim"],
        "intermediate_size": sizes["mlp_hidden_dim"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["num_heads"],
        "num_channels": 3,
        "image_size": sizes["img_size"],
        "patch_size": sizes["patch_size"],
        "hidden_act": "silu",
        "rms_norm_eps": model.encoder.norm.eps,
        "qkv_bias": False,
        "mlp_bias": False,
        "use_head": False,
        "is_native": False,
        "dtype": "float32",
    }
    return {"config.json": config, "preprocessor_config.json": _preprocessor(model.image)}


def _aim_files(model: Pretrained) -> dict[str, dict[str, Any]]:
    sizes = encoder_sizes(model)
    # the arguments of ml-aim's AIMv2VisionEncoder
    config = {"num_blocks" if name == "depth" else name: value for name, value in sizes.items()}
    return {"config.json": config, "preprocessor_config.json": _preprocessor(model.image)}


_JSON_FILES: dict[Layout, Callable[[Pretrained], dict[str, dict[str, Any]]]] = {
    "timm": _timm_files,
    "hf": _hf_files,
    "aim": _aim_files,
}


def export_as(path: str | Path, layout: Layout, *, out: str | Path | None = None) -> Path:
    """Write the encoder of a run or export for another library; returns the folder.

    Args:
        path: a run, or an export.
        layout: "timm", "hf" or "aim".
        out: the folder to write; beside the export, e.g. runs/NAME/export-timm, where not given.

    Raises:
        UserError: no export at `path`, a folder that holds other things, or an encoder that the format has no place for.
    """
    export = find_export(path)
    folder = export.resolve().with_name(f"{export.resolve().name}-{layout}") if out is None else Path(out)
    _check_out(folder)
    model = load_pretrained(export, encoder_only=True)
    if layout != "timm" and not model.config.name.startswith("aimv2_"):
        raise UserError(
            f"encoder.name={model.config.name!r} is no AIMv2 encoder, --to {layout} has no place for it: give --to timm"
        )
    save_tensors(to_layout(model.encoder.state_dict(), layout), folder / "model.safetensors")
    for name, content in _JSON_FILES[layout](model).items():
        save_json(content, folder / name)
    architecture, args = timm_model(model)
    card = model_card(
        model, layout, export=export, sizes=encoder_sizes(model), architecture=architecture, model_args=args
    )
    write_atomically(folder / "README.md", card.encode())
    return folder


def _check_out(folder: Path) -> None:
    """UserError where `folder` is a file, or holds anything but an earlier export of this kind."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: give a folder")
    foreign = sorted(file.name for file in folder.iterdir() if file.name not in FILES) if folder.is_dir() else []
    if foreign:
        raise UserError(f"--out {folder} holds other things ({', '.join(foreign[:3])}): give an empty or a new folder")


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain export",
        description="Write a trained encoder for timm, for Hugging Face, or in the released AIMv2 layout.",
        allow_abbrev=False,
    )
    parser.add_argument("run", help="a run or an export, e.g. runs/latest")
    parser.add_argument("--to", choices=list(_JSON_FILES), required=True, help="who is going to load it")
    parser.add_argument("--out", type=Path, default=None, help="folder to write; RUN/export-TO where not given")
    options = parser.parse_args(args)
    try:
        folder = export_as(options.run, options.to, out=options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {folder}; how it is loaded is in {folder / 'README.md'}")
    return 0
