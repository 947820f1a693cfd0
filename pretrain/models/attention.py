"""Prefix attention: who may attend to whom in the encoder, and how long the prefix is.

Shape letters: B batch, N patches. Masks are True where attention is allowed (SDPA's convention).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pretrain.rng import draw_integers
from pretrain.types import UserError


@dataclass(frozen=True)
class PrefixConfig:
    """How the prefix length M of a training sample is drawn.

    Attributes:
        kind: "uniform" draws M from 1..N-1 (paper, section 2.1); "causal" is M = 1, where prefix attention and causal
            attention are the same; "bidirectional" is M = N, which leaves no patch to predict; "fixed" takes `length`;
            "range" draws M uniformly from `low`..`high`, both included.
        length: the prefix length of "fixed", in patches.
        low: the smallest length of "range", in patches.
        high: the largest length of "range", in patches.
    """

    kind: Literal["uniform", "causal", "bidirectional", "fixed", "range"] = "uniform"
    length: int | None = None
    low: int | None = None
    high: int | None = None

    def bounds(self, num_patches: int) -> tuple[int, int]:
        """Smallest and largest prefix length for a picture of `num_patches`.

        Raises:
            UserError: a field is missing, is given for a kind that has no use for it, or lies outside 1..N-1.
        """
        if num_patches < 2:
            raise UserError(
                f"a picture of {num_patches} patch has none to predict: make img_size larger or patch_size smaller"
            )
        needed = {"fixed": ("length",), "range": ("low", "high")}.get(self.kind, ())
        for name in ("length", "low", "high"):
            value = getattr(self, name)
            if (value is None) == (name in needed):
                want = "needs" if name in needed else "has no use for"
                raise UserError(f"prefix.kind={self.kind} {want} prefix.{name} (it is {value})")
            if value is not None and not 1 <= value <= num_patches - 1:
                raise UserError(
                    f"prefix.{name}={value} is outside 1..{num_patches - 1} (the picture has {num_patches} patches)"
                )
        match self.kind:
            case "uniform":
                return 1, num_patches - 1
            case "causal":
                return 1, 1
            case "bidirectional":
                return num_patches, num_patches
            case "fixed":
                return self.length, self.length
        if self.low > self.high:
            raise UserError(f"prefix.low={self.low} is above prefix.high={self.high}")
        return self.low, self.high


def draw_prefix_len(config: PrefixConfig, *, seed: int, position_B: Tensor, num_patches: int) -> Tensor:
    """Prefix length of each sample, int64 [B] in 1..N: a function of (seed, the sample's number in the run)."""
    low, high = config.bounds(num_patches)
    return draw_integers(seed, "prefix", position_B, low, high)


def prefix_attention(prefix_len_B: Tensor, *, num_patches: int) -> Tensor:
    """Full attention inside the prefix, causal behind it.

    Patch i (from 0) may attend to patch j where j <= i, or where j lies in the prefix (j < M).

    Args:
        prefix_len_B: int64 [B], M in 1..N; M = 1 is causal attention, M = N is full attention.
        num_patches: N.

    Returns:
        attend_B1NN, bool; the head axis is there because a [B, N, N] mask would broadcast over heads when B = H.
    """
    patch_N = torch.arange(num_patches, device=prefix_len_B.device)
    causal_NN = patch_N[None, :] <= patch_N[:, None]
    in_prefix_BN = patch_N[None, :] < prefix_len_B[:, None]
    return (causal_NN[None] | in_prefix_BN[:, None, :])[:, None]


def predicted_patches(prefix_len_B: Tensor, *, num_patches: int) -> Tensor:
    """loss_BN: True on the patches behind the prefix, which are the pixel loss's targets."""
    return torch.arange(num_patches, device=prefix_len_B.device)[None, :] >= prefix_len_B[:, None]


def choose_fused_attention(module: nn.Module, *, device_type: str, dtype: torch.dtype) -> None:
    """Switch each attention layer of `module` (timm's or the decoder's) to the faster of its two equivalent paths.

    The fused kernel everywhere, but for bf16 on a CPU: there its backward pass takes about three times as long as plain
    matrix products (torch 2.14; `make bench` shows the step's rate).
    """
    fused = not (device_type == "cpu" and dtype == torch.bfloat16)
    for layer in module.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = fused
