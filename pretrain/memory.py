"""Memory of a training step on one device, estimated from the model's sizes before training starts.

What counts, in bytes:

- parameters, gradients and AdamW's two moments: 4 + 4 + 8 a parameter, all in fp32. DDP keeps its buckets beside the
  gradients (4 more). FSDP2 divides all four by the number of ranks, and holds what is gathered: each root's own parameters
  (embeddings, norms, heads) with their gradients, and two blocks, the current and the next, with one block's gradients.
- activations: what the forward pass keeps for the backward pass, worked out in `_block_token_bytes` for one token in one
  block. With activation checkpointing a block keeps its input, and one block at a time keeps the rest. Under autocast the
  matrices' bf16 copies are kept as well.
- logits: one block of the vocabulary loss, and the gradients that it has ready (hidden states and head); for contrastive
  objectives the similarities of this device's pictures and captions with those of all devices, and the latter's vectors.

They add up at the end of the forward pass: Lightning drops the last step's gradients only then. Not counted: pictures
that loaders hold, the device's context (about half a GiB on CUDA), what an allocator wastes, validation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch
from timm.models import VisionTransformer
from torch import nn

from pretrain.models.decoder import Decoder
from pretrain.models.recompute import transformer_blocks
from pretrain.models.text_tower import TextTower
from pretrain.models.vision import num_patches
from pretrain.objectives.contrastive import ContrastiveObjective
from pretrain.objectives.losses import LOGITS_BYTES
from pretrain.objectives.mae import MAEDecoder, MAEObjective
from pretrain.types import CONTEXT_LENGTH

#: How far the estimate may be off (`tests/pretrain/test_memory.py`): a device with less by this factor is too small.
TOLERANCE = 1.25
FP32_BYTES = 4
BF16_BYTES = 2


@dataclass(frozen=True)
class Step:
    """What the memory of a training step depends on beside the model.

    Attributes:
        batch_size: pictures of a micro-batch on one device.
        text_len: tokens that captions are padded to; the longest possible where not given.
        low_precision: bf16 by autocast.
        activation_checkpointing: of the transformer blocks.
        world_size: devices.
        sharded: FSDP2, otherwise DDP where there are several devices.
    """

    batch_size: int
    text_len: int = CONTEXT_LENGTH
    low_precision: bool = False
    activation_checkpointing: bool = False
    world_size: int = 1
    sharded: bool = False


def show_bytes(count: float) -> str:
    """MiB below 10 GiB, else GiB."""
    mib = count / 2**20
    return f"{mib:.1f} MiB" if mib < 10 else f"{mib:,.0f} MiB" if mib < 10 * 1024 else f"{mib / 1024:,.1f} GiB"


def device_bytes(device: torch.device, *, num_local: int) -> int:
    """Memory that there is for one device: a GPU's own, or a process's share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total // num_local


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device.

    Attributes:
        parameters: in fp32, this device's part.
        gradients: likewise, with DDP's buckets.
        moments: AdamW's two.
        gathered: FSDP2's whole parameters and gradients, as many as there are at once.
        activations: kept for the backward pass, with or without checkpointing as the step says.
        activations_otherwise: the other way round.
        logits: the vocabulary loss, or the similarities of pictures and captions.
    """

    parameters: int
    gradients: int
    moments: int
    gathered: int
    activations: int
    activations_otherwise: int
    logits: int

    @property
    def total(self) -> int:
        return sum(vars(self).values()) - self.activations_otherwise

    def describe(self, step: Step) -> str:
        """One line: the total, its parts, and what activation checkpointing changes."""
        parts = {name: value for name, value in vars(self).items() if value and name != "activations_otherwise"}
        named = [f"{name} {show_bytes(value)}" for name, value in parts.items()]
        other = f"{'without' if step.activation_checkpointing else 'with'} activation checkpointing"
        named = [
            f"{text} ({show_bytes(self.activations_otherwise)} {other})" if text.startswith("activations") else text
            for text in named
        ]
        return (
            f"memory of a device, estimated: {show_bytes(self.total)} = {' + '.join(named)} "
            f"(batch of {step.batch_size}, captions of {step.text_len} tokens)"
        )


@dataclass(frozen=True)
class _Stack:
    """A transformer.

    Attributes:
        module: holds its blocks.
        tokens: of a picture or its caption.
        embed_dim: width.
        stream_bytes: of an element of its residual stream.
        masked: whether attention is given a mask.
    """

    module: nn.Module
    tokens: int
    embed_dim: int
    stream_bytes: int
    masked: bool = False


def estimate_memory(encoder: VisionTransformer, objective: nn.Module, step: Step) -> MemoryEstimate:
    """Memory of one device in a training step; sizes are those of the whole model, also where it lies in shards."""
    count = sum(parameter.numel() for root in (encoder, objective) for parameter in root.parameters())
    shards = step.world_size if step.sharded else 1
    buckets = FP32_BYTES * count if step.world_size > 1 and not step.sharded else 0
    gradients, logits = FP32_BYTES * count // shards, _logits(objective, step)
    plain, inputs, block, outside = _activations(encoder, objective, step)
    # a block runs again when the last step's gradients are gone: first beside all inputs, in the end beside new gradients
    again = max(inputs, gradients) + block - gradients - logits
    both = round(plain + outside), round(max(inputs, again) + outside)
    return MemoryEstimate(
        parameters=FP32_BYTES * count // shards,
        gradients=gradients + buckets,
        moments=2 * FP32_BYTES * count // shards,
        gathered=_gathered(encoder, objective, step) if step.sharded else 0,
        activations=both[step.activation_checkpointing],
        activations_otherwise=both[not step.activation_checkpointing],
        logits=logits,
    )


def _count(module: nn.Module, *, matrices: bool = False) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim >= 2 or not matrices)


def _stacks(encoder: VisionTransformer, objective: nn.Module, step: Step) -> Iterator[_Stack]:
    """Encoder, decoders and text tower. What adds fp32 positions has an fp32 stream, AIMv2's decoder what a projection gives."""
    patches = num_patches(encoder)
    visible = patches - objective.num_hidden if isinstance(objective, MAEObjective) else patches
    masked = not isinstance(objective, ContrastiveObjective | MAEObjective)
    yield _Stack(encoder, visible, encoder.embed_dim, FP32_BYTES, masked)
    for module in objective.modules():
        if isinstance(module, Decoder):
            tokens = patches + (step.text_len if module.text_head is not None else 0)
            yield _Stack(module, tokens, module.image_proj.out_features, _compute_bytes(step))
        elif isinstance(module, MAEDecoder):
            yield _Stack(module, patches, module.image_proj.out_features, FP32_BYTES)
        elif isinstance(module, TextTower):
            yield _Stack(module, step.text_len, module.embed_dim, FP32_BYTES)


