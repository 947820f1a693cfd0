"""Rates by layer, what is decayed, and drop path.

A layer's number is `BlockEncoder.layer_of`'s: 0 stands in front of the blocks, 1 to L are the blocks, L + 1 stands behind them.
"""

from collections.abc import Callable
from typing import Any, Protocol

from timm.layers import DropPath, calculate_drop_path_rates
from torch import nn

from evals.encoder import BlockEncoder, TokenEncoder
from pretrain.types import UserError

#: Last part of the name of parameters that are no matrices though they have their shape: positions, tokens, queries, as this
#: suite's heads, timm, open_clip and transformers call them. Tables (nn.Embedding) are told by their module.
_NO_MATRICES = {
    "pos_embed",
    "positional_embedding",
    "position_embeddings",
    "relative_position_bias_table",
    "cls_token",
    "reg_token",
    "register_tokens",
    "mask_token",
    "class_embedding",
    "latent",
    "probe",
    "query",
}
#: Where timm's blocks keep their stochastic depth.
_DROP_PATHS = {"drop_path", "drop_path1", "drop_path2"}


class Rates(Protocol):
    """Settings that decide the groups: of fine-tuning, or of a detector."""

    @property
    def lr(self) -> float: ...
    @property
    def layer_decay(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


def layer_rate(layer: int, *, config: Rates, num_layers: int) -> float:
    """Peak rate of a layer: lr * layer_decay ** (num_layers + 1 - layer), as BEiT and MAE have it."""
    return config.lr * config.layer_decay ** (num_layers + 1 - layer)


def undecayed_names(module: nn.Module) -> set[str]:
    """Names of the parameters without weight decay: fewer than two axes longer than 1, positions, tokens, queries, tables."""
    tables = {name for name, child in module.named_modules() if isinstance(child, nn.Embedding)}
    return {
        name
        for name, parameter in module.named_parameters()
        if sum(size > 1 for size in parameter.shape) < 2
        or name.rpartition(".")[2] in _NO_MATRICES
        or name.rpartition(".")[0] in tables
    }


def parameter_groups(encoder: TokenEncoder, head: nn.Module, config: Rates) -> list[dict[str, Any]]:
    """AdamW's groups, by layer and by decay: `name`, `params`, `lr` (the peak), `weight_decay`.

    Parameters that want no gradient are in none. The head has the rate of the last layer.
    """
    groups: dict[tuple[int, str, bool], list[nn.Parameter]] = {}
    blocks = isinstance(encoder, BlockEncoder)
    last = encoder.num_layers + 1 if blocks else 1
    for part, module in (("encoder", encoder), ("head", head)):
        undecayed = undecayed_names(module)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                layer = encoder.layer_of(name) if blocks and part == "encoder" else last
                groups.setdefault((layer, part, name not in undecayed), []).append(parameter)
    return [
        {
            "name": f"{part} {layer}" if part == "encoder" and blocks else part,
            "params": parameters,
            "lr": layer_rate(layer, config=config, num_layers=last - 1),
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (layer, part, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def set_drop_path(encoder: BlockEncoder, rate: float, *, make: Callable[[float], nn.Module] = DropPath) -> list[float]:
    """Give each block its rate, rising in a line from 0 to `rate` as timm builds them; returns the rates.

    timm sets them when a model is built only; a path without weights can be put in place of another at any time.

    Args:
        encoder: its blocks get new paths.
        rate: of the last block.
        make: the path of a rate above 0.

    Raises:
        UserError: blocks without such a path.
    """
    rates = calculate_drop_path_rates(rate, encoder.num_layers)
    for block, own in zip(encoder.vit.blocks, rates, strict=True):
        paths = [name for name, _ in block.named_modules() if name.rpartition(".")[2] in _DROP_PATHS]
        if not paths and rate:
            raise UserError(
                f"drop_path={rate}: {type(block).__name__} of {encoder.provenance.architecture} has no drop path; set 0"
            )
        for path in paths:
            parent, _, name = path.rpartition(".")
            setattr(block.get_submodule(parent), name, make(own) if own else nn.Identity())
    return rates
