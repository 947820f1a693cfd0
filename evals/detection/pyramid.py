"""The simple feature pyramid of ViTDet (Li et al. 2022, section 3): maps of several strides, each from the last map alone.

Shape letters: B batch, D width of the encoder, C width of the pyramid, h/w rows and columns of the encoder's map.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from pretrain.types import UserError

#: What one map can be scaled by: 4 and 2 by transposed convolutions, 1 as it is, 1/2 by pooling.
FACTORS = (4.0, 2.0, 1.0, 0.5)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of a map [B, C, h, w], at each place."""

    def forward(self, map_BChw: Tensor) -> Tensor:
        return super().forward(map_BChw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


def _resample(width: int, factor: float) -> tuple[list[nn.Module], int]:
    """Layers that scale a map, and the width that they leave."""
    if factor == 4.0:
        up = [nn.ConvTranspose2d(width, width // 2, 2, 2), ChannelNorm(width // 2), nn.GELU()]
        return [*up, nn.ConvTranspose2d(width // 2, width // 4, 2, 2)], width // 4
    if factor == 2.0:
        return [nn.ConvTranspose2d(width, width // 2, 2, 2)], width // 2
    if factor == 0.5:  # an odd row at the end counts, so that the map covers the picture
        return [nn.MaxPool2d(2, 2, ceil_mode=True)], width
    return [], width


class SimpleFeaturePyramid(nn.Module):
    """One map [B, D, h, w] to a map [B, C, h * f, w * f] for each factor f, and coarser ones by taking every second place.

    Args:
        in_channels: D.
        out_channels: C.
        factors: of FACTORS, falling; 0.5 rounds up.
        num_extra: coarser maps, each half as large as the one in front of it, rounded up; one in ViTDet's detectors.

    Raises:
        UserError: a factor that is none, or not in falling order.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, factors: Sequence[float] = FACTORS, num_extra: int = 1
    ) -> None:
        super().__init__()
        if not factors or any(factor not in FACTORS for factor in factors) or sorted(factors)[::-1] != list(factors):
            raise UserError(f"pyramid factors {list(factors)} must be some of {list(FACTORS)}, falling")
        self.factors, self.num_extra = tuple(factors), num_extra
        self.levels = nn.ModuleList()
        for factor in factors:
            layers, width = _resample(in_channels, factor)
            layers += [nn.Conv2d(width, out_channels, 1, bias=False), ChannelNorm(out_channels)]
            layers += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), ChannelNorm(out_channels)]
            self.levels.append(nn.Sequential(*layers))
        self.coarser = nn.MaxPool2d(1, 2)

    @property
    def scales(self) -> list[float]:
        """Places of each map per place of the encoder's, along a side."""
        return [*self.factors, *(self.factors[-1] / 2 ** (k + 1) for k in range(self.num_extra))]

    def shapes(self, rows: int, columns: int) -> list[tuple[int, int]]:
        """Rows and columns of the maps for an encoder's map of this size."""
        found = [tuple(math.ceil(side * factor) for side in (rows, columns)) for factor in self.factors]
        for _ in range(self.num_extra):
            found.append(tuple(math.ceil(side / 2) for side in found[-1]))
        return found

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Args: maps: the encoder's only one, as a tuple, which is what mmdet's backbones give."""
        (map_BDhw,) = maps
        found = [level(map_BDhw) for level in self.levels]
        for _ in range(self.num_extra):
            found.append(self.coarser(found[-1]))
        return tuple(found)
