"""Vision encoders: timm's `aimv2_*`, this suite's sizes registered with timm, and any other timm ViT made causal-safe.

Shape letters: B batch, C channels, H/W pixels, N patches, D width.
"""

import inspect
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

import timm
import torch
from timm.layers import PatchEmbed, SwiGLU
from timm.models import VisionTransformer, generate_default_cfgs, register_model
from timm.models.vision_transformer import _cfg, _create_vision_transformer
from torch import Tensor, nn

from pretrain.models.attention import prefix_attention
from pretrain.models.norm import RMSNorm
from pretrain.models.sizes import VISION_SIZES
from pretrain.types import CLIP_MEAN, CLIP_STD, ImageSpec, UserError

# not timm's RmsNorm: the same weights and numbers, one fused kernel instead of five operations
_norm = partial(RMSNorm, eps=1e-5)
_AIMV2 = dict(
    class_token=False,
    fc_norm=False,
    global_pool="avg",
    qkv_bias=False,
    proj_bias=False,
    act_layer="silu",
    norm_layer=_norm,
    embed_norm_layer=_norm,
    mlp_layer=SwiGLU,
)

default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": _cfg(
            mean=CLIP_MEAN, std=CLIP_STD, input_size=(3, size.img_size, size.img_size), crop_pct=1.0, num_classes=0
        )
        for name, size in VISION_SIZES.items()
    }
)


def _create_aimv2(name: str, pretrained: bool, kwargs: dict[str, Any]) -> VisionTransformer:
    size = VISION_SIZES[name]
    args = dict(
        img_size=size.img_size,
        patch_size=size.patch_size,
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=size.num_heads,
        mlp_ratio=size.mlp_hidden_dim / size.embed_dim,
        **_AIMV2,
    )
    return _create_vision_transformer(name, pretrained=pretrained, **{**args, **kwargs})


# timm calls entry points with whatever keywords the user gave to create_model, hence **kwargs
@register_model
def aimv2_nano_patch4_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """AIMv2 for a CPU and minutes: 32-pixel pictures, 64 patches."""
    return _create_aimv2("aimv2_nano_patch4_32", pretrained, kwargs)


