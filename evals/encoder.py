"""What evaluations see of an encoder: pictures to tokens, its own transform, and where it comes from.

`TokenEncoder` is any model as a whole; `BlockEncoder` is a timm ViT whose blocks can be reached (layer-wise rates, windows,
intermediate layers). `evals.load.load_encoder` makes them from a name.

Shape letters: B batch, C channels, H/W pixels, P class and register tokens, N patches, D width, E width of the summary,
T texts.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from timm.layers import Format, PatchEmbed
from timm.models import VisionTransformer
from torch import Tensor, nn

from evals.transforms import ImageTransform, whole_picture
from pretrain.types import UserError


@dataclass(frozen=True)
class Features:
    """The last layer's output for a batch of pictures.

    Attributes:
        tokens_BND: patch tokens, row by row from the top left corner.
        prefix_BPD: class and register tokens; P is 0 where the model has none.
        pooled_BE: the model's own summary of a picture, not normalised: CLIP's and SigLIP's vector in the space shared with
            text, DINOv2's class token; None where the model has none (AIMv2).
    """

    tokens_BND: Tensor
    prefix_BPD: Tensor
    pooled_BE: Tensor | None = None

    def all_tokens(self) -> Tensor:
        """Prefix tokens, then patch tokens: [B, P + N, D]."""
        return torch.cat([self.prefix_BPD, self.tokens_BND], dim=1) if self.prefix_BPD.shape[1] else self.tokens_BND

    def summary(self) -> Tensor:
        """float32: the model's own summary where it has one, else the mean of the patch tokens."""
        return self.tokens_BND.float().mean(1) if self.pooled_BE is None else self.pooled_BE.float()


@dataclass(frozen=True)
class Provenance:
    """Where an encoder comes from, as the rows of results tell it.

    Attributes:
        spec: the name it was asked for by.
        architecture: the family's name of the model, e.g. aimv2_large_patch14_224.
        objective: "aimv2", "clip", "siglip", "dinov2", ...; "random" for untrained weights, "unknown" where no one says.
        samples_seen: in pre-training; None where no one says.
        training_flops: likewise.
        run: folder of the run or file of weights; "" for none.
    """

    spec: str
    architecture: str
    objective: str = "unknown"
    samples_seen: int | None = None
    training_flops: float | None = None
    run: str = ""


class TextTower(nn.Module, ABC):
    """The text side of an encoder whose pooled vector lives in a space shared with text."""

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts to [T, E], not normalised, on the tower's device."""


class TokenEncoder(nn.Module, ABC):
    """A vision encoder as a whole, in evaluation mode and without gradients as it is loaded.

    Attributes:
        provenance: where it comes from.
        transform: how pictures enter it: its own size, crop, interpolation and statistics.
        embed_dim: D, width of its tokens.
        text: its text tower; None where it has none.
    """

    provenance: Provenance
    transform: ImageTransform
    embed_dim: int
    text: TextTower | None

    def __init__(self) -> None:
        super().__init__()
        self.text = None  # not of the class: it would hide the module that an instance is given

    @abstractmethod
    def forward(self, image_BCHW: Tensor) -> Features:
        """Features of normalised pictures, which may have another size than `transform.spec.img_size` where the model allows.

        Raises:
            UserError: a size that the model cannot take.
        """

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches for a picture of this size in pixels; rows * columns = N."""

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures to the normalised batch that `forward` takes, on the CPU."""
        return self.transform.spec.normalise(torch.stack([self.transform(image) for image in images]))

    def vision_state(self) -> Mapping[str, Tensor]:
        """Tensors that decide the features: all but the text tower's."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("text.")}

    def fingerprint(self) -> str:
        """A short name for architecture and weights: the same where all features are, on any machine."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.provenance.architecture}".encode())
        for name, tensor in sorted(self.vision_state().items()):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
        return digest.hexdigest()[:16]


