"""Encoders by name, from wherever they are.

runs/NAME, an export's folder      this suite's own
timm:NAME, timm:NAME@FILE          released weights, local weights; NAME[img_size=336] at another size
open_clip:NAME@TAG, @FILE          likewise
hf:DIR                             a local folder of Hugging Face's
random:SPEC                        the same architecture and transform, untrained
"""

import re
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import timm
import torch

from evals.encoder import BlockEncoder, Provenance, TokenEncoder
from evals.encoders.specs import near
from evals.transforms import ImageTransform
from pretrain.export import find_export, load_pretrained
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.objectives.build import exported_objective
from pretrain.types import UserError

#: What is evaluated where nothing is named.
LATEST = Path("runs/latest")
#: Prefix -> module and function that load what follows it. Imported on use: the libraries behind them take seconds.
_LOADERS = {
    "timm": ("evals.encoders.timm_models", "load_timm"),
    "open_clip": ("evals.encoders.open_clip_models", "load_open_clip"),
    "hf": ("evals.encoders.huggingface", "load_huggingface"),
}
_FORMS = (
    "a run or an export, timm:NAME[@FILE], open_clip:NAME@TAG, open_clip:NAME@FILE, hf:DIR, or random: and one of these"
)
_RANDOM = "random:"


class NoRunError(UserError):
    """The last run was asked for, and there is none yet."""


def load_encoder(spec: str, *, seed: int = 0) -> TokenEncoder:
    """An encoder by name, on the CPU, in evaluation mode and without gradients.

    Args:
        spec: see the top of this file.
        seed: that untrained weights (`random:SPEC`) are drawn from; trained ones do not depend on it. No other
            random numbers of the process are touched.

    Raises:
        NoRunError: runs/latest is asked for before a run has finished.
        UserError: an unknown form or name, nothing at the path, no way to the hub, weights that do not fit.
    """
    untrained = spec.startswith(_RANDOM)
    rest = spec.removeprefix(_RANDOM)
    prefix, colon, text = rest.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also set a GPU's
        if colon and prefix in _LOADERS:
            module, function = _LOADERS[prefix]
            encoder: TokenEncoder = getattr(import_module(module), function)(text, whole=spec, untrained=untrained)
            if untrained:
                encoder.provenance = replace(encoder.provenance, samples_seen=0, training_flops=0.0)
            return encoder
        if re.match(r"[A-Za-z_]\w*:", rest) and not Path(rest).exists():
            raise UserError(f"encoder {spec!r}: {prefix!r} is no known prefix{near(prefix, _LOADERS)}; give {_FORMS}")
        return _load_run(rest, whole=spec, untrained=untrained)


def _load_run(text: str, *, whole: str, untrained: bool) -> BlockEncoder:
    """A run or an export of this suite."""
    path = Path(text)
    if not path.exists():
        raise _nothing_there(path, whole)
    loaded = load_pretrained(path, encoder_only=True)
    export = find_export(path)
    vit = build_encoder(loaded.config) if untrained else loaded.encoder
    provenance = Provenance(
        whole,
        _architecture(loaded.config),
        "random" if untrained else exported_objective(export),
        samples_seen=0 if untrained else loaded.info.get("samples_seen"),
        training_flops=0.0 if untrained else loaded.info.get("training_flops"),
        run="" if untrained else str(path),
    )
    return BlockEncoder(vit, transform=ImageTransform(loaded.image), provenance=provenance)


def _nothing_there(path: Path, whole: str) -> UserError:
    if path == LATEST:
        return NoRunError(f"encoder {whole!r}: there is no run to evaluate yet; train one with `make pretrain` first")
    folder = path.parent
    runs = [str(run) for run in folder.iterdir() if run.is_dir()] if folder.is_dir() else []
    other = [str(run) for run in LATEST.parent.iterdir()] if LATEST.parent.is_dir() else []
    hint = near(str(path), {*runs, *other})
    if timm.is_model(str(path).split(".")[0]):
        hint = f"; for the timm model say timm:{path}"
    return UserError(f"encoder {whole!r}: no such run or export{hint}; give {_FORMS}")


def _architecture(config: EncoderConfig) -> str:
    """The name with the sizes that were given: what no tensor's shape shows, the heads, is among them."""
    names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden_dim")
    sizes = {name: value for name, value in asdict(config).items() if name in names and value is not None}
    return config.name + (f"[{','.join(f'{name}={value}' for name, value in sorted(sizes.items()))}]" if sizes else "")
