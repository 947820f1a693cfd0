"""The encoders whose cost of inference is measured: built at an exact picture size, and counted.

Shape letters: B batch, C channels, H/W pixels, T tokens, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from evals.encoder import TokenEncoder
from pretrain.models.compiling import compile_blocks
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.types import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Name in the table -> timm's name. Within a class widths and depths are alike; tokens differ where patch sizes do.
SIZES = {
    "large": {
        "AIMv2-L/14": "aimv2_large_patch14_224",
        "CLIP-L/14": "vit_large_patch14_clip_224",
        "SigLIP-L/16": "vit_large_patch16_siglip_256",
        "DINOv2-L/14": "vit_large_patch14_dinov2",
    },
    "base": {
        "AIMv2-B/14": "aimv2_base_patch14_224",
        "CLIP-B/16": "vit_base_patch16_clip_224",
        "SigLIP-B/16": "vit_base_patch16_siglip_224",
        "DINOv2-B/14": "vit_base_patch14_dinov2",
    },
}
IMG_SIZES = (224, 336, 448)


@dataclass(frozen=True)
class Case:
    """A model at a picture size.

    Attributes:
        name: in the table.
        spec: a timm name, built with random weights at exactly this size; anything else goes through `evals.load`.
        img_size: side of the picture in pixels; None for the encoder's own.
        precision: of weights and pictures.
        compiled: transformer blocks through torch.compile.
    """

    name: str
    spec: str
    img_size: int | None
    precision: str = "fp32"
    compiled: bool = False


@dataclass(frozen=True)
class Cost:
    """What does not depend on the machine.

    Attributes:
        img_size: side of the picture in pixels.
        params: of the vision side.
        tokens: that leave the last block, class and register tokens included.
        flops: of one picture's pass, 2 for each multiplication with its addition; matrix products and convolutions only.
    """

    img_size: int
    params: int
    tokens: int
    flops: int


def build(case: Case) -> nn.Module:
    """The model with its weights on the CPU (or on the meta device, for timm's), in evaluation mode.

    Raises:
        UserError: no such model, or one that cannot take this size.
    """
    if not timm.is_model(case.spec):
        from evals.load import load_encoder

        return load_encoder(case.spec)
    if case.spec.startswith("aimv2_"):
        # as this suite runs it: timm's own RMSNorm is a chain of small operations, which would be timed as AIMv2's cost
        return build_encoder(EncoderConfig(case.spec, img_size=case.img_size)).eval()
    args = {} if case.img_size is None else {"img_size": case.img_size}
    with torch.device("meta"):
        plain = timm.create_model(case.spec, pretrained=False)
    if not isinstance(plain, VisionTransformer):
        raise UserError(f"--encoders: {case.spec!r} is a {type(plain).__name__}, not a VisionTransformer")
    patch_size = plain.patch_embed.patch_size[0]
    if (case.img_size or 0) % patch_size:
        raise UserError(f"--img-sizes: {case.img_size} is not a multiple of the patch size {patch_size} of {case.spec}")
    return timm.create_model(case.spec, pretrained=False, num_classes=0, **args).eval()


def picture_size(model: nn.Module, case: Case) -> int:
    """The case's picture size, or the model's own."""
    own = model.transform.spec.img_size if isinstance(model, TokenEncoder) else model.patch_embed.img_size[0]
    return case.img_size or own


def make_images(count: int, img_size: int, *, precision: str, device: str) -> Tensor:
    """Random normalised pictures [B, 3, H, W]."""
    return torch.randn(count, 3, img_size, img_size).to(device, DTYPES[precision])


@torch.inference_mode()
def count_cost(case: Case) -> Cost:
    """Parameters, tokens and FLOPs, counted by torch on the meta device, where nothing is computed."""
    if timm.is_model(case.spec):
        with torch.device("meta"):
            model = build(case)
    else:
        model = build(case).to("meta")
    for layer in model.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False  # plain products, which the counter knows on every device
    img_size = picture_size(model, case)
    image = torch.empty(1, 3, img_size, img_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(image)
    is_encoder = isinstance(model, TokenEncoder)
    tokens_BTD = model(image).all_tokens() if is_encoder else model.forward_features(image)
    params = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("text."))
    return Cost(img_size, params, tokens_BTD.shape[1], counter.get_total_flops())


def ready(case: Case, *, device: str) -> nn.Module:
    """The model as it is timed."""
    model = build(case).requires_grad_(False).to(device, DTYPES[case.precision])
    if case.compiled:
        compile_blocks(model, device_type=device)
    return model


def pass_once(case: Case) -> Callable[[], Any]:
    """One picture's pass on the CPU, for the process that measures its memory."""
    model = ready(case, device="cpu")
    image = make_images(1, picture_size(model, case), precision=case.precision, device="cpu")

    @torch.inference_mode()
    def call() -> None:
        model(image)

    return call