class BlockEncoder(TokenEncoder):
    """A timm VisionTransformer: as a `TokenEncoder`, and with access to its blocks.

    Class and register tokens are kept. Pictures of another size than its own get resampled positions, as timm's
    `dynamic_img_size` has it; at its own size nothing changes.

    Attributes:
        vit: the model, without a classifier.
        num_layers: its blocks.
    """

    vit: VisionTransformer

    def __init__(self, vit: VisionTransformer, *, transform: ImageTransform, provenance: Provenance) -> None:
        super().__init__()
        self.vit, self.transform, self.provenance = vit, transform, provenance
        self.embed_dim, self.num_layers = vit.embed_dim, len(vit.blocks)
        _allow_other_sizes(vit)
        self.eval().requires_grad_(False)

    def forward(self, image_BCHW: Tensor) -> Features:
        self._check_size(*image_BCHW.shape[-2:])
        return self._features(self.vit.forward_features(image_BCHW))

    def forward_layers(self, image_BCHW: Tensor, layers: Sequence[int]) -> list[Features]:
        """What single blocks give, behind the final norm, in the order of `layers`; later blocks do not run.

        Args:
            image_BCHW: normalised pictures.
            layers: blocks, counted from 0, or from the end below 0; [-1] is what `forward` gives.

        Raises:
            UserError: a size that the model cannot take, or no such block.
        """
        self._check_size(*image_BCHW.shape[-2:])
        if wrong := [layer for layer in layers if not -self.num_layers <= layer < self.num_layers]:
            raise UserError(
                f"layers: {wrong[0]} is none of the {self.num_layers} blocks of {self.provenance.architecture}"
            )
        wanted = [layer % self.num_layers for layer in layers]
        taken = sorted(set(wanted))  # timm gives them in the blocks' order
        outputs = self.vit.forward_intermediates(
            image_BCHW,
            indices=taken,
            return_prefix_tokens=True,
            norm=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        tokens = [torch.cat([o[1], o[0]], dim=1) if isinstance(o, tuple) else o for o in outputs]
        features = {layer: self._features(output) for layer, output in zip(taken, tokens, strict=True)}
        return [features[layer] for layer in wanted]

    def layer_of(self, parameter_name: str) -> int:
        """The layer of a parameter as `named_parameters` names it, for layer-wise rates.

        0 is what stands in front of the blocks (patches, positions, class and register tokens), 1 to `num_layers` are
        the blocks, `num_layers` + 1 is what stands behind them (the final norm, a pooling of the model's own).
        """
        root, *rest = parameter_name.removeprefix("vit.").split(".")
        if root == "blocks":
            return int(rest[0]) + 1
        if root in ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre"):
            return 0
        assert root in ("norm", "fc_norm", "attn_pool"), f"{parameter_name} is no parameter of a timm ViT"
        return self.num_layers + 1

    def grid(self, height: int, width: int) -> tuple[int, int]:
        self._check_size(height, width)
        rows, columns = self.vit.patch_embed.dynamic_feat_size((height, width))
        return int(rows), int(columns)

    def _features(self, tokens: Tensor) -> Features:
        num_prefix = self.vit.num_prefix_tokens
        if self.vit.attn_pool is not None or not isinstance(self.vit.fc_norm, nn.Identity):
            pooled = self.vit.forward_head(tokens, pre_logits=True)  # a summary that was trained
        else:
            pooled = tokens[:, 0] if self.vit.has_class_token else None
        return Features(tokens[:, num_prefix:], tokens[:, :num_prefix], pooled)

    def _check_size(self, height: int, width: int) -> None:
        embed = self.vit.patch_embed
        if embed.img_size is not None and (height, width) == tuple(embed.img_size):
            return
        architecture = self.provenance.architecture
        if not self.vit.dynamic_img_size:
            raise UserError(
                f"{architecture} takes pictures of {embed.img_size[0]} pixels only, these are {height} x {width}"
            )
        rows, columns = embed.patch_size
        if not getattr(embed, "dynamic_img_pad", False) and (height % rows or width % columns):
            raise UserError(
                f"{architecture} takes multiples of its patch, {rows} pixels; pictures are {height} x {width}"
            )


def _allow_other_sizes(vit: VisionTransformer) -> None:
    """What timm's `dynamic_img_size=True` sets when it builds a model with plain patches."""
    embed = vit.patch_embed
    # a model whose own size is no multiple of its patch (SigLIP so400m at 384) would refuse that
    divides = embed.img_size is not None and not any(
        size % patch for size, patch in zip(embed.img_size, embed.patch_size, strict=True)
    )
    if type(embed) is PatchEmbed and divides:
        vit.dynamic_img_size = True
        embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC


@dataclass(frozen=True)
class EncoderCard:
    """Sizes of an encoder for tables; `params` counts the vision side only."""

    params: int
    embed_dim: int
    num_tokens: int
    img_size: int
    extra: dict[str, Any] = field(default_factory=dict)


def card(encoder: TokenEncoder) -> EncoderCard:
    """Sizes of an encoder at its own picture size."""
    size = encoder.transform.spec.img_size
    params = sum(p.numel() for name, p in encoder.named_parameters() if not name.startswith("text."))
    return EncoderCard(params, encoder.embed_dim, int(np.prod(encoder.grid(size, size))), size)


def seeing_whole_pictures(
    encoder: TokenEncoder, *, mode: Literal["squash", "pad"] = "squash", img_size: int | None = None
) -> TokenEncoder:
    """The same encoder, weights shared, with `evals.transforms.whole_picture`'s transform.

    Raises:
        UserError: a size that it cannot take.
    """
    other = copy.copy(encoder)
    other.transform = whole_picture(encoder.transform, mode=mode, img_size=img_size)
    side = other.transform.spec.img_size
    other.grid(side, side)
    return other


@torch.no_grad()
def feature_width(encoder: TokenEncoder, *, kind: str) -> int:
    """Width of what a head of this kind reads: tokens, or the summary, whose width only a picture shows."""
    if kind == "attentive":
        return encoder.embed_dim
    size = encoder.transform.spec.img_size
    device = next(encoder.parameters()).device
    return encoder(torch.zeros(1, 3, size, size, device=device)).summary().shape[1]
