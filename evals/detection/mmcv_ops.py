"""mmcv's compiled operators from torchvision, so that mmdet runs with mmcv-lite: nothing has to be compiled.

mmdet imports `mmcv.ops`, which imports `mmcv._ext`; mmcv-lite has none, and mmcv's sources do not build against this torch. Of
the fifty-odd operators detectors here need two, which torchvision has, forward and backward, on a CPU and on CUDA: non-maximum
suppression and RoIAlign. All others raise a clear error when they are called. Deformable attention takes mmcv's own PyTorch path.

Shape letters: K boxes, B batch, C channels, H/W rows and columns of a map, h/w those of a pooled box.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms
from torchvision.ops import roi_align as torchvision_roi_align

from pretrain.types import UserError

NAME = "mmcv._ext"
#: `pool_mode` of mmcv's RoIAlign: 0 takes the maximum of a bin's samples, 1 their mean.
_MEAN = 1


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that are kept, by falling score.

    Args:
        boxes: [K, 4] x0, y0, x1, y1.
        scores: [K].
        iou_threshold: a box goes whose overlap with a kept one is above it.
        offset: 1 where x1, y1 name the last pixel inside a box, else 0.
    """
    if offset:  # the same boxes with x1, y1 behind their last pixel
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return torchvision_nms(boxes, scores, iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool boxes of maps into `output`.

    Args:
        input: [B, C, H, W].
        rois: [K, 5]: number of the picture in the batch, then x0, y0, x1, y1 in pixels of the picture.
        output: [K, C, h, w], written to.
        argmax_y: of the maximum, which is not supported.
        argmax_x: likewise.
        aligned_height: h.
        aligned_width: w.
        spatial_scale: pixels of the map per pixel of the picture.
        sampling_ratio: samples of a bin along each side; 0 takes as many as the bin is wide in pixels of the map.
        pool_mode: 1, the mean.
        aligned: shift by half a pixel, which is right.

    Raises:
        UserError: the maximum is asked for.
    """
    _check_mean(pool_mode)
    pooled = torchvision_roi_align(
        input, rois.to(input.dtype), (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient with respect to the maps, [B, C, H, W], into `grad_input`; arguments as of :func:`roi_align_forward`."""
    _check_mean(pool_mode)
    gradient = torch.ops.torchvision._roi_align_backward(
        grad_output,
        rois.to(grad_output.dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(gradient)


def _check_mean(pool_mode: int) -> None:
    if pool_mode != _MEAN:
        raise UserError(
            "RoIAlign: pool_mode='max' needs mmcv's compiled operators; with torchvision's there is 'avg' only"
        )


_PROVIDED = {function.__name__: function for function in (nms, roi_align_forward, roi_align_backward)}


class _Operators(ModuleType):
    """`mmcv._ext`: what torchvision has, and an error at the call of anything else."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):  # the import system asks for its own
            raise AttributeError(name)
        return _PROVIDED.get(name) or _missing(name)


def _missing(name: str) -> Callable[..., Any]:
    def raise_error(*args: Any, **kwargs: Any) -> None:
        known = ", ".join(sorted(_PROVIDED))
        raise UserError(
            f"mmcv's operator {name!r} needs mmcv's compiled operators, which are not installed; "
            f"this suite provides {known} from torchvision"
        )

    return raise_error


def install() -> bool:
    """Provide `mmcv._ext` where mmcv's compiled operators are absent; call it in front of the first import of mmdet.

    Returns:
        Whether torchvision's operators are in use; False where mmcv has its own.

    Raises:
        UserError: mmcv is not installed.
    """
    loaded = sys.modules.get(NAME)
    if loaded is not None:
        return isinstance(loaded, _Operators)
    if importlib.util.find_spec("mmcv") is None:
        raise UserError("mmcv is not installed; detection needs mmcv-lite (or mmcv) and mmdet: run `make env`")
    if importlib.util.find_spec(NAME) is not None:
        return False
    module = _Operators(NAME, "mmcv's operators from torchvision.")
    module.__spec__ = importlib.machinery.ModuleSpec(NAME, loader=None)
    sys.modules[NAME] = module
    # its fast path is a compiled operator that CUDA tensors would be sent to
    importlib.import_module("mmcv.ops.multi_scale_deform_attn").IS_CUDA_AVAILABLE = False
    return True
