"""An encoder as the backbone of a detector, the way of ViTDet (Li et al. 2022, arXiv 2203.16527, section 3).

A plain ViT takes pictures of the detector's size: positions are resampled, most blocks attend inside of windows, a few attend to
everything, and the last layer's map is all that the detector sees. Blocks are the encoder's own, weights included: nothing is
copied or renamed, so nothing can fail to load.

Shape letters: B batch, C channels, H/W pixels, h/w rows and columns of patches, P class and register tokens, D width,
K windows of a picture, S side of a window in patches, T = P + S * S tokens of a window.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from evals.encoder import BlockEncoder, TokenEncoder
from evals.finetuning.layers import set_drop_path
from pretrain.types import UserError


@dataclass(frozen=True)
class BackboneConfig:
    """How an encoder serves as a backbone.

    Attributes:
        window: side of the windows in patches: 16 in the paper's Tables 4, D1 and D3 (reference, section 7). 0 has none:
            all blocks attend to everything.
        num_global: blocks that attend to everything, the last of each of so many equal parts; 4 in ViTDet, section 3.
        drop_path: share of samples whose residual branch is left out in the last block, rising from 0 in the first.
        frozen: the encoder is not trained (nor dropped from).
        checkpointing: blocks are computed again in the backward pass instead of being remembered.
    """

    window: int = 16
    num_global: int = 4
    drop_path: float = 0.0
    frozen: bool = False
    checkpointing: bool = False

    def check(self) -> None:
        """Raise UserError for values that cannot be meant."""
        if self.window < 0 or self.num_global < 0:
            raise UserError(f"backbone: window={self.window} and num_global={self.num_global} must be 0 or more")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"backbone.drop_path={self.drop_path} must be at least 0 and below 1")
        if self.frozen and self.drop_path:
            raise UserError(f"backbone.drop_path={self.drop_path}: a frozen encoder has none; set 0")


def global_blocks(depth: int, num_global: int) -> set[int]:
    """The last block of each of `num_global` parts: 5, 11, 17, 23 of 24."""
    parts = min(num_global, depth)
    return {depth * (part + 1) // parts - 1 for part in range(parts)}


class PictureDropPath(DropPath):
    """Drop path whose draw is the picture's: the windows of a picture stand in a row in the batch, [B * K, T, D]."""

    num_windows: int = 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return x
        keep = 1 - self.drop_prob
        drawn_B11 = torch.empty(len(x) // self.num_windows, 1, 1, device=x.device).bernoulli_(keep)
        return x * (drawn_B11 / keep).to(x.dtype).repeat_interleave(self.num_windows, 0)


class EncoderBackbone(nn.Module):
    """Pictures of any size to one map of the encoder's last layer, behind its final norm.

    A `BlockEncoder` gets windows, drop path and checkpointing; any other `TokenEncoder` runs as it is, on pictures of
    sizes that it takes. Pictures are padded on the right and at the bottom to whole patches.

    Args:
        encoder: used in place: training changes it.
        config: how.

    Attributes:
        out_channels: D.
        stride: pixels of a patch.
        windowed: whether windows are in use; False attends to everything in every block, for comparisons.

    Raises:
        UserError: settings that need blocks, for an encoder that has none to reach.
    """

    def __init__(self, encoder: TokenEncoder, config: BackboneConfig) -> None:
        super().__init__()
        config.check()
        encoder.text = None
        self.encoder, self.config, self.out_channels = encoder, config, encoder.embed_dim
        size = encoder.transform.spec.img_size
        rows, _ = encoder.grid(size, size)
        self.stride = size // rows
        self.windowed = True
        self.blocks = isinstance(encoder, BlockEncoder)
        if not self.blocks and (config.drop_path or config.checkpointing):
            raise UserError(
                f"encoder {encoder.provenance.spec!r}: its blocks cannot be reached, which drop path and checkpointing need; "
                "set backbone.drop_path=0 and backbone.checkpointing=false"
            )
        self._global = global_blocks(encoder.num_layers, config.num_global) if self.blocks else set()
        if self.blocks:
            set_drop_path(encoder, config.drop_path, make=PictureDropPath)
        encoder.requires_grad_(not config.frozen)
        self.train()

    def train(self, mode: bool = True) -> "EncoderBackbone":
        super().train(mode)
        self.encoder.train(mode and not self.config.frozen)
        return self

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the map for pictures of this size in pixels."""
        return -(-height // self.stride), -(-width // self.stride)

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor]:
        """One map [B, D, h, w] of normalised pictures, as a tuple, which is what mmdet's necks take.

        Raises:
            UserError: a size that the encoder cannot take.
        """
        rows, columns = self.grid(*image_BCHW.shape[-2:])
        below, right = rows * self.stride - image_BCHW.shape[-2], columns * self.stride - image_BCHW.shape[-1]
        image_BCHW = F.pad(image_BCHW, (0, right, 0, below))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            tokens_BND = self._tokens(image_BCHW, rows, columns)
        return (tokens_BND.transpose(1, 2).unflatten(2, (rows, columns)).contiguous(),)

    def _tokens(self, image_BCHW: Tensor, rows: int, columns: int) -> Tensor:
        """The encoder's patch tokens: [B, h * w, D]."""
        if not self.blocks:
            return self.encoder(image_BCHW).tokens_BND
        self.encoder.grid(*image_BCHW.shape[-2:])  # refuses what the encoder cannot take, in its own words
        vit = self.encoder.vit
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(image_BCHW))))
        side = self.config.window if self.windowed else 0
        windows = Windows(rows, columns, side=side, num_prefix=vit.num_prefix_tokens)
        inside = False  # whether tokens are in windows at the moment: neighbours of one kind need no moving
        for number, block in enumerate(vit.blocks):
            windowed = not windows.whole and number not in self._global
            if windowed != inside:
                tokens = windows.split(tokens) if windowed else windows.join(tokens)
                inside = windowed
            tokens = self._block(block, tokens, windows if windowed else None)
        tokens = vit.norm(windows.join(tokens) if inside else tokens)
        return tokens[:, vit.num_prefix_tokens :]

    def _block(self, block: nn.Module, tokens: Tensor, windows: "Windows | None") -> Tensor:
        for layer in block.modules():
            if isinstance(layer, PictureDropPath):
                layer.num_windows = windows.num if windows else 1
        mask = windows.attend(len(tokens), block, tokens.device) if windows else None
        if self.config.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, tokens, mask, use_reentrant=False)
        return block(tokens, mask) if mask is not None else block(tokens)


