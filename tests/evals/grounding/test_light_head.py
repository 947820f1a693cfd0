"""The light grounding head: positions, what must not matter, its loss, its file, its settings."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torchvision.ops import box_convert, generalized_box_iou

from evals.grounding import light_head
from evals.grounding.light_config import LightConfig, LightHeadConfig
from evals.grounding.light_head import LightGroundingHead, box_loss, grid_positions, load_light_head, save_light_head
from pretrain.types import UserError

GRID, VISION, TEXT = (2, 3), 12, 10


def build(**options) -> LightGroundingHead:
    torch.manual_seed(0)
    config = LightHeadConfig(**({"embed_dim": 16, "depth": 2, "num_heads": 2} | options))
    return LightGroundingHead(VISION, TEXT, GRID, config)


def batch(count=3, length=4):
    """Patches, text, and which text tokens are there: 2, 3, 4, ..."""
    generator = torch.Generator().manual_seed(1)
    valid_BL = torch.arange(length)[None] < 2 + torch.arange(count)[:, None]
    tokens_BNV = 3 + 2 * torch.randn(count, 6, VISION, generator=generator)
    return tokens_BNV, torch.randn(count, length, TEXT, generator=generator), valid_BL


def test_positions_by_hand():
    """Width 4 has one band: sine and cosine of y, then of x. Row 1 of 2 is centred at 3/4, column 0 of 3 at 1/6."""
    span = torch.tensor(float(light_head._POSITION_SPAN))
    y, x = 3 / 4 * span, 1 / 6 * span
    assert torch.allclose(grid_positions(GRID, 4)[3], torch.stack([y.sin(), y.cos(), x.sin(), x.cos()]), atol=1e-6)


def test_positions_are_of_places_not_of_patches():
    """The middle of 3 x 3 patches is that of one patch; rows share the first half, columns the second; no two are the same."""
    assert torch.allclose(grid_positions((3, 3), 16)[4], grid_positions((1, 1), 16)[0], atol=1e-6)
    position_RCD = grid_positions(GRID, 16).unflatten(0, GRID)
    assert torch.equal(position_RCD[:, :1, :8].expand(-1, 3, -1), position_RCD[:, :, :8])
    assert torch.equal(position_RCD[:1, :, 8:].expand(2, -1, -1), position_RCD[:, :, 8:])
    many = grid_positions((16, 16), 16)
    assert (torch.cdist(many, many) + 9 * torch.eye(256)).min() > 0.1


def test_centres_by_hand():
    """x, then y; row by row. Two rows are centred at 1/4 and 3/4, three columns at 1/6, 1/2 and 5/6."""
    wanted = [(x, y) for y in (1 / 4, 3 / 4) for x in (1 / 6, 1 / 2, 5 / 6)]
    assert torch.allclose(light_head.patch_centres(GRID), torch.tensor(wanted))


def test_a_head_that_adds_nothing_answers_where_it_looks():
    """With zeros in the box's last layer the centre is the mean place of the patches under the attention, the sides one half.
    Keys that are all alike are looked at alike: the middle of the picture."""
    head, (tokens, text, valid) = build().eval(), batch()
    torch.nn.init.zeros_(head.box[-1].weight)
    torch.nn.init.zeros_(head.box[-1].bias)
    seen = []
    head.read_out.register_forward_hook(lambda module, given, found: seen.append(found[1]))
    box_B4 = head(tokens, text, valid)
    (weight_BT,) = seen
    assert torch.allclose(weight_BT.sum(1), torch.ones(3), atol=1e-6)
    assert (weight_BT[:, 1:5][~valid] == 0).all()
    weight_BN = weight_BT[:, -6:] / weight_BT[:, -6:].sum(1, keepdim=True)
    for number in range(3):
        pairs = zip(weight_BN[number].tolist(), head.centre_N2.tolist(), strict=True)
        x, y = map(sum, zip(*((weight * x, weight * y) for weight, (x, y) in pairs), strict=True))
        assert box_B4[number].tolist() == pytest.approx([x, y, 0.5, 0.5], abs=1e-5)
    torch.nn.init.zeros_(head.read_out.k_norm.weight)
    assert torch.allclose(head(tokens, text, valid), torch.full((3, 4), 0.5), atol=1e-5)


def test_boxes_are_shares():
    box_B4 = build()(*batch())
    assert box_B4.shape == (3, 4)
    assert box_B4.dtype == torch.float32
    assert ((box_B4 > 0) & (box_B4 < 1)).all()


def test_padding_of_text_does_not_matter():
    head, (tokens, text, valid) = build().eval(), batch()
    wanted = head(tokens, text, valid)
    noise = torch.where(valid[..., None], text, 100 * torch.randn_like(text))
    longer = torch.cat([noise, 50 + torch.randn(3, 5, TEXT)], dim=1)
    padded = torch.cat([valid, torch.zeros(3, 5, dtype=torch.bool)], dim=1)
    assert torch.allclose(head(tokens, longer, padded), wanted, atol=1e-6)
    # a sentence alone is what it is beside longer ones
    assert torch.allclose(head(tokens[:1], text[:1, :2], valid[:1, :2]), wanted[:1], atol=1e-6)
    # a token that is there does matter
    assert not torch.allclose(head(tokens, text, valid | True), wanted, atol=1e-4)


def test_patches_may_change_places_with_their_positions():
    head, (tokens, text, valid) = build().eval(), batch()
    wanted = head(tokens, text, valid)
    order = torch.tensor([4, 2, 0, 5, 3, 1])
    assert not torch.allclose(head(tokens[:, order], text, valid), wanted, atol=1e-4)
    head.position_ND, head.centre_N2 = head.position_ND[order], head.centre_N2[order]
    assert torch.allclose(head(tokens[:, order], text, valid), wanted, atol=1e-6)


def test_scale_and_shift_of_an_encoders_tokens_do_not_matter():
    """Normalised by the batch's statistics, feature by feature."""
    head, (tokens, text, valid) = build(), batch()
    other = tokens * torch.linspace(0.5, 90, VISION) - torch.linspace(-7, 7, VISION)
    assert torch.allclose(head(other, text, valid), head(tokens, text, valid), atol=1e-4)


