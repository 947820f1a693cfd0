import pytest
import torch

from pretrain.objectives.losses import (
    dense_vocabulary_loss_sum,
    normalise_patches,
    patchify,
    pixel_loss_sum,
    unpatchify,
    vocabulary_loss_sum,
)


def test_patches_are_row_by_row_and_return():
    image = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)[:, :, :, :8]
    patches = patchify(image, patch_size=4)
    assert patches.shape == (2, 4, 48)
    # patch 1 is the top right one; its first three numbers are the channels of pixel (row 0, column 4)
    assert patches[0, 1, :3].tolist() == [image[0, c, 0, 4] for c in range(3)]
    assert torch.equal(unpatchify(patches, patch_size=4, img_size=8), image)


def test_normalisation_by_hand():
    # mean 2, unbiased variance ((-1)^2 + 0 + 1^2) / 2 = 1
    torch.testing.assert_close(normalise_patches(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([-1.0, 0.0, 1.0]))
    # a flat patch: variance 0, so 1e-6 under the root; no division by zero
    assert normalise_patches(torch.full((4,), 5.0)).tolist() == [0, 0, 0, 0]


def test_pixel_loss_by_hand():
    # ((1 - 0)^2 + (3 - 1)^2) / 2 = 2.5 and ((0 - 0)^2 + (2 - 1)^2) / 2 = 0.5
    assert pixel_loss_sum(torch.tensor([[1.0, 3.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])) == 3.0


@pytest.mark.parametrize("rows_at_once", [1, 5, 64])
def test_blocked_vocabulary_loss_equals_the_dense_one(rows_at_once):
    torch.manual_seed(0)
    hidden = torch.randn(23, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    target = torch.randint(0, 50, (23,))
    blocked = vocabulary_loss_sum(hidden, weight, target, logits_bytes=rows_at_once * 4 * 50)
    dense = dense_vocabulary_loss_sum(hidden, weight, target)
    torch.testing.assert_close(blocked, dense)
    for got, want in zip(
        torch.autograd.grad(blocked / 3, (hidden, weight)),
        torch.autograd.grad(dense / 3, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_bf16_sums_over_blocks_stay_accurate():
    torch.manual_seed(0)
    hidden, weight = torch.randn(512, 32), torch.randn(64, 32)
    target = torch.randint(0, 64, (512,))
    gradients = []
    for dtype, size in ((torch.float32, 2**25), (torch.bfloat16, 4 * 64 * 8)):
        w = weight.clone().requires_grad_()
        h = hidden.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = vocabulary_loss_sum(h, w, target, logits_bytes=size)
        loss.backward()
        assert loss.dtype == torch.float32
        gradients.append((loss.detach(), h.grad, w.grad))
    for exact, rounded in zip(*gradients, strict=True):
        assert (exact - rounded).norm() / exact.norm() < 0.02


def test_no_rows_give_zero_and_zero_gradients():
    weight, hidden = torch.randn(7, 3, requires_grad=True), torch.randn(0, 3, requires_grad=True)
    loss = vocabulary_loss_sum(hidden, weight, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert torch.equal(weight.grad, torch.zeros(7, 3))


def test_logits_of_all_rows_are_never_alive():
    """4,096 x 2,000 logits would be 31 MiB; the blocked loss must stay far below, forward and backward."""
    hidden = torch.randn(4096, 8, requires_grad=True)
    weight = torch.randn(2000, 8, requires_grad=True)
    target = torch.randint(0, 2000, (4096,))
    largest = {}
    for name, function in (("dense", dense_vocabulary_loss_sum), ("blocked", vocabulary_loss_sum)):
        options = {"logits_bytes": 2**20} if name == "blocked" else {}
        with torch.profiler.profile(profile_memory=True) as profile:
            function(hidden, weight, target, **options).backward()
        largest[name] = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest["dense"] > 2**24
    assert largest["blocked"] < 2**22


def test_second_backward_is_refused():
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3)
    loss = vocabulary_loss_sum(hidden, weight, torch.zeros(4, dtype=torch.long))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()
