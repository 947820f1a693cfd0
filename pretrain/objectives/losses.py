"""Pixel targets and the two losses, as sums over valid targets.

Shape letters: B batch, C channels, H/W pixels, N patches, P patch pixels (3 * patch_size ** 2), M selected rows, D width,
V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

#: Added to the variance of a patch (ml-l3m; reference, section 2).
NORM_PIX_EPS = 1e-6
#: Largest block of logits kept at once, in bytes at fp32. Chosen on a CPU's last-level cache; see `make bench`.
LOGITS_BYTES = 32 * 2**20


def patchify(image_BCHW: Tensor, *, patch_size: int) -> Tensor:
    """Cut pictures into patches, row by row; within a patch row, column, channel.

    Args:
        image_BCHW: sides divisible by `patch_size`.
        patch_size: side of a patch in pixels.

    Returns:
        patch_BNP, P = patch_size ** 2 * C.
    """
    batch, channels, height, width = image_BCHW.shape
    grid = image_BCHW.reshape(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_size**2 * channels)


def unpatchify(patch_BNP: Tensor, *, patch_size: int, img_size: int) -> Tensor:
    """Inverse of :func:`patchify` for square pictures: image_BCHW."""
    batch, side = patch_BNP.shape[0], img_size // patch_size
    grid = patch_BNP.reshape(batch, side, side, patch_size, patch_size, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, img_size, img_size)


def patch_statistics(patch_P: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over the last axis, kept as an axis: unbiased variance + 1e-6, as ml-l3m."""
    mean = patch_P.mean(-1, keepdim=True)
    variance = (patch_P - mean).square().sum(-1, keepdim=True) / (patch_P.shape[-1] - 1)
    return mean, (variance + NORM_PIX_EPS).sqrt()


def normalise_patches(patch_P: Tensor) -> Tensor:
    """Patches with mean 0 and unbiased variance 1 over the last axis ("norm_pix", He et al. 2022)."""
    mean, std = patch_statistics(patch_P)
    return (patch_P - mean) / std


def pixel_loss_sum(prediction_MP: Tensor, target_MP: Tensor) -> Tensor:
    """Squared error, averaged over a patch's P pixels and summed over patches; scalar, fp32."""
    return (prediction_MP.float() - target_MP.float()).square().mean(-1).sum()


class _VocabularyLoss(torch.autograd.Function):
    """Cross entropy of a linear head in blocks of rows, gradients taken while a block's logits are at hand.

    Never more than one block of logits is alive, forward and backward together, where the plain path keeps logits, log
    probabilities and their gradient for all rows. torch's own `linear_cross_entropy` does the same in its chunked form,
    but more than twice as slowly in bf16 on a CPU (`make bench` prints both).
    """

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, logits_bytes: int) -> Tensor:
        with_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        rows = max(1, logits_bytes // (4 * weight_VD.shape[0]))
        total = hidden_MD.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden_MD) if with_grad else None
        grad_weight: Tensor | None = None
        for start in range(0, len(target_M), rows):
            hidden, target = hidden_MD[start : start + rows], target_M[start : start + rows, None]
            logits = (hidden @ weight_VD.T).float()
            target_logit, top = logits.gather(-1, target), logits.amax(-1, keepdim=True)
            # in place throughout: a second block of this size costs more in fresh memory than in arithmetic
            exponential = logits.sub_(top).exp_()
            norm = exponential.sum(-1, keepdim=True)
            total += (norm.log() + top - target_logit).sum()
            if not with_grad:
                continue
            probability = exponential.div_(norm)
            probability.scatter_add_(-1, target, probability.new_full((), -1.0).expand_as(target))
            probability = probability.to(hidden.dtype)
            torch.mm(probability, weight_VD, out=grad_hidden[start : start + rows])
            if grad_weight is None:
                grad_weight = probability.T @ hidden
            elif hidden.dtype == torch.float32:
                grad_weight.addmm_(probability.T, hidden)
            else:  # sums over blocks are kept in fp32
                grad_weight = grad_weight.float().add_(probability.T @ hidden)
        if with_grad and grad_weight is None:
            grad_weight = torch.zeros_like(weight_VD)
        ctx.gradients = (grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("vocabulary_loss_sum keeps its gradients for one backward pass only")
        grad_hidden, grad_weight = ctx.gradients
        ctx.gradients = None
        if grad_hidden is None:
            return None, None, None, None
        return grad_hidden.mul_(grad_total), grad_weight.mul_(grad_total), None, None


def vocabulary_loss_sum(
    hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, *, logits_bytes: int = LOGITS_BYTES
) -> Tensor:
    """Cross entropy of `hidden_MD @ weight_VD.T` against `target_M`, summed over rows.

    Args:
        hidden_MD: hidden states of valid positions only; M may be 0, the sum is then 0 with zero gradients.
        weight_VD: the text head.
        target_M: int64 token ids.
        logits_bytes: largest block of fp32 logits alive at once.

    Returns:
        Scalar, fp32; matrix products in the autocast type where autocast is on, sums in fp32.
    """
    device = hidden_MD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_MD, weight_VD = hidden_MD.to(dtype), weight_VD.to(dtype)
    with torch.autocast(device, enabled=False):
        return _VocabularyLoss.apply(hidden_MD, weight_VD, target_M, logits_bytes)


def dense_vocabulary_loss_sum(hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor) -> Tensor:
    """The plain path, all logits at once: what `vocabulary_loss_sum` is tested and measured against."""
    return F.cross_entropy(F.linear(hidden_MD, weight_VD).float(), target_M, reduction="sum")
