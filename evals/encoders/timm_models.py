"""`timm:NAME`, `timm:NAME@FILE`: plain ViTs as `BlockEncoder`, other models as a `MapEncoder`.

Options in brackets, whole numbers: img_size, patch_size, embed_dim, depth, num_heads, e.g.
`timm:vit_small_patch16_224[img_size=336]`.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import HTTPError  # its client's own, for what breaks off in a download
from timm.data import resolve_model_data_config
from timm.models import VisionTransformer
from torch import Tensor, nn

import pretrain.models.vision  # noqa: F401, registers this suite's sizes
from evals.encoder import BlockEncoder, Provenance, TokenEncoder
from evals.encoders.feature_maps import MapEncoder
from evals.encoders.objectives import named_objective
from evals.encoders.preprocessing import from_preprocessor, from_timm, square
from evals.encoders.specs import ModelSpec, listed, near, one_line, parse, read_object
from pretrain.models.weights import find_weights, read_tensors
from pretrain.types import UserError

_log = logging.getLogger(__name__)
OPTIONS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
#: Arguments of `timm.create_model` itself that no config.json decides.
_FACTORY_ARGS = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "features_only",
)
#: Of a config.json beside weights: how pictures enter.
_PICTURES = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
#: What a model's own code raises where tensors or arguments do not fit it.
_MISFITS = (RuntimeError, TypeError, ValueError, KeyError, AttributeError, AssertionError)


def load_timm(text: str, *, whole: str, untrained: bool) -> TokenEncoder:
    """The encoder behind `timm:`.

    Args:
        text: NAME, NAME.TAG, with options and @FILE: a file of weights, or a folder with one. Where a config.json of
            timm's lies beside the weights, sizes (of the same name) and statistics are taken from it.
        whole: the spec, for messages.
        untrained: leave the weights as they are drawn.

    Raises:
        UserError: an unknown name or tag, no way to the weights, tensors missing, left over or of another shape.
    """
    asked = parse(text, whole=whole, options=OPTIONS)
    base, config = asked.name.split(".")[0], _registered(asked)
    file = None if asked.source is None else find_weights(asked.source)
    if file is not None and (file.parent / "encoder.json").is_file():
        raise UserError(f"encoder {whole!r}: {asked.source} is an export of this suite: give its path alone")
    about = _beside(file, base)
    args = {**about.get("model_args", {}), **asked.options, "num_classes": 0}
    if not config.fixed_input_size:  # a model that takes any size has no such argument
        args.pop("img_size", None)
    overlay = {key: value for key, value in about.get("pretrained_cfg", {}).items() if key in _PICTURES}
    if untrained:
        model = _create(asked, args, overlay=overlay)
    elif file is None:
        model = _released(asked, args)
    else:
        model = _from_file(asked, file, args, overlay=overlay)
        _check_heads(asked, model, about)
    transform = from_preprocessor(file.parent) if file is not None and not overlay else None
    transform = transform or from_timm(resolve_model_data_config(model), where=f"encoder {whole!r}")
    if size := asked.options.get("img_size") or args.get("img_size"):
        transform = replace(transform, spec=replace(transform.spec, img_size=square(f"encoder {whole!r}", size)))
    provenance = Provenance(
        whole,
        asked.architecture({key: value for key, value in args.items() if key in OPTIONS}),
        "random" if untrained else _objective(asked, about, file),
        run="" if untrained or file is None else str(file),
    )
    kind = BlockEncoder if type(model) is VisionTransformer else MapEncoder
    return kind(model, transform=transform, provenance=provenance)


def _registered(asked: ModelSpec) -> Any:
    """timm's `PretrainedCfg` for the name and its tag."""
    base, _, tag = asked.name.partition(".")
    if not timm.is_model(base):
        raise UserError(f"encoder {asked.whole!r}: {base!r} is no timm model{near(base, timm.list_models())}")
    try:
        config = timm.get_pretrained_cfg(asked.name)
    except RuntimeError as error:
        tags = [name.partition(".")[2] for name in timm.list_models(f"{base}.*", pretrained=True)]
        raise UserError(f"encoder {asked.whole!r}: {tag!r} is no tag of {base}; it has {listed(tags)}") from error
    assert config is not None, f"timm knows nothing about {asked.name}"
    return config


def _beside(file: Path | None, base: str) -> dict[str, Any]:
    """What timm's config.json beside weights says; arguments only where it is about the model of this name."""
    about = read_object(file.parent / "config.json") if file is not None else {}
    if "architecture" not in about:
        return {}
    found = {key: about[key] for key in ("model_args", "pretrained_cfg") if isinstance(about.get(key), Mapping)}
    args = {key: value for key, value in found.pop("model_args", {}).items() if key not in _FACTORY_ARGS}
    found |= {"architecture": about["architecture"], "num_heads": args.get("num_heads")}
    return found | {"model_args": args} if about["architecture"] == base else found


