"""Encoders as backbones: windows against full attention, positions, drop path, checkpointing, and the checks before training.

Shape letters as in evals/detection/backbone.py.
"""

import pytest
import torch
from timm.models import VisionTransformer

from evals.detection.backbone import (
    BackboneConfig,
    EncoderBackbone,
    PictureDropPath,
    Windows,
    check_backbone,
    global_blocks,
)
from evals.encoder import BlockEncoder, Features, Provenance, TokenEncoder
from evals.transforms import ImageTransform
from pretrain.types import ImageSpec, UserError

SPEC = ImageSpec(img_size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
ABOUT = Provenance("tiny", "tiny")


def build(*, class_token: bool = False, depth: int = 4, seed: int = 0) -> BlockEncoder:
    torch.manual_seed(seed)
    vit = VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=depth,
        num_heads=2,
        num_classes=0,
        class_token=class_token,
        global_pool="token" if class_token else "avg",
        fc_norm=False,
        weight_init="",
    )
    torch.nn.init.normal_(vit.pos_embed, std=0.5)
    return BlockEncoder(vit, transform=ImageTransform(SPEC), provenance=ABOUT)


def pictures(height: int, width: int, *, num: int = 2) -> torch.Tensor:
    return torch.randn(num, 3, height, width, generator=torch.Generator().manual_seed(3))


