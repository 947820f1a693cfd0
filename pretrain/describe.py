"""`python -m pretrain describe --config FILE`: parameters, FLOPs and budget of a run, before anything is allocated or read.

The config is parsed as `fit` parses it, so that a misspelt field is the same error; models are built on the meta device.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timm.models import VisionTransformer
from torch import nn

from pretrain.cli import PretrainCLI, user_message
from pretrain.data.datamodule import ImageTextData
from pretrain.data.tokenizers import HuggingFaceTokenizer
from pretrain.flops import Flops, ModelSize, model_size
from pretrain.models.vision import build_encoder, num_patches
from pretrain.module import PretrainModule
from pretrain.objectives.aimv2 import AIMv2Objective
from pretrain.objectives.build import build_objective
from pretrain.objectives.mae import MAEObjective
from pretrain.types import CONTEXT_LENGTH, ImageTextBatch, UserError

#: Sizes of tokenizers that are named in configs, so that none is downloaded to count parameters: SigLIP's as ml-l3m
#: gives it, CLIP's BPE (reference, sections 1 and 5).
VOCAB_SIZES = {"google/siglip-base-patch16-224": 32_000, "clip": 49_408}


_PREFIXES = ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"))


class _ParsedCLI(PretrainCLI):
    """Parses and builds what the config names, but no trainer, and runs nothing."""

    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate_classes(self.config)

    def _run_subcommand(self, subcommand: str) -> None: ...


def parse(args: Sequence[str]) -> tuple[PretrainModule, Any]:
    """The module that `fit` would train with these arguments, without weights, and the whole config."""
    warnings.filterwarnings("ignore", message=".*args parameter is intended.*")
    cli = _ParsedCLI(
        PretrainModule,
        ImageTextData,
        args=["fit", *args],
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
        trainer_defaults={"max_epochs": -1},
    )
    return cli.config_init.fit.model, cli.config.fit


@dataclass(frozen=True)
class Description:
    """What a config asks for.

    Attributes:
        name: the encoder's.
        params: parameters by part: encoder, decoder (all of the objective's), text_head and pixel_head among the decoder's.
        num_patches: of a picture.
        size: sizes that a decoder's FLOPs depend on; None for an objective without a causal decoder.
        flops: of one sample's forward pass, the decoder's attention as the causal half.
        dense_flops: the same with all pairs of the decoder, as torch's counter has it.
        text_len: tokens of a caption, EOS included.
        predicted_patches: mean number of patches that are predicted.
        global_batch: samples of an optimiser step.
        steps: optimiser steps of the budget.
    """

    name: str
    params: dict[str, int]
    num_patches: int
    size: ModelSize | None
    flops: Flops
    dense_flops: Flops
    text_len: int
    predicted_patches: float
    global_batch: int
    steps: int

    @property
    def samples(self) -> int:
        return self.steps * self.global_batch


def describe(args: Sequence[str], *, text_len: int = CONTEXT_LENGTH, vocab_size: int | None = None) -> Description:
    """Describe the run that `fit` would start with `args`.

    Args:
        args: as `fit` takes them, `--config FILE` and any fields.
        text_len: tokens of a caption, EOS included, all with a target.
        vocab_size: of the tokenizer, where it is not known without loading it.

    Raises:
        UserError: sizes that do not fit, no budget, or a tokenizer of unknown size.
    """
    if not 1 <= text_len <= CONTEXT_LENGTH:
        raise UserError(f"--text-tokens {text_len} is outside 1..{CONTEXT_LENGTH}")
    module, config = parse(args)
    vocab_size = vocab_size or known_vocab_size(config.data.tokenizer, config.data.vocab_size)
    with torch.device("meta"):
        encoder = build_encoder(module.encoder_config)
        objective = build_objective(module.objective_config, encoder=encoder, vocab_size=vocab_size)
    global_batch = config.data.batch_size * world_size(config.trainer) * config.trainer.accumulate_grad_batches
    # a contrastive step compares all its pictures with all its captions: what a sample costs depends on their number
    count = global_batch if objective.contrasts else 1
    batch = _batch_of_sizes(count, text_len=text_len)
    parts = {name: objective.flops(encoder, batch, attention=name).each(count) for name in ("causal", "dense")}
    return Description(
        name=module.encoder_config.name,
        params=_params(encoder, objective),
        num_patches=num_patches(encoder),
        size=_decoder_size(encoder, objective),
        flops=parts["causal"],
        dense_flops=parts["dense"],
        text_len=text_len,
        predicted_patches=_predicted_patches(objective),
        global_batch=global_batch,
        steps=num_steps(config, global_batch),
    )


def _batch_of_sizes(count: int, *, text_len: int) -> ImageTextBatch:
    """A batch that has sizes and nothing else: captions of `text_len` tokens, all with a target."""
    return ImageTextBatch(
        image_BCHW=torch.empty(count, 3, 0, 0),
        text_BL=torch.zeros(count, text_len, dtype=torch.long),
        text_valid_BL=torch.ones(count, text_len, dtype=torch.bool),
        position_B=torch.arange(count),
        seed=0,
        keys=[""] * count,
        captions=[""] * count,
    )


def _decoder_size(encoder: VisionTransformer, objective: nn.Module) -> ModelSize | None:
    if not isinstance(objective, AIMv2Objective):
        return None
    return model_size(encoder, objective.decoder, pixel_decoder=objective.pixel_decoder)


def _predicted_patches(objective: nn.Module) -> float:
    if isinstance(objective, MAEObjective):
        return objective.num_hidden
    if not getattr(objective, "predicts_pixels", False):
        return 0.0
    low, high = objective.config.prefix.bounds(objective.num_patches)  # M is uniform between them
    return objective.num_patches - (low + high) / 2


def _params(encoder: nn.Module, objective: nn.Module) -> dict[str, int]:
    def count(module: nn.Module | None) -> int:
        return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())

    text_heads, pixel_heads = (
        [head for module in objective.modules() if (head := getattr(module, name, None)) is not None]
        for name in ("text_head", "pixel_head")
    )
    return {
        "encoder": count(encoder),
        "decoder": count(objective),
        "text_head": sum(map(count, text_heads)),
        "pixel_head": sum(map(count, pixel_heads)),
    }


def known_vocab_size(tokenizer: str, vocab_size: int) -> int:
    """Ids of the config's tokenizer; `vocab_size` is what it says for "bpe". UserError where a download would tell."""
    if tokenizer == "bpe":
        return vocab_size
    if tokenizer in VOCAB_SIZES:
        return VOCAB_SIZES[tokenizer]
    if Path(tokenizer).is_dir():
        return HuggingFaceTokenizer(tokenizer).vocab_size
    raise UserError(f"data.tokenizer={tokenizer!r} is of a size that is not known here: give it with --vocab-size")


def world_size(trainer: Any) -> int:
    """Devices over all nodes that the trainer's fields name; "auto" counts as one."""
    devices = trainer.devices
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        devices = len(devices)
    return trainer.num_nodes * (devices if isinstance(devices, int) and devices > 0 else 1)


def num_steps(config: Any, global_batch: int) -> int:
    """Optimiser steps of the budget, given in steps or in samples; UserError where it is given in neither or both."""
    max_steps, max_samples = config.trainer.max_steps, config.max_samples
    if (max_steps == -1) == (max_samples is None):
        raise UserError(
            "budget: give exactly one of trainer.max_steps and max_samples; --trainer.max_steps=-1 or --max_samples=null "
            "unsets one"
        )
    return max_steps if max_samples is None else max_samples // global_batch


def quantity(value: float) -> str:
    """FLOPs with four significant digits and a prefix: 1.234 T."""
    value = float(f"{value:.4g}")
    power, prefix = next(((power, name) for power, name in _PREFIXES if value >= 10**power), (0, ""))
    return f"{value / 10**power:#.4g} {prefix}" if prefix else f"{value:,.0f} "


def millions(params: float) -> str:
    return f"{params / 1e6:,.1f} M"


def table(about: Description) -> Table:
    """Parameters and FLOPs of one sample by part, and of the budget."""
    result = Table(title=about.name, caption=_caption(about), caption_justify="left", min_width=96)
    for column in ("", "parameters", "forward FLOPs / sample", "training FLOPs / sample"):
        result.add_column(column, justify="left" if not column else "right")
    flops, params = about.flops, about.params
    heads = params["text_head"] + params["pixel_head"]
    rows = {
        "encoder": (params["encoder"], flops.encoder + flops.patchifier, 3 * flops.encoder + 2 * flops.patchifier),
        "decoder": (params["decoder"] - heads, flops.decoder, 3 * flops.decoder),
        "text head": (params["text_head"], flops.text_head, 3 * flops.text_head),
        "pixel head": (params["pixel_head"], flops.pixel_head, 3 * flops.pixel_head),
    }
    if flops.text_tower:
        both = flops.text_tower + flops.similarities
        rows = {"encoder": rows["encoder"], "text tower, pooling, similarities": (params["decoder"], both, 3 * both)}
    for name, (count, *values) in rows.items():
        result.add_row(name, millions(count), *map(quantity, values))
    result.add_section()
    total = params["encoder"] + params["decoder"]
    result.add_row("total", millions(total), quantity(flops.forward), quantity(flops.training))
    return result


def _caption(about: Description) -> str:
    total = about.samples * about.flops.training
    return (
        f"Beside the encoder in all, heads and embeddings included: {millions(about.params['decoder'])} parameters.\n"
        f"Tokens of a sample: {about.num_patches} patches ({about.predicted_patches:g} of them predicted, on average) and "
        f"{about.text_len} of text.\n"
        f"Budget: {about.steps:,} steps x {about.global_batch:,} = {about.samples:,} samples, {quantity(total)}FLOP in all "
        f"({total:.3e}).\n"
        "Matrix products only, 2 FLOPs a multiplication with its addition; the decoder's attention as the causal half "
        f"(all pairs: {quantity(about.dense_flops.training)}FLOP a sample in training). See pretrain/flops.py."
    )


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain describe",
        description="Parameters, FLOPs and budget of a run, without data or weights. Takes the fields of `fit` as well.",
        usage="%(prog)s --config FILE [--text-tokens N] [--vocab-size N] [--any.field=value]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--text-tokens",
        type=int,
        default=CONTEXT_LENGTH,
        help="tokens of a caption with EOS; as many as fit by default",
    )
    parser.add_argument("--vocab-size", type=int, default=None, help="of a tokenizer whose size is not known here")
    options, fields = parser.parse_known_args(args)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        about = describe(fields, text_len=options.text_tokens, vocab_size=options.vocab_size)
    except Exception as error:
        line = user_message(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    Console(width=100 if not sys.stdout.isatty() else None).print(table(about))
    return 0