def _compute_bytes(step: Step) -> int:
    return BF16_BYTES if step.low_precision else FP32_BYTES


def _block_token_bytes(stack: _Stack, block: nn.Module, step: Step) -> float:
    """Bytes that a block keeps for one token: width D, hidden width F, N tokens in all, c bytes an element.

    The inputs of two norms; those of qkv, output projection and feed-forward (3 c D), and q, k, v (3 c D); c F twice, in
    front of the activation and behind it, and for SwiGLU twice more (the other factor, the product). Attention: the fused
    kernel keeps the encoder's mask as numbers (c N), the plain path its weights (c H N).
    """
    size, width = _compute_bytes(step), stack.embed_dim
    linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
    hidden = max(linear.in_features for linear in linears)
    into_hidden = sum(linear.out_features for linear in linears if linear.in_features == width) - 4 * width
    gated = into_hidden > hidden
    linear_inputs = 3 + (gated and stack.stream_bytes != size)  # two casts of one input
    attention = next(module for module in block.modules() if hasattr(module, "fused_attn"))
    matrices = attention.num_heads if not attention.fused_attn else int(stack.masked)
    scores = size * matrices * stack.tokens
    kept = size * ((linear_inputs + 3) * width + (4 if gated else 2) * hidden)
    return 2 * stack.stream_bytes * width + kept + scores


