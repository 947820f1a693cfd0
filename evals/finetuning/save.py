"""A fine-tuned encoder on disk, so that it loads again: as an export of this suite, for timm, or as plain tensors.

encoder/encoder.safetensors encoder.json    of a run or an export: `runs/.../encoder` is an encoder's name again
encoder/model.safetensors   config.json     of a timm model: `timm:NAME@.../encoder/model.safetensors` is
encoder/vision.safetensors                  of other families, whose files hold more than the encoder
encoder/finetuned.json                      where it comes from; :func:`load_finetuned` loads all three
head.safetensors                            the head, beside `encoder/`
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from evals.encoder import TokenEncoder
from evals.encoders.specs import parse, read_object
from evals.load import load_encoder
from evals.probe.heads import load_head
from pretrain.export import FORMAT, find_export, load_pretrained, save_json, save_tensors
from pretrain.models.vision import EncoderConfig
from pretrain.models.weights import find_weights, read_tensors
from pretrain.types import UserError

_RANDOM = "random:"
_INFO = "finetuned.json"


def _kind(encoder: TokenEncoder) -> str:
    """Whose model it is: "timm", "open_clip", "hf", or "run" for this suite's own."""
    prefix, colon, _ = encoder.provenance.spec.removeprefix(_RANDOM).partition(":")
    return prefix if colon and prefix in ("timm", "open_clip", "hf") else "run"


def _run_config(encoder: TokenEncoder) -> EncoderConfig:
    return load_pretrained(encoder.provenance.spec.removeprefix(_RANDOM), encoder_only=True).config


def check_savable(encoder: TokenEncoder) -> None:
    """Raise UserError, before it is trained, for an encoder whose description is not where it was loaded from."""
    if _kind(encoder) == "run":
        find_export(encoder.provenance.spec.removeprefix(_RANDOM))


def save_finetuned(encoder: TokenEncoder, folder: Path, *, info: Mapping[str, Any]) -> str | None:
    """Write an encoder to `folder`; returns the name that `load_encoder` takes, None where only `load_finetuned` can.

    Args:
        encoder: trained; as `load_encoder` gave it otherwise.
        folder: holds nothing else.
        info: how it was fine-tuned, plain data.
    """
    where = encoder.provenance
    about = dict(info) | {"started_from": where.spec, "architecture": where.architecture, "objective": where.objective}
    match _kind(encoder):
        case "run":
            spec: str | None = _save_run(encoder, folder, about)
        case "timm":
            spec = _save_timm(encoder, folder)
        case _:
            save_tensors(encoder.vision_state(), folder / "vision.safetensors")
            spec = None
    save_json(about | {"load_as": spec}, folder / _INFO)
    return spec


def _save_run(encoder: TokenEncoder, folder: Path, about: dict[str, Any]) -> str:
    where = encoder.provenance
    # samples and FLOPs are those of the pre-training, as `load_encoder` reads them
    info = about | {"samples_seen": where.samples_seen, "training_flops": where.training_flops}
    content = {
        "format": FORMAT,
        "encoder": asdict(replace(_run_config(encoder), weights=None)),
        "image": asdict(encoder.transform.spec),
        "info": info,
    }
    save_tensors(encoder.vit.state_dict(), folder / "encoder.safetensors")
    save_json(content, folder / "encoder.json")
    return str(folder)


def _save_timm(encoder: TokenEncoder, folder: Path) -> str:
    """timm's layout. A name's tag is left out: it stands for weights that these are not."""
    from evals.encoders.timm_models import OPTIONS  # imported on use, as in evals.load

    spec = encoder.provenance.spec
    asked = parse(spec.removeprefix(_RANDOM).removeprefix("timm:"), whole=spec, options=OPTIONS)
    name = asked.name.partition(".")[0]
    args = _args_beside(asked.source, name) | asked.options
    transform = encoder.transform
    pictures = {
        "input_size": [3, transform.spec.img_size, transform.spec.img_size],
        "interpolation": transform.interpolation,
        "crop_pct": transform.crop_pct,
        "crop_mode": {"crop": "center", "squash": "squash"}[transform.mode],
        "mean": list(transform.spec.mean),
        "std": list(transform.spec.std),
        "num_classes": 0,
    }
    model = encoder.vit if hasattr(encoder, "vit") else encoder.model
    save_tensors(model.state_dict(), folder / "model.safetensors")
    content = {"architecture": name, "num_classes": 0, "model_args": args, "pretrained_cfg": pictures}
    save_json(content, folder / "config.json")
    options = f"[{','.join(f'{key}={value}' for key, value in asked.options.items())}]" if asked.options else ""
    return f"timm:{name}{options}@{folder / 'model.safetensors'}"


def _args_beside(source: str | None, name: str) -> dict[str, Any]:
    """Arguments of the model that stand beside the weights which it was loaded with."""
    about = read_object(find_weights(source).parent / "config.json") if source is not None else {}
    args = about.get("model_args")
    return dict(args) if isinstance(args, Mapping) and about.get("architecture") == name else {}


def load_finetuned(folder: str | Path) -> tuple[TokenEncoder, nn.Module]:
    """The encoder and the head of a fine-tuning's folder, in evaluation mode on the CPU; the folder may have been moved.

    Logits are `head(features.all_tokens())` of an attentive head, `head(features.summary())` of a linear one.

    Raises:
        UserError: no such folder, damaged files, or (of other families than runs and timm) the place that it was
            started from, whose description of the model is needed, is gone.
    """
    encoder_folder = Path(folder) / "encoder"
    about = read_object(encoder_folder / _INFO)
    if "started_from" not in about:
        raise UserError(f"{folder} is no folder that a fine-tuning has finished (no {encoder_folder / _INFO})")
    head = load_head(Path(folder) / "head.safetensors")
    if (encoder_folder / "encoder.json").is_file():
        return load_encoder(str(encoder_folder)), head
    if (encoder_folder / "model.safetensors").is_file():
        name = about["load_as"].removeprefix("timm:").partition("@")[0]
        return load_encoder(f"timm:{name}@{encoder_folder / 'model.safetensors'}"), head
    encoder = load_encoder(_RANDOM + about["started_from"].removeprefix(_RANDOM))
    encoder.text = None
    tensors = read_tensors(encoder_folder / "vision.safetensors")
    try:
        encoder.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{encoder_folder / 'vision.safetensors'} does not fit {about['started_from']}: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    return encoder, head
