"""Exports: a folder with the encoder in timm's own names, the objective and the tokenizer beside it, and one call to load it.

export/encoder.safetensors  encoder.json    weights; timm name, sizes, picture size and statistics
export/objective.safetensors objective.json  decoder(s), for captions and predicted patches; or text tower and pooling
export/tokenizer/
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from timm.models import VisionTransformer
from torch import Tensor, nn

from pretrain.data.tokenizers import CaptionTokenizer, load_tokenizer
from pretrain.files import write_atomically
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.module import PretrainModule
from pretrain.objectives.build import build_objective, read_objective_config
from pretrain.run import checkpoint_path
from pretrain.types import ImageSpec, UserError

FORMAT = 1


@dataclass
class Pretrained:
    """What an export holds, in evaluation mode on the CPU.

    Attributes:
        config: the encoder by name and sizes.
        encoder: `forward_features(image_BCHW)` gives tokens [B, N, D] under full attention.
        image: picture size and statistics that belong to the weights.
        objective: with its decoder(s) or text tower; None in an export of the encoder alone.
        tokenizer: of the captions; None likewise.
        info: where the weights come from (step, samples seen, validation losses).
    """

    config: EncoderConfig
    encoder: VisionTransformer
    image: ImageSpec
    objective: nn.Module | None
    tokenizer: CaptionTokenizer | None
    info: dict[str, Any]


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(tensors, metadata={"format": "pt"}))


def save_json(content: dict[str, Any], path: Path) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def export_module(
    module: PretrainModule, folder: Path, *, image: ImageSpec, tokenizer: CaptionTokenizer, info: dict[str, Any]
) -> Path:
    """Write encoder, objective and tokenizer to `folder`; returns it."""
    save_tensors(module.encoder.state_dict(), folder / "encoder.safetensors")
    # the weights are these now; where the run started from is told, and not needed to load them
    config = replace(module.encoder_config, weights=None)
    if module.encoder_config.weights is not None:
        info = info | {"started_from": module.encoder_config.weights}
    encoder = {"format": FORMAT, "encoder": asdict(config), "image": asdict(image), "info": info}
    save_json(encoder, folder / "encoder.json")
    save_tensors(module.objective.state_dict(), folder / "objective.safetensors")
    save_json({"format": FORMAT, "objective": asdict(module.objective_config)}, folder / "objective.json")
    tokenizer.save(folder / "tokenizer")
    return folder


def find_export(path: str | Path) -> Path:
    """The export folder of `path`: an export or a run.

    Raises:
        UserError: nothing there, or a run that has not finished.
    """
    path = Path(path)
    for folder in (path, path / "export"):
        if (folder / "encoder.json").is_file():
            return folder
    if checkpoint_path(path).is_file():
        raise UserError(f"{path} is a run that has not finished; finish it with --ckpt_path last")
    raise UserError(f"{path} is neither a run nor an export (no encoder.json there or in {path / 'export'})")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if content.get("format") != FORMAT:
        raise UserError(f"{path} has format {content.get('format')}, this version reads {FORMAT}")
    return content


def _load_strictly(module: nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{path} does not hold the weights that its json describes: {str(error).splitlines()[-1].strip()}"
        ) from error


def load_pretrained(path: str | Path, *, encoder_only: bool = False) -> Pretrained:
    """Load a run's export, or an export folder, in one call.

    Args:
        path: the run or export.
        encoder_only: leave objective and tokenizer alone.

    Raises:
        UserError: nothing there, a damaged file, or weights that do not fit.
    """
    folder = find_export(path)
    about = _read_json(folder / "encoder.json")
    try:
        config = EncoderConfig(**about["encoder"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'encoder.json'} is not this version's: {error}") from error
    encoder = build_encoder(config)
    _load_strictly(encoder, folder / "encoder.safetensors")
    image = ImageSpec(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in about["image"].items()}
    )
    objective = tokenizer = None
    if (folder / "objective.json").is_file() and not encoder_only:
        tokenizer = load_tokenizer(folder / "tokenizer")
        fields = _read_json(folder / "objective.json")["objective"]
        try:
            objective_config = read_objective_config(fields)
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / 'objective.json'} is not this version's: {error}") from error
        objective = build_objective(objective_config, encoder=encoder, vocab_size=tokenizer.vocab_size)
        _load_strictly(objective, folder / "objective.safetensors")
        objective.eval().requires_grad_(False)
    return Pretrained(config, encoder.eval().requires_grad_(False), image, objective, tokenizer, about["info"])


def load_encoder(path: str | Path) -> tuple[VisionTransformer, ImageSpec]:
    """The encoder of a run or export, with its picture size and statistics."""
    loaded = load_pretrained(path, encoder_only=True)
    return loaded.encoder, loaded.image