def _activations(encoder: VisionTransformer, objective: nn.Module, step: Step) -> tuple[float, float, float, float]:
    """What all blocks keep, their inputs alone, what the largest block keeps, and what lies outside of blocks."""
    size = _compute_bytes(step)
    outside = _beside_blocks(encoder, objective, step)
    plain = inputs = largest = 0.0
    for stack in _stacks(encoder, objective, step):
        tokens = step.batch_size * stack.tokens
        blocks = transformer_blocks(stack.module)
        # FSDP2 gathers them in bf16, and lets go of them
        copies = BF16_BYTES * _count(blocks[0], matrices=True) if step.low_precision and not step.sharded else 0
        block = tokens * _block_token_bytes(stack, blocks[0], step) + copies
        plain += len(blocks) * block
        inputs += len(blocks) * tokens * stack.embed_dim * stack.stream_bytes
        largest = max(largest, block)
        # the norm behind the blocks (the encoder has one in front as well), and what a projection reads
        norms = 2 if isinstance(stack.module, VisionTransformer) else 1
        outside += tokens * stack.embed_dim * (norms * stack.stream_bytes + size)
    return plain, inputs, largest, outside


def _beside_blocks(encoder: VisionTransformer, objective: nn.Module, step: Step) -> float:
    """What comes with pictures, but for norms: pixels as they are and as the patchifier reads them, and what the loss keeps."""
    size, patches = _compute_bytes(step), step.batch_size * num_patches(encoder)
    pixels = patches * encoder.patch_embed.proj.weight.shape[1:].numel()
    kept = pixels * (FP32_BYTES + size)
    if isinstance(objective, ContrastiveObjective):
        # keys and values of the pooling; without the fused kernel products keep copies of them in their own order
        copies = 1 if objective.pool.attend.fused_attn else 2
        return kept + copies * patches * size * 2 * encoder.embed_dim
    # prediction, target and their difference for each patch that is predicted
    share = objective.num_hidden / objective.num_patches if isinstance(objective, MAEObjective) else 1.0
    kept += share * pixels * 3 * FP32_BYTES
    if isinstance(objective, MAEObjective):  # the encoder's tokens of all patches, in front of those that it keeps
        kept += patches * encoder.embed_dim * FP32_BYTES
    return kept


def _similarities(objective: ContrastiveObjective, step: Step) -> int:
    """Similarities, and what the loss makes of them, four numbers a pair in all; the vectors of all devices."""
    rows, columns = step.batch_size, step.batch_size * step.world_size
    others = (2 if objective.kind == "clip" else 1) * (columns if step.world_size > 1 else 0)
    vectors = 2 * 2 * rows + others  # as projected and normalised
    return FP32_BYTES * (4 * rows * columns + vectors * objective.config.proj_dim)


def _logits(objective: nn.Module, step: Step) -> int:
    if isinstance(objective, ContrastiveObjective):
        return _similarities(objective, step)
    heads = [m.text_head for m in objective.modules() if isinstance(m, Decoder) and m.text_head is not None]
    total, size = 0, _compute_bytes(step)
    for head in heads:
        rows = step.batch_size * step.text_len
        block = min(LOGITS_BYTES, FP32_BYTES * rows * head.out_features)
        low_copy = block // 2 if step.low_precision else 0
        total += block + low_copy + size * head.weight.numel() + 2 * size * rows * head.in_features
    return total


def _gathered(encoder: VisionTransformer, objective: nn.Module, step: Step) -> int:
    blocks = [_count(block) for root in (encoder, objective) for block in transformer_blocks(root)]
    own = _count(encoder) + _count(objective) - sum(blocks)
    size = _compute_bytes(step)
    return 2 * FP32_BYTES * own + max(blocks) * (2 * size + size + FP32_BYTES)
