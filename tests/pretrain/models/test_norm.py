"""The CPU's RMSNorm equals torch's, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from pretrain.models.norm import RMSNorm


@pytest.mark.parametrize("shape", [(3, 7, 24), (5, 16), (24,), (0, 24)])
def test_equals_torch_in_double_precision(shape):
    torch.manual_seed(0)
    norm = RMSNorm(shape[-1], eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(shape, requires_grad=True)
    grad = torch.randn(shape)
    norm(x).backward(grad)
    exact, weight = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    expected = F.rms_norm(exact, shape[-1:], weight, 1e-5)
    expected.backward(grad.double())
    torch.testing.assert_close(norm(x).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad.double(), exact.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.weight.grad.double(), weight.grad, atol=1e-5, rtol=1e-5)


def test_low_precision_keeps_its_type_and_statistics_in_fp32():
    torch.manual_seed(0)
    norm = RMSNorm(64, eps=1e-5)
    x = (100 * torch.randn(9, 64)).bfloat16().requires_grad_()
    out = norm(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), F.rms_norm(x.float(), (64,), norm.weight, 1e-5), atol=0.02, rtol=0.01)
    out.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert norm.weight.grad.dtype == torch.float32