@register_model
def aimv2_tiny_patch14_112(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """AIMv2 for small photographs on a CPU: 112-pixel pictures, 64 patches."""
    return _create_aimv2("aimv2_tiny_patch14_112", pretrained, kwargs)


@register_model
def aimv2_small_patch14_112(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """AIMv2 between tiny and base."""
    return _create_aimv2("aimv2_small_patch14_112", pretrained, kwargs)


@register_model
def aimv2_base_patch14_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """AIMv2-B: in the released code, without released weights."""
    return _create_aimv2("aimv2_base_patch14_224", pretrained, kwargs)


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder by its timm name, with any of its sizes overridden.

    Attributes:
        name: a timm VisionTransformer, e.g. aimv2_large_patch14_224 or vit_small_patch16_224.
        img_size: side of the picture in pixels; the model's own where not given. Likewise the sizes below.
        patch_size: side of a patch in pixels.
        embed_dim: width in features.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_hidden_dim: hidden width of the feed-forward blocks.
        init: "published" is xavier uniform with positions N(0, 0.02); "timm" is the model's own.
        mean: per channel, on pixels in 0..1; the model's own where not given.
        std: likewise.
        weights: file or folder with weights to start from: a run, an export, timm's, Hugging Face's or the released AIMv2
            layout (`pretrain.models.weights`). Read when training starts, never when an export is loaded back.
    """

    name: str = "aimv2_nano_patch4_32"
    img_size: int | None = None
    patch_size: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_hidden_dim: int | None = None
    init: Literal["published", "timm"] = "published"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    weights: str | None = None

    def image_spec(self) -> ImageSpec:
        """Picture size and statistics, without building the model."""
        _check_name(self.name)
        default = timm.get_pretrained_cfg(self.name, allow_unregistered=False)
        return ImageSpec(
            img_size=self.img_size or default.input_size[-1],
            mean=tuple(self.mean or default.mean),
            std=tuple(self.std or default.std),
        )


def _check_name(name: str) -> None:
    if not timm.is_model(name.split(".")[0]):
        near = get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UserError(f"encoder.name={name!r} is not a timm model{hint}")


def mlp_ratio(mlp_hidden_dim: int, *, embed_dim: int) -> float:
    """The `mlp_ratio` that timm turns into `mlp_hidden_dim`: it cuts off behind the point, where h / D * D can fall short."""
    ratio = mlp_hidden_dim / embed_dim
    return ratio if int(embed_dim * ratio) == mlp_hidden_dim else (mlp_hidden_dim + 0.5) / embed_dim


def timm_args(config: EncoderConfig) -> dict[str, Any]:
    """What `timm.create_model(config.name, ...)` takes for the encoder's shape: numbers and names, fit for a JSON file.

    Class and register tokens are left out, the final norm stays in front of any pooling, pooling modules and heads are
    dropped: each would let a patch in the prefix's rear be seen from its front.

    Raises:
        UserError: unknown name, a model that is not timm's VisionTransformer, or sizes that do not fit.
    """
    _check_name(config.name)
    with torch.device("meta"):
        plain = timm.create_model(config.name, pretrained=False)
    if type(plain) is not VisionTransformer:
        raise UserError(
            f"encoder.name={config.name!r} is a {type(plain).__name__}; only timm's VisionTransformer takes an attention mask"
        )
    if type(plain.patch_embed) is not PatchEmbed:
        raise UserError(
            f"encoder.name={config.name!r} embeds patches with {type(plain.patch_embed).__name__}, which mixes pixels of "
            "neighbouring patches; prefix attention needs separate patches"
        )
    args: dict[str, Any] = dict(class_token=False, reg_tokens=0, global_pool="avg", fc_norm=False, num_classes=0)
    for field in ("patch_size", "embed_dim", "depth", "num_heads"):
        if (value := getattr(config, field)) is not None:
            args[field] = value
        if value is not None and value < 1:
            raise UserError(f"encoder.{field}={value} must be at least 1")
    args["img_size"] = config.image_spec().img_size
    patch_size = config.patch_size or plain.patch_embed.patch_size[0]
    embed_dim = config.embed_dim or plain.embed_dim
    num_heads = config.num_heads or plain.blocks[0].attn.num_heads
    if args["img_size"] % patch_size:
        raise UserError(f"encoder.img_size={args['img_size']} is not a multiple of the patch size {patch_size}")
    if embed_dim % num_heads:
        raise UserError(f"encoder.embed_dim={embed_dim} is not a multiple of the {num_heads} heads")
    if config.mlp_hidden_dim is not None:
        args["mlp_ratio"] = mlp_ratio(config.mlp_hidden_dim, embed_dim=embed_dim)
    return args


def build_encoder(config: EncoderConfig) -> VisionTransformer:
    """Build an encoder whose tokens see each other only through attention, with fresh weights.

    Raises:
        UserError: as :func:`timm_args`, and for a model whose blocks cannot take an attention mask.
    """
    args = timm_args(config)
    if config.name.startswith("aimv2_"):
        args |= dict(norm_layer=_norm, embed_norm_layer=_norm)
    encoder = timm.create_model(config.name, pretrained=False, **args)
    _refuse_what_leaks(encoder, config.name)
    if config.init == "published":
        init_published(encoder)
    return encoder


def _refuse_what_leaks(encoder: VisionTransformer, name: str) -> None:
    for block in encoder.blocks:
        if "attn_mask" not in inspect.signature(block.forward).parameters:
            raise UserError(f"encoder.name={name!r}: its {type(block).__name__} blocks take no attention mask")
    for path, module in encoder.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(f"encoder.name={name!r}: {path} is a batch norm, which mixes patches")
        if isinstance(module, nn.Dropout) and module.p > 0:
            raise UserError(f"encoder.name={name!r}: {path} drops out at random, which no seed and position decide")
    if encoder.num_prefix_tokens or not isinstance(encoder.patch_drop, nn.Identity):
        raise UserError(f"encoder.name={name!r} keeps class or register tokens, or drops patches")


def init_published(module: nn.Module) -> None:
    """Xavier-uniform matrices, zero biases, positions N(0, 0.02) (reference, section 4, from ml-l3m).

    The patchifier's convolution is initialised as the matrix that it is, as MAE does. Norms keep their ones.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(child.weight.view(child.weight.shape[0], -1))
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Embedding):
            nn.init.normal_(child.weight, std=0.02)
    for name, parameter in module.named_parameters():
        if name.split(".")[-1] in ("pos_embed", "bos", "mask_token"):
            nn.init.normal_(parameter, std=0.02)


def num_patches(encoder: VisionTransformer) -> int:
    """N, patches of a picture at the encoder's native size."""
    return encoder.patch_embed.num_patches


def refuse_leaks(encoder: VisionTransformer, config: EncoderConfig) -> None:
    """Try an encoder that this suite has not met; UserError where prefix attention does not hold its patches apart."""
    if leaks(encoder, img_size=config.image_spec().img_size, prefix_len=max(1, num_patches(encoder) // 2)):
        raise UserError(
            f"encoder.name={config.name!r} lets patches be seen around its attention mask; it cannot be pre-trained"
        )


@torch.no_grad()
def leaks(encoder: VisionTransformer, *, img_size: int, prefix_len: int) -> bool:
    """Whether changing the first patch behind the prefix changes the output of any patch before it.

    One forward pass of two pictures on the encoder's device.
    """
    total = num_patches(encoder)
    side, patch = img_size // encoder.patch_embed.patch_size[1], encoder.patch_embed.patch_size[0]
    row, column = divmod(prefix_len, side)
    device = next(encoder.parameters()).device
    image = (
        torch.linspace(-2, 2, 3 * img_size * img_size, device=device).view(1, 3, img_size, img_size).repeat(2, 1, 1, 1)
    )
    image[1, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] += 1.0
    attend = prefix_attention(torch.full((2,), prefix_len, device=device), num_patches=total)
    was_training = encoder.training
    tokens_BND: Tensor = encoder.eval().forward_features(image, attn_mask=attend)
    encoder.train(was_training)
    return not torch.equal(tokens_BND[0, :prefix_len], tokens_BND[1, :prefix_len])
