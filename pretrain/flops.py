"""Matrix-product FLOPs of AIMv2's forward pass and training step, in closed form, from sizes and counts alone.

Counted, 2 FLOPs for each multiplication with its addition: the patchifier, the projections and feed-forward layers of all
blocks, attention's two products (queries with keys, weights with values), the decoder's projection of image tokens, and
the heads on the positions that have a target. Not counted: norms, activations, softmax, looking up embeddings, the loss
behind the logits, the optimiser, and anything computed a second time (checkpointing, fused attention's backward).

Attention over S positions has S^2 pairs. "dense" counts them all, as torch's flop counter does. "causal" counts the
S (S + 1) / 2 pairs of the decoder that its loss needs. The encoder counts all N^2 either way: which pairs prefix attention
leaves out differs from sample to sample, and no kernel here skips them.

Backward has two products of the same size for each product of the forward pass, one for each factor's gradient; the
patchifier only has its weights', since pixels need none.
"""

from dataclasses import dataclass
from typing import Literal

from timm.models import VisionTransformer
from torch import nn

from pretrain.models.decoder import Decoder

Attention = Literal["dense", "causal"]


def swiglu_block_weights(embed_dim: int, mlp_hidden_dim: int) -> int:
    """Weights of a block's matrices: 4 D^2 of attention, 3 D F of SwiGLU."""
    return 4 * embed_dim**2 + 3 * embed_dim * mlp_hidden_dim


@dataclass(frozen=True)
class StackSize:
    """A stack of transformer blocks.

    Attributes:
        embed_dim: width D in features.
        depth: number of blocks.
        block_weights: weights of one block's matrices, as :func:`swiglu_block_weights`.
    """

    embed_dim: int
    depth: int
    block_weights: int

    def forward_flops(self, *, tokens: float, pairs: float) -> float:
        """2 FLOPs a weight and token, 4 D an attended pair."""
        return self.depth * (2 * tokens * self.block_weights + 4 * pairs * self.embed_dim)


@dataclass(frozen=True)
class ModelSize:
    """Sizes that the FLOPs of an encoder with its decoder(s) depend on.

    Attributes:
        encoder: its blocks.
        decoder: its blocks; of each, where there are two.
        num_patches: N.
        patch_pixels: P, 3 * patch_size ** 2.
        vocab_size: V; None for a decoder without a text head.
        predicts_pixels: whether there is a pixel head.
        separate_decoders: whether pixels have a decoder of their own, which then sees no text.
    """

    encoder: StackSize
    decoder: StackSize
    num_patches: int
    patch_pixels: int
    vocab_size: int | None
    predicts_pixels: bool = True
    separate_decoders: bool = False


@dataclass(frozen=True)
class Flops:
    """FLOPs of one forward pass, by part; 0 for what an objective does not have."""

    patchifier: float
    encoder: float
    decoder: float = 0.0
    text_head: float = 0.0
    pixel_head: float = 0.0
    #: contrastive objectives: the text tower; pooling, both projections and all similarities
    text_tower: float = 0.0
    similarities: float = 0.0

    @property
    def forward(self) -> float:
        return sum(vars(self).values())

    @property
    def training(self) -> float:
        """Forward and backward: three times forward, but for the patchifier's missing gradient of pixels."""
        return 3 * self.forward - self.patchifier

    def each(self, samples: int) -> "Flops":
        """Of one of `samples` samples."""
        return Flops(**{name: value / samples for name, value in vars(self).items()})


def stack_size(blocks: nn.ModuleList | nn.Sequential, embed_dim: int) -> StackSize:
    """Of built blocks, all alike, by their linear layers."""
    linears = [module for module in blocks[0].modules() if isinstance(module, nn.Linear)]
    return StackSize(embed_dim, len(blocks), sum(linear.weight.numel() for linear in linears))


def model_size(encoder: VisionTransformer, decoder: Decoder, *, pixel_decoder: Decoder | None = None) -> ModelSize:
    """Sizes of built modules; the meta device will do."""
    head = decoder.text_head
    return ModelSize(
        encoder=stack_size(encoder.blocks, encoder.embed_dim),
        decoder=stack_size(decoder.blocks, decoder.image_proj.out_features),
        num_patches=encoder.patch_embed.num_patches,
        patch_pixels=encoder.patch_embed.proj.weight[0].numel(),
        vocab_size=None if head is None else head.out_features,
        predicts_pixels=(pixel_decoder or decoder).pixel_head is not None,
        separate_decoders=pixel_decoder is not None,
    )


def model_flops(
    size: ModelSize,
    *,
    text_len: int,
    valid_tokens: float,
    predicted_patches: float,
    samples: int = 1,
    attention: Attention = "causal",
) -> Flops:
    """FLOPs of a forward pass.

    Args:
        size: of the model.
        text_len: L, positions of a caption in the decoder, padding included; of no account without a text head.
        valid_tokens: text tokens with a target, over all samples.
        predicted_patches: patches with a target, over all samples.
        samples: B, pictures in the batch.
        attention: which pairs of the decoder count.
    """
    patches = samples * size.num_patches
    width = size.decoder.embed_dim

    def decoder(sequence: int) -> float:
        pairs = sequence**2 if attention == "dense" else sequence * (sequence + 1) / 2
        blocks = size.decoder.forward_flops(tokens=samples * sequence, pairs=samples * pairs)
        return blocks + 2 * patches * size.encoder.embed_dim * width

    text = size.vocab_size is not None
    decoders = decoder(size.num_patches + (text_len if text else 0))
    if size.separate_decoders:
        decoders += decoder(size.num_patches)
    return Flops(
        patchifier=2 * patches * size.patch_pixels * size.encoder.embed_dim,
        encoder=size.encoder.forward_flops(tokens=patches, pairs=patches * size.num_patches),
        decoder=decoders,
        text_head=2 * valid_tokens * size.vocab_size * width if text else 0,
        pixel_head=2 * predicted_patches * size.patch_pixels * width if size.predicts_pixels else 0,
    )
