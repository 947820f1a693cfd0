"""mmcv's operators from torchvision, against torchvision's own calls, a plain restatement, and finite differences."""

import subprocess
import sys

import pytest
import torch
from torchvision.ops import roi_align as torchvision_roi_align

from evals.detection.mmdet_setup import use_mmdet
from pretrain.types import UserError

use_mmdet()
from mmcv.ops import RoIAlign, batched_nms, nms, roi_align, soft_nms  # noqa: E402
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention  # noqa: E402


def boxes(num: int, *, side: float = 32.0, seed: int = 0) -> torch.Tensor:
    corners = torch.rand(num, 2, 2, generator=torch.Generator().manual_seed(seed)) * side
    return torch.cat([corners.min(1).values, corners.max(1).values + 1.0], dim=1)


def plain_nms(box_K4, score_K, threshold, offset):
    """One box after the other, as the definition says."""
    kept = []
    for k in score_K.argsort(descending=True).tolist():
        clear = True
        for j in kept:
            low, high = torch.maximum(box_K4[k, :2], box_K4[j, :2]), torch.minimum(box_K4[k, 2:], box_K4[j, 2:])
            inside = (high - low + offset).clamp(min=0).prod()
            areas = [(box_K4[i, 2:] - box_K4[i, :2] + offset).prod() for i in (k, j)]
            clear &= bool(inside / (sum(areas) - inside) <= threshold)
        kept += [k] if clear else []
    return kept


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_what_the_definition_keeps(offset):
    box_K4, score_K = boxes(60), torch.rand(60, generator=torch.Generator().manual_seed(1))
    dets, kept = nms(box_K4, score_K, 0.4, offset=offset)
    wanted = plain_nms(box_K4, score_K, 0.4, offset)
    assert kept.tolist() == wanted
    assert 1 < len(wanted) < 60
    assert torch.equal(dets[:, 4], score_K[wanted])


def test_offset_matters():
    # widths 2, shifted by 1: overlap 1 / 3; with offset 1 widths 3 and overlap 2 / 4
    box_K4 = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 1]])
    score_K = torch.tensor([0.9, 0.8])
    assert len(nms(box_K4, score_K, 0.4, offset=0)[1]) == 2
    assert len(nms(box_K4, score_K, 0.4, offset=1)[1]) == 1


def test_batched_nms_keeps_classes_apart():
    box_K4 = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4]])
    _, kept = batched_nms(
        box_K4, torch.tensor([0.5, 0.9, 0.7]), torch.tensor([0, 0, 1]), {"type": "nms", "iou_threshold": 0.5}
    )
    assert kept.tolist() == [1, 2]


def test_nothing_to_suppress():
    assert len(nms(torch.zeros(0, 4), torch.zeros(0), 0.5)[1]) == 0


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align_is_torchvisions(aligned, sampling_ratio):
    maps = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    rois = torch.cat([torch.tensor([[0.0], [1], [1], [0]]), boxes(4, side=18)], dim=1)
    found = roi_align(maps, rois, (3, 2), 0.5, sampling_ratio, "avg", aligned)
    wanted = torchvision_roi_align(maps, rois, (3, 2), 0.5, sampling_ratio, aligned)
    assert torch.equal(found, wanted)


def test_roi_align_of_a_ramp():
    # a map whose value is its column: a bin's mean is its centre's column (aligned: pixel centres stand at half numbers)
    maps = torch.arange(16.0).expand(1, 1, 16, 16).contiguous()
    found = RoIAlign((1, 2), spatial_scale=1.0, sampling_ratio=2)(maps, torch.tensor([[0.0, 4, 4, 8, 8]]))
    assert torch.allclose(found.flatten(), torch.tensor([5.0, 7.0]) - 0.5)


def test_roi_align_gradient():
    maps = torch.randn(2, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 0.3, 0.2, 7.1, 9.0], [1, 2.0, 1.5, 8.0, 6.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, (2, 3), 0.5, 2, "avg", True), (maps,))
    ours = torch.autograd.grad(roi_align(maps, rois, (2, 3), 0.5, 0, "avg", True).square().sum(), maps)[0]
    theirs = torch.autograd.grad(torchvision_roi_align(maps, rois, (2, 3), 0.5, 0, True).square().sum(), maps)[0]
    assert torch.allclose(ours, theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_operators_on_a_gpu():
    maps, rois = torch.randn(1, 2, 8, 8), torch.cat([torch.zeros(3, 1), boxes(3, side=16)], dim=1)
    there = roi_align(maps.cuda(), rois.cuda(), 2, 0.5, 2)
    assert torch.allclose(there.cpu(), roi_align(maps, rois, 2, 0.5, 2), atol=1e-5)
    box_K4, score_K = boxes(30), torch.rand(30)
    assert nms(box_K4.cuda(), score_K.cuda(), 0.4)[1].tolist() == nms(box_K4, score_K, 0.4)[1].tolist()


def test_maximum_is_refused():
    with pytest.raises(UserError, match="pool_mode='max' needs mmcv's compiled operators"):
        roi_align(torch.zeros(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), 2, 1.0, 2, "max", True)


def test_other_operators_say_what_is_missing():
    with pytest.raises(UserError, match="operator 'softnms' needs mmcv's compiled operators"):
        soft_nms(boxes(3), torch.rand(3))


def test_deformable_attention_takes_the_path_of_pytorch():
    import mmcv.ops.multi_scale_deform_attn as module

    assert module.IS_CUDA_AVAILABLE is False
    layer = MultiScaleDeformableAttention(embed_dims=8, num_heads=2, num_levels=1, num_points=2, batch_first=True)
    layer.init_weights()
    query = torch.randn(1, 5, 8, requires_grad=True)
    value, points = torch.randn(1, 12, 8), torch.rand(1, 5, 1, 2)
    out = layer(
        query,
        value=value,
        reference_points=points,
        spatial_shapes=torch.tensor([[3, 4]]),
        level_start_index=torch.tensor([0]),
    )
    out.sum().backward()
    assert out.shape == (1, 5, 8)
    assert query.grad.abs().sum() > 0


STEP_ASIDE = """
import importlib.machinery, sys, types
from evals.detection import mmcv_ops
import mmcv
own = types.ModuleType("mmcv._ext")
own.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", loader=None)
{prepare}
print(mmcv_ops.install(), sys.modules.get("mmcv._ext") is own)
"""


def test_steps_aside_where_mmcv_has_its_own():
    code = STEP_ASIDE.format(prepare='sys.modules["mmcv._ext"] = own')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_installs_once():
    from evals.detection import mmcv_ops

    assert mmcv_ops.install() is True