def _objective(asked: ModelSpec, about: Mapping[str, Any], file: Path | None) -> str:
    """By tag; a file of weights without one could hold anything."""
    if file is None or "." in asked.name:
        return named_objective(asked.name)
    tag = about.get("pretrained_cfg", {}).get("tag")
    return named_objective(f"{about['architecture']}.{tag}") if tag else "unknown"


def _create(
    asked: ModelSpec, args: Mapping[str, Any], *, overlay: Mapping[str, Any], pretrained: bool = False
) -> nn.Module:
    try:
        return timm.create_model(asked.name, pretrained=pretrained, pretrained_cfg_overlay=dict(overlay), **args)
    except _MISFITS as error:
        raise UserError(f"encoder {asked.whole!r} cannot be built: {one_line(error)}") from error


def _released(asked: ModelSpec, args: Mapping[str, Any]) -> nn.Module:
    """With the weights that timm downloads, strictly, and then without its classifier."""
    config = timm.get_pretrained_cfg(asked.name)
    otherwise = f"give timm:{asked.name}@FILE with a file of weights, or random:timm:{asked.name}"
    if config is None or not config.has_weights:
        raise UserError(f"encoder {asked.whole!r}: timm has no weights for {asked.name}; {otherwise}")
    if other := [key for key in ("embed_dim", "depth", "num_heads") if key in asked.options]:
        raise UserError(f"encoder {asked.whole!r}: {other[0]} makes another model than the released weights are of")
    # timm loads strictly only with the classifier that the weights come with
    args = {key: value for key, value in args.items() if key != "num_classes"}
    try:
        model = _create(asked, args, overlay={}, pretrained=True)
    except (OSError, HTTPError) as error:
        raise UserError(
            f"encoder {asked.whole!r}: the hub that has its weights cannot be reached ({type(error).__name__}); {otherwise}"
        ) from error
    if getattr(model, "num_classes", 0):
        _log.warning("%s: the classifier is left out (%s)", asked.whole, config.classifier)
    model.reset_classifier(0)
    return model


def _from_file(asked: ModelSpec, file: Path, args: Mapping[str, Any], *, overlay: Mapping[str, Any]) -> nn.Module:
    """With a file's weights, strictly, by timm's own reading of layouts; classifiers are left out."""
    tensors = read_tensors(file)
    named = timm.get_pretrained_cfg(asked.name).classifier or ()
    heads = (named,) if isinstance(named, str) else named
    # timm reads the projection of CLIP's own layout as a classifier
    names = ["visual.proj", *(f"{head}.{part}" for head in heads for part in ("weight", "bias"))]
    dropped = [name for name in names if name in tensors]
    if dropped:
        _log.warning("%s: the classifier is left out (%s)", asked.whole, ", ".join(dropped))
    tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    _check_positions(asked, file, tensors, args)
    overlay = {**overlay, "state_dict": tensors, "num_classes": 0, "label_offset": 0}
    try:
        model = timm.create_model(asked.name, pretrained=True, pretrained_cfg_overlay=overlay, **args)
    except _MISFITS as error:
        layout = "model_type" in read_object(file.parent / "config.json")
        hint = "; Hugging Face's layout is read by hf:DIR" if layout else ""
        raise UserError(
            f"encoder {asked.whole!r}: {file} does not fit {asked.name}: {one_line(error)}{hint}"
        ) from error
    model.pretrained_cfg.pop("state_dict")  # it would be kept for as long as the model
    return model


def _check_positions(asked: ModelSpec, file: Path, tensors: Mapping[str, Tensor], args: Mapping[str, Any]) -> None:
    """UserError where timm would resample positions without having been asked for another size."""
    if "img_size" in asked.options or "pos_embed" not in tensors:
        return
    with torch.device("meta"):
        model = _create(asked, args, overlay={})
    own, theirs = getattr(model, "pos_embed", None), tensors["pos_embed"]
    if isinstance(own, Tensor) and own.ndim == theirs.ndim == 3 and own.shape[1] != theirs.shape[1]:
        raise UserError(
            f"encoder {asked.whole!r}: pos_embed in {file} has {theirs.shape[1]} positions, {asked.name} has {own.shape[1]}; "
            "name the model of that size, or have them resampled by an img_size in brackets, e.g. "
            f"timm:{asked.name}[img_size=336]@FILE"
        )


def _check_heads(asked: ModelSpec, model: nn.Module, about: Mapping[str, Any]) -> None:
    """No tensor's shape shows the number of heads."""
    theirs = about.get("num_heads")
    if theirs and isinstance(model, VisionTransformer) and model.blocks[0].attn.num_heads != theirs:
        raise UserError(
            f"encoder {asked.whole!r}: the weights have {theirs} heads, {asked.name} has {model.blocks[0].attn.num_heads}; "
            f"give [num_heads={theirs}]"
        )