class Windows:
    """Square windows over a map of patches, padded on the right and at the bottom; class and register tokens go with each window.

    Padding is not attended to. Each window has its own copy of the class and register tokens; where windows are joined,
    the copies are averaged. With one window all of this is full attention.

    Args:
        rows: h.
        columns: w.
        side: S; 0 is one window over everything.
        num_prefix: P.

    Attributes:
        num: K.
        whole: whether one window covers the map.
    """

    def __init__(self, rows: int, columns: int, *, side: int, num_prefix: int) -> None:
        self.rows, self.columns, self.num_prefix = rows, columns, num_prefix
        self.whole = side == 0 or (rows <= side and columns <= side)
        self.side = side or max(rows, columns)
        self.down, self.across = -(-rows // self.side), -(-columns // self.side)
        self.num = self.down * self.across

    @property
    def _padded(self) -> tuple[int, int]:
        return self.down * self.side, self.across * self.side

    def _cut(self, map_Bhwc: Tensor) -> Tensor:
        """A map [B, h, w, c] to [B * K, S * S, c], padded with zeros."""
        height, width = self._padded
        padded = F.pad(map_Bhwc, (0, 0, 0, width - self.columns, 0, height - self.rows))
        cut = padded.unflatten(2, (self.across, self.side)).unflatten(1, (self.down, self.side)).transpose(2, 3)
        return cut.flatten(3, 4).flatten(0, 2)

    def split(self, tokens_BLD: Tensor) -> Tensor:
        """[B, P + h * w, D] to [B * K, T, D]."""
        prefix, patches = tokens_BLD[:, : self.num_prefix], tokens_BLD[:, self.num_prefix :]
        cut = self._cut(patches.unflatten(1, (self.rows, self.columns)))
        return torch.cat([prefix.repeat_interleave(self.num, 0), cut], dim=1) if self.num_prefix else cut

    def join(self, tokens_WTD: Tensor) -> Tensor:
        """[B * K, T, D] to [B, P + h * w, D]."""
        prefix, cut = tokens_WTD[:, : self.num_prefix], tokens_WTD[:, self.num_prefix :]
        grid = cut.unflatten(1, (self.side, self.side)).unflatten(0, (-1, self.down, self.across)).transpose(2, 3)
        height, width = self._padded
        patches = grid.reshape(len(grid), height, width, -1)[:, : self.rows, : self.columns].flatten(1, 2)
        return torch.cat([prefix.unflatten(0, (-1, self.num)).mean(1), patches], dim=1) if self.num_prefix else patches

    def attend(self, num_batch: int, block: nn.Module, device: torch.device) -> Tensor | None:
        """Who may be attended to: [B * K, 1, 1, T], True or 0 on what is no padding; None where there is none.

        Where a block's attention runs as plain products, timm adds the mask to the scores: it is 0 and -inf then.
        """
        if self._padded == (self.rows, self.columns):
            return None
        real = self._cut(torch.ones(1, self.rows, self.columns, 1, device=device))[..., 0].bool()
        real = F.pad(real, (self.num_prefix, 0), value=True).repeat(num_batch // self.num, 1)[:, None, None]
        if getattr(getattr(block, "attn", None), "fused_attn", True):
            return real
        return torch.zeros(real.shape, device=device).masked_fill(~real, float("-inf"))


@torch.no_grad()
def check_backbone(
    backbone: EncoderBackbone, reference: Callable[[Tensor], Tensor], *, fingerprint: str, tolerance: float = 1e-4
) -> float:
    """Hold a backbone to its encoder before it is trained: its weights are the loaded ones, and so are its features.

    At the encoder's own picture size and without windows the map must equal the encoder's tokens.

    Args:
        backbone: not yet trained.
        reference: normalised pictures [B, C, H, W] to the encoder's tokens [B, N, D], as the encoder was loaded.
        fingerprint: of the encoder as it was loaded (`TokenEncoder.fingerprint`).
        tolerance: of the difference.

    Returns:
        The largest difference, relative to the largest feature.

    Raises:
        UserError: weights or features differ.
    """
    encoder, training = backbone.encoder, backbone.training
    spec = encoder.provenance.spec
    if encoder.fingerprint() != fingerprint:
        raise UserError(f"encoder {spec!r}: the backbone's weights are not those that were loaded")
    size = encoder.transform.spec.img_size
    image_BCHW = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    image_BCHW = image_BCHW.to(next(encoder.parameters()).device)
    backbone.eval()
    backbone.windowed = False
    try:
        (map_BDhw,) = backbone(image_BCHW)
        wanted_BND = reference(image_BCHW)
    finally:
        backbone.windowed = True
        backbone.train(training)
    found_BND = map_BDhw.flatten(2).transpose(1, 2)
    if found_BND.shape != wanted_BND.shape:
        raise UserError(
            f"encoder {spec!r}: the backbone gives {tuple(found_BND.shape)} where the encoder gives {tuple(wanted_BND.shape)}"
        )
    difference = float((found_BND - wanted_BND).abs().max() / wanted_BND.abs().max().clamp(min=1e-12))
    if not difference <= tolerance:
        raise UserError(
            f"encoder {spec!r}: the backbone's features differ from the encoder's by {difference:.1e} of the largest"
        )
    return difference


def checked_backbone(encoder: TokenEncoder, config: BackboneConfig, *, fingerprint: str) -> EncoderBackbone:
    """The backbone of an encoder as it was loaded, held to it by :func:`check_backbone`; nothing is drawn.

    Raises:
        UserError: as both of them.
    """
    backbone = EncoderBackbone(encoder, config)
    check_backbone(backbone, lambda image: encoder(image).tokens_BND, fingerprint=fingerprint)
    return backbone