class Other(TokenEncoder):
    """A family whose blocks cannot be reached: one convolution, pictures of 16 pixels only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 4, 4)
        self.provenance, self.transform, self.embed_dim = Provenance("other", "other"), ImageTransform(SPEC), 8

    def forward(self, image_BCHW):
        tokens_BND = self.conv(image_BCHW).flatten(2).transpose(1, 2)
        return Features(tokens_BND, tokens_BND[:, :0])

    def grid(self, height, width):
        if (height, width) != (16, 16):
            raise UserError("other takes pictures of 16 pixels only")
        return 4, 4


@pytest.mark.parametrize(
    ("depth", "num", "wanted"),
    [(24, 4, {5, 11, 17, 23}), (12, 4, {2, 5, 8, 11}), (6, 4, {0, 2, 3, 5}), (2, 4, {0, 1}), (6, 0, set())],
)
def test_global_blocks(depth, num, wanted):
    """24 and 12: ViTDet's own (detectron2's configs)."""
    assert global_blocks(depth, num) == wanted


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("window", [0, 2, 16])
def test_equals_the_encoder_at_its_own_size(class_token, window):
    encoder = build(class_token=class_token)
    image_BCHW = pictures(16, 16)
    wanted_BND = encoder(image_BCHW).tokens_BND
    backbone = EncoderBackbone(encoder, BackboneConfig(window=window)).eval()
    backbone.windowed = False
    (map_BDhw,) = backbone(image_BCHW)
    assert map_BDhw.shape == (2, 16, 4, 4)
    assert torch.allclose(map_BDhw.flatten(2).transpose(1, 2), wanted_BND, atol=1e-6)


def test_resampled_positions_equal_timms():
    encoder = build()
    image_BCHW = pictures(24, 40)
    wanted_BND = encoder(image_BCHW).tokens_BND
    (map_BDhw,) = EncoderBackbone(encoder, BackboneConfig(window=0)).eval()(image_BCHW)
    assert map_BDhw.shape == (2, 16, 6, 10)
    assert torch.allclose(map_BDhw.flatten(2).transpose(1, 2), wanted_BND, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(6, 10), (5, 7), (4, 4), (1, 9)])
@pytest.mark.parametrize("num_prefix", [0, 2])
def test_windows_split_and_join(rows, columns, num_prefix):
    windows = Windows(rows, columns, side=4, num_prefix=num_prefix)
    tokens = torch.randn(3, num_prefix + rows * columns, 5)
    split = windows.split(tokens)
    assert split.shape == (3 * windows.num, num_prefix + 16, 5)
    assert torch.allclose(windows.join(split), tokens)


def test_a_window_holds_its_own_square():
    # patch (r, c) of picture b has the value 100 b + 10 r + c; windows of 2 over 2 x 4: the second holds columns 2 and 3
    rows, columns = torch.arange(2)[:, None], torch.arange(4)[None]
    values = torch.stack([100 * b + 10 * rows + columns for b in range(2)]).flatten(1)[..., None].float()
    split = Windows(2, 4, side=2, num_prefix=0).split(values)
    assert split[..., 0].tolist() == [[0, 1, 10, 11], [2, 3, 12, 13], [100, 101, 110, 111], [102, 103, 112, 113]]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("class_token", [False, True])
def test_one_window_over_the_picture_is_full_attention(fused, class_token):
    """A window larger than the map is padded: padding must not be attended to."""
    encoder = build(class_token=class_token).eval()
    vit = encoder.vit
    for block in vit.blocks:
        block.attn.fused_attn = fused
    windows = Windows(3, 4, side=5, num_prefix=vit.num_prefix_tokens)
    tokens = torch.randn(2, vit.num_prefix_tokens + 12, 16)
    mask = windows.attend(2, vit.blocks[0], tokens.device)
    assert mask.shape == (2, 1, 1, vit.num_prefix_tokens + 25)
    found = windows.join(vit.blocks[0](windows.split(tokens), mask))
    assert torch.allclose(found, vit.blocks[0](tokens), atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_a_windowed_block_sees_its_window_only(fused):
    """Without global blocks a change in one window changes nothing in the others; with one, it does."""
    encoder = build()
    for block in encoder.vit.blocks:
        block.attn.fused_attn = fused
    image_BCHW = pictures(24, 24, num=1)
    changed = image_BCHW.clone()
    changed[..., :4, :4] += 1.0  # the first patch: in the window of rows and columns 0..3 of 6 x 6
    for num_global, others_change in ((0, False), (1, True)):
        backbone = EncoderBackbone(encoder, BackboneConfig(window=4, num_global=num_global)).eval()
        difference = (backbone(image_BCHW)[0] - backbone(changed)[0]).abs().amax(1)[0]
        assert difference[:4, :4].min() > 1e-6
        assert (difference[4:].max() > 1e-6) == others_change


@pytest.mark.parametrize(
    ("height", "width", "shape"), [(16, 16, (4, 4)), (17, 22, (5, 6)), (30, 15, (8, 4)), (33, 64, (9, 16))]
)
def test_sizes_that_no_patch_divides(height, width, shape):
    backbone = EncoderBackbone(build(), BackboneConfig(window=2)).eval()
    (map_BDhw,) = backbone(pictures(height, width))
    assert tuple(map_BDhw.shape[-2:]) == shape == backbone.grid(height, width)
    assert backbone.stride == 4


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        encoder = build()
        config = BackboneConfig(window=2, num_global=2, drop_path=0.5, checkpointing=checkpointing)
        backbone = EncoderBackbone(encoder, config)
        torch.manual_seed(5)
        backbone(pictures(24, 24))[0].square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*gradients))


def test_checkpointing_recomputes_blocks():
    calls = []
    backbone = EncoderBackbone(build(depth=2), BackboneConfig(window=0, checkpointing=True))
    for number, block in enumerate(backbone.encoder.vit.blocks):
        block.attn.register_forward_hook(lambda *_, number=number: calls.append(number))
    backbone(pictures(16, 16))[0].sum().backward()
    assert sorted(calls) == [0, 0, 1, 1]


def test_drop_path_drops_whole_pictures():
    layer = PictureDropPath(0.5)
    layer.num_windows = 3
    torch.manual_seed(0)
    kept = layer(torch.ones(60, 2, 2))
    per_picture = kept.reshape(20, 3, 4)
    assert torch.equal(per_picture, per_picture[:, :1, :1].expand_as(per_picture))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(layer.eval()(kept), kept)


def test_drop_path_rises_with_depth():
    backbone = EncoderBackbone(build(depth=3), BackboneConfig(drop_path=0.2))
    rates = [[m.drop_prob for m in b.modules() if isinstance(m, PictureDropPath)] for b in backbone.encoder.vit.blocks]
    assert rates == [[], pytest.approx([0.1, 0.1]), pytest.approx([0.2, 0.2])]


def test_frozen():
    backbone = EncoderBackbone(build(), BackboneConfig(frozen=True))
    backbone.train()
    assert not backbone.encoder.training
    (map_BDhw,) = backbone(pictures(16, 16))
    assert not map_BDhw.requires_grad
    assert not any(p.requires_grad for p in backbone.encoder.parameters())


def test_another_family_runs_as_it_is():
    encoder = Other()
    backbone = EncoderBackbone(encoder, BackboneConfig()).eval()
    image_BCHW = pictures(16, 16)
    wanted = encoder(image_BCHW).tokens_BND.transpose(1, 2).unflatten(2, (4, 4))
    assert torch.equal(backbone(image_BCHW)[0], wanted)
    assert check_backbone(backbone, lambda image: encoder(image).tokens_BND, fingerprint=encoder.fingerprint()) == 0


@pytest.mark.parametrize("wrong", [{"drop_path": 0.1}, {"checkpointing": True}])
def test_another_family_has_no_blocks_to_reach(wrong):
    with pytest.raises(UserError, match="encoder 'other': its blocks cannot be reached"):
        EncoderBackbone(Other(), BackboneConfig(**wrong))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": -1}, "window=-1"),
        ({"drop_path": 1.0}, "drop_path=1.0 must be at least 0 and below 1"),
        ({"frozen": True, "drop_path": 0.1}, "a frozen encoder has none"),
    ],
)
def test_settings_that_cannot_be_meant(values, message):
    with pytest.raises(UserError, match=message):
        EncoderBackbone(build(), BackboneConfig(**values))


def test_check_accepts_what_is_right():
    encoder = build(class_token=True)
    fingerprint = encoder.fingerprint()
    backbone = EncoderBackbone(encoder, BackboneConfig(window=2, drop_path=0.3))
    assert check_backbone(backbone, lambda image: encoder(image).tokens_BND, fingerprint=fingerprint) < 1e-5
    assert backbone.windowed
    assert backbone.training


def test_check_finds_weights_that_were_not_loaded():
    encoder = build()
    fingerprint = encoder.fingerprint()
    backbone = EncoderBackbone(encoder, BackboneConfig())
    with torch.no_grad():
        encoder.vit.blocks[1].mlp.fc1.bias[0] += 1e-3
    with pytest.raises(UserError, match="the backbone's weights are not those that were loaded"):
        check_backbone(backbone, lambda image: encoder(image).tokens_BND, fingerprint=fingerprint)


def test_check_finds_other_features():
    encoder, other = build(), build()
    with torch.no_grad():
        other.vit.pos_embed[..., 0] += 0.1
    backbone = EncoderBackbone(encoder, BackboneConfig())
    with pytest.raises(UserError, match="features differ from the encoder's by"):
        check_backbone(backbone, lambda image: other(image).tokens_BND, fingerprint=encoder.fingerprint())