def test_gradients_reach_everything():
    head = build()
    box_loss(head(*batch()), torch.full((3, 4), 0.4), l1_weight=5, giou_weight=2)[0].backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        # a shift of all keys alike is lost in the softmax
        if not name.endswith("k_norm.bias"):
            assert parameter.grad.abs().max() > 1e-9, name


def test_the_loss_by_hand():
    """First pair, corners 0.3 0.3 0.7 0.7 and 0.3 0.4 0.7 0.6: L1 is 0.2; IoU is 0.08 / 0.16, the hull is the union: GIoU 0.5.

    Second pair, corners 0.1 0.1 0.3 0.3 and 0.7 0.7 0.9 0.9: L1 is 0.6 + 0.6; IoU is 0, the union 0.08 of a hull of 0.64: GIoU is
    -0.56 / 0.64 = -0.875.

    L1: (0.2 + 1.2) / 2 = 0.7. 1 - GIoU: (0.5 + 1.875) / 2 = 1.1875. 5 * 0.7 + 2 * 1.1875 = 5.875.
    """
    box_B4 = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2]])
    target_B4 = torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.8, 0.8, 0.2, 0.2]])
    found = box_loss(box_B4, target_B4, l1_weight=5.0, giou_weight=2.0)
    assert [float(value) for value in found] == pytest.approx([5.875, 0.7, 1.1875], abs=1e-5)


def test_giou_is_torchvisions_matrix():
    boxes, targets = torch.rand(2, 8, 4, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.05
    corners = [box_convert(box, "cxcywh", "xyxy") for box in (boxes, targets)]
    wanted = 1 - generalized_box_iou(*corners).diag().mean()
    loss, l1, giou = box_loss(boxes, targets, l1_weight=0.0, giou_weight=3.0)
    assert float(giou) == pytest.approx(float(wanted), abs=1e-5)
    assert float(loss) == pytest.approx(3 * float(wanted), abs=1e-5)
    assert float(l1) == pytest.approx(float((boxes - targets).abs().mean() * 4))


def test_a_head_comes_back_from_its_file(tmp_path):
    head, (tokens, text, valid) = build(mlp_ratio=2.0), batch()
    head(tokens, text, valid)  # statistics that are not those of the start
    path, about = tmp_path / "head.safetensors", {"encoder": "runs/a", "dataset": "scenes"}
    save_light_head(head, path, about=about)
    loaded = load_light_head(path)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert (loaded.grid, loaded.token_dim, loaded.text_dim) == (GRID, VISION, TEXT)
    assert loaded.config == head.config
    assert loaded.about == about
    assert torch.equal(loaded(tokens, text, valid), head.eval()(tokens, text, valid))


def test_files_that_are_no_heads(tmp_path):
    (tmp_path / "text").write_text("no tensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("missing", "text", "other.safetensors"):
        with pytest.raises(
            UserError, match=f"{name} is no light grounding head .give a head.safetensors of one."
        ) as found:
            load_light_head(tmp_path / name)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, r"head\.depth=0 must be at least 1"),
        ({"embed_dim": 0}, r"head\.embed_dim=0 must be at least 1"),
        ({"num_heads": 0}, r"head\.num_heads=0 must be at least 1"),
        ({"embed_dim": 18}, r"head\.embed_dim=18 must be a multiple of 4 and of head\.num_heads=2"),
        ({"embed_dim": 16, "num_heads": 3}, r"head\.embed_dim=16 must be a multiple of 4 and of head\.num_heads=3"),
        ({"mlp_ratio": 0.0}, r"head\.mlp_ratio=0.0 must be above 0"),
        ({"dropout": 1.0}, r"head\.dropout=1.0 must be at least 0 and below 1"),
    ],
)
def test_sizes_that_cannot_be_meant(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": LightHeadConfig(depth=0)}, r"head\.depth=0"),
        ({"lr": 0.0}, r"light\.lr=0.0 must be above 0"),
        ({"lr": float("nan")}, r"light\.lr=nan must be above 0"),
        ({"epochs": 0}, r"light\.epochs=0 must be above 0"),
        ({"batch_size": 0}, r"light\.batch_size=0 must be above 0"),
        ({"clip": -1.0}, r"light\.clip=-1.0 must be above 0"),
        ({"weight_decay": -0.1}, r"light\.weight_decay=-0.1 must not be negative"),
        ({"beta2": 1.0}, r"light\.beta2=1.0 must be at least 0 and below 1"),
        ({"l1_weight": 0.0, "giou_weight": 0.0}, "light.l1_weight and light.giou_weight are both 0"),
        ({"min_lr": 1.0}, r"light\.min_lr=1.0 is above light\.lr="),
        ({"epochs": 2, "warmup_epochs": 2.0}, r"light\.warmup_epochs=2.0 must be below light\.epochs=2"),
        ({"img_size": 0}, r"light\.img_size=0 must be at least 1"),
    ],
)
def test_training_that_cannot_be_meant(options, message):
    LightConfig().check()
    with pytest.raises(UserError, match=message):
        replace(LightConfig(), **options).check()


def test_no_clipping_is_meant():
    replace(LightConfig(), clip=None).check()
