"""Sizes as tables of integers.

Published sizes (paper, Table 1; heads and hidden widths from the released code) come with timm. `base` is in the released
code without weights; `nano`, `tiny` and `small` are this suite's, in the same style, for CPUs.
"""

from typing import NamedTuple


class VisionSize(NamedTuple):
    """An encoder: widths in features, img_size and patch_size in pixels."""

    img_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_hidden_dim: int


VISION_SIZES = {
    "aimv2_nano_patch4_32": VisionSize(32, 4, 128, 6, 2, 384),
    "aimv2_tiny_patch14_112": VisionSize(112, 14, 192, 12, 3, 512),
    "aimv2_small_patch14_112": VisionSize(112, 14, 384, 12, 3, 1024),
    "aimv2_base_patch14_224": VisionSize(224, 14, 768, 12, 6, 2048),
}


def swiglu_hidden_dim(embed_dim: int) -> int:
    """Hidden width of a SwiGLU block: 8/3 of the width, rounded up.

    To a multiple of 256 as published (reference, section 1, from ml-l3m); below 512 features to a multiple of 64, since
    256 would be half a block there.
    """
    multiple = 256 if embed_dim >= 512 else 64
    return -(-8 * embed_dim // (3 * multiple)) * multiple
