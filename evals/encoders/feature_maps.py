"""Encoders whose output is a map or a row of features and whose inside is nobody's business: timm's other models.

Shape letters: B batch, C channels, H/W pixels, P class and register tokens, N patches, D width, E width of the summary.
"""

from abc import abstractmethod
from math import isqrt

import torch
from torch import Tensor, nn

from evals.encoder import Features, Provenance, TokenEncoder
from evals.encoders.specs import one_line
from evals.transforms import ImageTransform
from pretrain.types import UserError

Grid = tuple[int, int]


def split_output(model: nn.Module, output: Tensor, *, height: int, width: int) -> tuple[Tensor, Tensor, Grid]:
    """Patch tokens [B, N, D], prefix tokens [B, P, D] and the grid in what a timm model's `forward_features` gives.

    Args:
        model: says how its output is laid out (`num_features`, `output_fmt`, `num_prefix_tokens`).
        output: [B, D, H, W], [B, H, W, D] or [B, P + N, D].
        height: of the pictures in pixels.
        width: likewise.

    Raises:
        UserError: another output.
    """
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if isinstance(output, Tensor) and output.ndim == 4:
        # timm says it of those that keep channels last (Swin and its like)
        map_BHWD = output if str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC") else output.permute(0, 2, 3, 1)
        if map_BHWD.shape[-1] == model.num_features:
            return map_BHWD.flatten(1, 2), map_BHWD[:, 0, :0], tuple(map_BHWD.shape[1:3])
    if isinstance(output, Tensor) and output.ndim == 3:
        num_prefix = getattr(model, "num_prefix_tokens", 0)
        tokens_BND = output[:, num_prefix:]
        if grid := _grid_of(model, tokens_BND.shape[1], height=height, width=width):
            return tokens_BND, output[:, :num_prefix], grid
    raise UserError(
        f"{type(model).__name__} gives {shape} for pictures of {height} x {width}: no map of features, and no row of tokens "
        "whose grid is known"
    )


def _grid_of(model: nn.Module, num_patches: int, *, height: int, width: int) -> Grid | None:
    embed = getattr(model, "patch_embed", None)
    if hasattr(embed, "dynamic_feat_size"):
        rows, columns = embed.dynamic_feat_size((height, width))
        if rows * columns == num_patches:
            return int(rows), int(columns)
    side = isqrt(num_patches)
    return (side, side) if height == width and side**2 == num_patches else None


class ProbedEncoder(TokenEncoder):
    """An encoder that is asked for its grid by showing it a picture, once for each size."""

    def _probe_native(self) -> None:
        """Look at the output for the encoder's own size: sets `embed_dim`, raises UserError where it is of no use."""
        self._grids: dict[Grid, Grid] = {}
        size = self.transform.spec.img_size
        with torch.no_grad():
            features, self._grids[size, size] = self._encode(torch.zeros(1, 3, size, size))
        self.embed_dim = features.tokens_BND.shape[-1]

    @abstractmethod
    def _encode(self, image_BCHW: Tensor) -> tuple[Features, Grid]:
        """Features and their grid. The library's own errors, which differ, pass through."""

    def forward(self, image_BCHW: Tensor) -> Features:
        self.grid(*image_BCHW.shape[-2:])
        return self._encode(image_BCHW)[0]

    @torch.no_grad()
    def grid(self, height: int, width: int) -> Grid:
        if (height, width) not in self._grids:
            device = next(self.parameters()).device
            try:
                self._grids[height, width] = self._encode(torch.zeros(1, 3, height, width, device=device))[1]
            except (AssertionError, RuntimeError, ValueError) as error:
                size = self.transform.spec.img_size
                raise UserError(
                    f"{self.provenance.architecture} cannot take pictures of {height} x {width}, its own are {size} x {size} "
                    f"({one_line(error)})"
                ) from error
        return self._grids[height, width]


class MapEncoder(ProbedEncoder):
    """A timm model that is no plain VisionTransformer: its `forward_features` as tokens, its pooling as the summary.

    Raises:
        UserError: its output is neither a map of features nor a row of tokens with a known grid.
    """

    def __init__(self, model: nn.Module, *, transform: ImageTransform, provenance: Provenance) -> None:
        super().__init__()
        self.model, self.transform, self.provenance = model, transform, provenance
        self.eval().requires_grad_(False)
        self._probe_native()

    def _encode(self, image_BCHW: Tensor) -> tuple[Features, Grid]:
        output = self.model.forward_features(image_BCHW)
        height, width = image_BCHW.shape[-2:]
        tokens_BND, prefix_BPD, grid = split_output(self.model, output, height=height, width=width)
        pooled = self.model.forward_head(output, pre_logits=True)
        return Features(tokens_BND, prefix_BPD, pooled if pooled.ndim == 2 else None), grid
