"""The objective that a config names."""

import json
from pathlib import Path
from typing import Any

from timm.models import VisionTransformer
from torch import nn

from pretrain.models.attention import PrefixConfig
from pretrain.models.decoder import DecoderConfig
from pretrain.objectives.aimv2 import AIMv2Objective
from pretrain.objectives.config import ContrastiveConfig, MAEConfig, ObjectiveConfig, TextTowerConfig
from pretrain.objectives.contrastive import ContrastiveObjective
from pretrain.objectives.mae import MAEObjective

#: The name of an objective that nothing describes.
UNKNOWN = "unknown"
_CLASSES: dict[str, type[nn.Module]] = {
    "aimv2": AIMv2Objective,
    "clip": ContrastiveObjective,
    "siglip": ContrastiveObjective,
    "mae": MAEObjective,
}


def build_objective(config: ObjectiveConfig, *, encoder: VisionTransformer, vocab_size: int) -> nn.Module:
    """The objective with fresh weights; it keeps the contract of :class:`pretrain.objectives.base.Objective`.

    Args:
        config: its options.
        encoder: only its sizes are read.
        vocab_size: of the captions' tokenizer.

    Raises:
        UserError: options that have no effect on its kind, or cannot be meant.
    """
    config.check()
    return _CLASSES[config.kind](config, encoder=encoder, vocab_size=vocab_size)


def read_objective_config(fields: dict[str, Any]) -> ObjectiveConfig:
    """From the plain data that `dataclasses.asdict` makes of it. Exports of before there were rivals lack the later fields.

    Raises:
        TypeError: a field that there is not.
        KeyError: a kind that there is not.
    """
    if fields.get("kind", "aimv2") not in _CLASSES:
        raise KeyError(fields["kind"])
    nested = {"decoder": DecoderConfig, "prefix": PrefixConfig, "mae": MAEConfig}
    values = {name: nested[name](**value) if name in nested else value for name, value in fields.items()}
    if "contrastive" in values:
        options = dict(values["contrastive"])
        values["contrastive"] = ContrastiveConfig(**options | {"text": TextTowerConfig(**options["text"])})
    return ObjectiveConfig(**values)


def objective_name(config: ObjectiveConfig) -> str:
    """What rows of results call it: aimv2, aimv1, captioner (Cap), cappa, clip, siglip, mae."""
    if config.kind != "aimv2":
        return config.kind
    if config.text_weight == 0:
        return "aimv1"
    if config.image_weight > 0:
        return "aimv2"
    return "cappa" if config.parallel > 0 else "captioner"


def exported_objective(export: Path) -> str:
    """Name of the objective in an export's objective.json; "unknown" where there is none, or something else."""
    try:
        fields = json.loads((export / "objective.json").read_text())["objective"]
        if not {"image_weight", "text_weight"} <= fields.keys():  # as defaults they would make an AIMv2 of anything
            return UNKNOWN
        return objective_name(read_objective_config(fields))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return UNKNOWN
