"""Weights to start a run from: an export of this suite, timm's, Hugging Face's or the released AIMv2 layout, from files.

A file of torch's is read with `weights_only=True` and nothing else: a pickle runs code when it is loaded.
"""

import json
import logging
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor

from pretrain.models.layouts import detect_layout, names_in
from pretrain.models.sharding import shard_like
from pretrain.types import ImageSpec, UserError

_log = logging.getLogger(__name__)
#: What a folder of weights may hold, the first that is there counts.
FILES = (
    "encoder.safetensors",
    "export/encoder.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TORCH_SUFFIXES = (".bin", ".pt", ".pth")


def load_weights(encoder: VisionTransformer, path: str | Path, *, image: ImageSpec) -> None:
    """Fill `encoder` with the weights at `path`; positions are resampled where the grid of patches differs.

    Args:
        encoder: a timm ViT as `build_encoder` makes it, whole or in shards; every rank reads the file.
        path: a file, or a folder that holds one of `FILES` or a single file of weights.
        image: how pictures are going to enter; compared with what the folder's JSON files say about its weights.

    Raises:
        UserError: nothing there, a file that is damaged or could run code, an unknown layout, tensors that are left over,
            missing or of another shape, other heads or other statistics than the weights were trained with.
    """
    file = find_weights(path)
    tensors = read_tensors(file)
    state = _to_encoder(tensors, encoder, str(file))
    _check_description(file.parent, encoder, image)
    own = encoder.state_dict()
    encoder.load_state_dict({name: shard_like(tensor, own[name]) for name, tensor in state.items()}, strict=True)
    _log.info("encoder: %d tensors from %s", len(state), file)


def find_weights(path: str | Path) -> Path:
    """The file of weights that `path` is or holds; UserError where there is none, or several and no telling which."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"encoder.weights={str(path)!r}: no such file or folder")
    for name in FILES:
        if (path / name).is_file():
            return path / name
    for suffixes in ((".safetensors",), _TORCH_SUFFIXES):
        found = sorted(file for file in path.iterdir() if file.suffix in suffixes)
        if len(found) > 1:
            names = ", ".join(file.name for file in found[:3])
            raise UserError(f"encoder.weights={str(path)!r} holds several files of weights ({names}); name one of them")
        if found:
            return found[0]
    raise UserError(
        f"encoder.weights={str(path)!r} holds no weights, e.g. model.safetensors (a run has them once it has finished)"
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file, a file of torch's, or the index of several (`*.index.json`).

    Raises:
        UserError: a file is missing, damaged, holds other things than tensors, or could run code.
    """
    if path.suffix == ".json":
        return _read_sharded(path)
    if path.suffix != ".safetensors":
        return _read_torch(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"encoder.weights: {path} is not a whole safetensors file ({_one_line(error)})") from error


def _read_sharded(index: Path) -> dict[str, Tensor]:
    """All tensors that the index names, each from the file it is said to be in, beside the index."""
    try:
        places: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"encoder.weights: {index} is no index of weights ({_one_line(error)})") from error
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        file = index.parent / shard
        if Path(shard).name != shard or Path(shard).suffix == ".json" or not file.is_file():
            raise UserError(f"encoder.weights: {index} names {shard!r}, which is no file of weights beside it")
        found = read_tensors(file)
        wanted = {name for name, place in places.items() if place == shard}
        if wanted != found.keys():
            raise UserError(f"encoder.weights: {file} and {index.name} differ in {_first(wanted ^ found.keys())}")
        tensors |= found
    return tensors


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to load it all the same: it is not shown
        culprit = re.search(r"GLOBAL (\S+)|function (\S+)", str(error))
        what = next(filter(None, culprit.groups())) if culprit else "other things than tensors"
        raise UserError(
            f"encoder.weights: {path} is refused: it holds {what}, and a pickle can run code when it is loaded; give the "
            "weights as safetensors"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever its instructions run into
        raise UserError(f"encoder.weights: {path} cannot be read ({_one_line(error)})") from error
    for key in ("state_dict", "model"):  # as training scripts wrap it
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise UserError(f"encoder.weights: {path} holds a {type(content).__name__}, not tensors by name")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(f"encoder.weights: {path} holds other things than tensors: {_first(others)}")
    return {str(name): tensor for name, tensor in content.items()}


def _to_encoder(tensors: Mapping[str, Tensor], encoder: VisionTransformer, source: str) -> dict[str, Tensor]:
    """The encoder's `state_dict` from tensors in any layout; messages use the file's own names."""
    found = detect_layout(tensors)
    if found is None:
        raise UserError(
            f"encoder.weights: {source} is in no known layout (it begins with {_first(tensors)}); give timm's, Hugging "
            "Face's Aimv2VisionModel's or the released AIMv2 checkpoints'"
        )
    layout, prefix = found
    wanted = encoder.state_dict()
    names = {name: tuple(prefix + other for other in names_in(layout, name)) for name in wanted}
    if homeless := [name for name, others in names.items() if not others]:
        raise UserError(
            f"encoder.weights: {source} is in the layout of AIMv2 ({layout}), but encoder.name is another ViT (it has "
            f"{_first(homeless)}); name an aimv2_* encoder"
        )
    placed = {other for others in names.values() for other in others}
    if unexpected := [name for name in tensors if name not in placed]:
        raise UserError(
            f"encoder.weights: {source} holds tensors that the encoder has no place for: {_first(unexpected)}; heads, class "
            "tokens and text models cannot be taken over, and encoder.depth must be the weights'"
        )
    if missing := [other for others in names.values() for other in others if other not in tensors]:
        raise UserError(
            f"encoder.weights: {source} lacks {_first(missing)}; encoder.name and encoder.depth must be the weights'"
        )
    return {
        name: _fit(name, [tensors[other] for other in names[name]], names[name], tensor, encoder, source)
        for name, tensor in wanted.items()
    }


def _fit(
    name: str, parts: list[Tensor], names: Sequence[str], like: Tensor, encoder: VisionTransformer, source: str
) -> Tensor:
    """One tensor of the encoder from its part or parts in a file, in the shape of `like`."""
    if name == "pos_embed" and parts[0].ndim == 2:  # Hugging Face's embedding has no batch axis
        parts = [parts[0][None]]
    wanted = (like.shape[0] // len(parts), *like.shape[1:])
    if name == "pos_embed" and parts[0].shape != wanted:
        return _resample(parts[0], names[0], encoder, source)
    for part, part_name in zip(parts, names, strict=True):
        if part.shape != wanted:
            raise UserError(
                f"encoder.weights: {source}: {part_name} has the shape {tuple(part.shape)}, the encoder's is {wanted}; "
                "encoder.embed_dim, patch_size and mlp_hidden_dim must be the weights'"
            )
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _resample(pos_1ND: Tensor, name: str, encoder: VisionTransformer, source: str) -> Tensor:
    """Positions of another square grid, brought to the encoder's as timm does it (bicubic, antialiased)."""
    side = math.isqrt(pos_1ND.shape[1]) if pos_1ND.ndim == 3 else 0
    if pos_1ND.ndim != 3 or side**2 != pos_1ND.shape[1] or pos_1ND.shape[2] != encoder.embed_dim:
        raise UserError(
            f"encoder.weights: {source}: {name} has the shape {tuple(pos_1ND.shape)}, the encoder's is "
            f"{tuple(encoder.pos_embed.shape)}; only a square grid of the same width can be resampled"
        )
    grid = list(encoder.patch_embed.grid_size)
    _log.info("encoder: positions resampled from %d x %d patches to %d x %d", side, side, *grid)
    return resample_abs_pos_embed(pos_1ND, new_size=grid, old_size=[side, side], num_prefix_tokens=0)


def _check_description(folder: Path, encoder: VisionTransformer, image: ImageSpec) -> None:
    """Compare what no tensor's shape shows with the JSON files beside the weights, where they say it."""
    about = {name: _read_json(folder / name) for name in ("encoder.json", "config.json", "preprocessor_config.json")}
    ours, config, preprocessor = about.values()
    args, cfg = _object(config, "model_args"), _object(config, "pretrained_cfg")
    own = _object(ours, "encoder").get("num_heads")
    heads = own or config.get("num_attention_heads") or config.get("num_heads") or args.get("num_heads")
    num_heads = encoder.blocks[0].attn.num_heads
    if heads is not None and heads != num_heads:
        raise UserError(f"encoder.num_heads is {num_heads}, the weights in {folder} have {heads}: set it to that")
    for field in ("mean", "std"):
        theirs = _object(ours, "image").get(field) or preprocessor.get(f"image_{field}") or cfg.get(field)
        mine = getattr(image, field)
        if isinstance(theirs, list) and not np.allclose(theirs, mine, atol=1e-3):
            raise UserError(f"encoder.{field} is {list(mine)}, the weights in {folder} take {theirs}: set it to that")


def _object(content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where the file is absent, unreadable or holds something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _first(names: Any) -> str:
    """The first three names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
