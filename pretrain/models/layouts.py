"""Names of an AIMv2 encoder's tensors in the three layouts that are in use, and the way from one to another.

timm   this suite's and timm's own: the encoder's `state_dict`
aim    the released checkpoints: apple/ml-aim, aim-v2/aim/v2/torch/{models,layers}.py and the v1 layers that they import
hf     Hugging Face's `Aimv2VisionModel`: queries, keys and values apart, positions as an embedding
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor

Layout = Literal["timm", "aim", "hf"]

#: Hugging Face's models of pictures and text keep the vision encoder's tensors behind this prefix.
HF_PREFIX = "vision_model."
#: timm's name -> aim's, Hugging Face's
_OUTSIDE = {
    "pos_embed": ("preprocessor.pos_embed", "embeddings.position_embedding.weight"),
    "patch_embed.proj.weight": ("preprocessor.patchifier.proj.weight", "embeddings.patch_embed.weight"),
    "patch_embed.proj.bias": ("preprocessor.patchifier.proj.bias", "embeddings.patch_embed.bias"),
    "patch_embed.norm.weight": ("preprocessor.patchifier.norm.weight", "embeddings.rms_norm.weight"),
    "norm.weight": ("trunk.post_trunk_norm.weight", "rms_norm.weight"),
}
#: the same inside a block, behind `blocks.I.`; aim's fc1 is the gate, fc3 the other factor of SwiGLU
_BLOCK = {
    "norm1.weight": ("norm_1.weight", "rms_norm1.weight"),
    "attn.qkv.weight": ("attn.qkv.weight", ""),
    "attn.proj.weight": ("attn.proj.weight", "attention.out_proj.weight"),
    "norm2.weight": ("norm_2.weight", "rms_norm2.weight"),
    "mlp.fc1_g.weight": ("mlp.fc1.weight", "ffn.gate_proj.weight"),
    "mlp.fc1_x.weight": ("mlp.fc3.weight", "ffn.up_proj.weight"),
    "mlp.fc2.weight": ("mlp.fc2.weight", "ffn.down_proj.weight"),
}
_BLOCKS = {"aim": "trunk.blocks", "hf": "encoder.layers"}


def detect_layout(names: Iterable[str]) -> tuple[Layout, str] | None:
    """The layout that has these tensor names, by its patchifier, and the prefix of its names; None for no known one."""
    names = set(names)
    if "patch_embed.proj.weight" in names:
        return "timm", ""
    aim, hf = _OUTSIDE["patch_embed.proj.weight"]
    if aim in names:
        return "aim", ""
    return next((("hf", prefix) for prefix in ("", HF_PREFIX) if prefix + hf in names), None)


def names_in(layout: Layout, name: str) -> tuple[str, ...]:
    """Names in `layout` of the tensor that timm calls `name`: one, three for qkv in "hf", none where it has no place there."""
    if layout == "timm":
        return (name,)
    column = ("aim", "hf").index(layout)
    if name in _OUTSIDE:
        return (_OUTSIDE[name][column],)
    stack, _, rest = name.partition(".")
    index, _, inside = rest.partition(".")
    if stack != "blocks" or inside not in _BLOCK:
        return ()
    prefix = f"{_BLOCKS[layout]}.{index}."
    if layout == "hf" and inside == "attn.qkv.weight":
        return tuple(f"{prefix}attention.{part}_proj.weight" for part in "qkv")
    return (prefix + _BLOCK[inside][column],)


def to_layout(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """An AIMv2 encoder's `state_dict` under the names and in the shapes of `layout`."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = names_in(layout, name)
        assert names, f"{name} is no tensor of an AIMv2 encoder"
        if name == "pos_embed" and layout == "hf":
            tensor = tensor[0]
        result.update(zip(names, tensor.chunk(len(names)), strict=True))
    return result
