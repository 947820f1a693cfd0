"""The simple feature pyramid: shapes and strides of its maps, and that each place sees what lies there."""

import pytest
import torch

from evals.detection.pyramid import ChannelNorm, SimpleFeaturePyramid
from pretrain.types import UserError


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (5, 7), (1, 3), (74, 74)])
def test_shapes(rows, columns):
    pyramid = SimpleFeaturePyramid(8, 4, num_extra=2)
    with torch.no_grad():
        maps = pyramid((torch.randn(1, 8, rows, columns),))
    shapes = [tuple(one.shape[-2:]) for one in maps]
    assert shapes == pyramid.shapes(rows, columns)
    assert shapes[:3] == [(4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns)]
    assert shapes[3] == (-(-rows // 2), -(-columns // 2))
    assert shapes[4] == (-(-shapes[3][0] // 2), -(-shapes[3][1] // 2))
    assert all(one.shape[1] == 4 for one in maps)


def test_scales_of_vitdet():
    # patches of 16 pixels: strides 4, 8, 16, 32 and 64 (Li et al. 2022, section 3)
    assert [16 / scale for scale in SimpleFeaturePyramid(8, 4).scales] == [4, 8, 16, 32, 64]


def test_a_change_stays_where_it_is():
    """The maps cover the picture in the same places: what changes in one corner changes in that corner of each map."""
    pyramid = SimpleFeaturePyramid(4, 4, num_extra=1).eval()
    map_BDhw = torch.randn(1, 4, 16, 16)
    changed = map_BDhw.clone()
    changed[..., -2:, :2] += 1.0  # the last rows, the first columns
    with torch.no_grad():
        for one, other in zip(pyramid((map_BDhw,)), pyramid((changed,))):
            difference = (one - other).abs().amax(1)[0]
            rows, columns = (difference > 1e-7).nonzero(as_tuple=True)
            side = difference.shape[0]
            assert len(rows)
            assert rows.min() >= side // 2
            assert columns.max() < side // 2


def test_channel_norm():
    map_BChw = torch.randn(2, 6, 3, 5) * 4 + 1
    out = ChannelNorm(6)(map_BChw)
    assert torch.allclose(out.mean(1), torch.zeros(2, 3, 5), atol=1e-5)
    assert torch.allclose(out.var(1, unbiased=False), torch.ones(2, 3, 5), atol=1e-3)


@pytest.mark.parametrize("factors", [(3.0,), (1.0, 2.0), ()])
def test_other_factors_are_refused(factors):
    with pytest.raises(UserError, match="pyramid factors"):
        SimpleFeaturePyramid(8, 4, factors=factors)
