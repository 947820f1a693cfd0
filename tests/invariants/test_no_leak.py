"""Nothing in front of a patch may see it, unless both lie in the prefix."""

import pytest
import torch

from pretrain.models.attention import PrefixConfig, draw_prefix_len, predicted_patches, prefix_attention
from pretrain.models.vision import EncoderConfig, build_encoder, leaks, num_patches
from pretrain.objectives.losses import patchify, unpatchify
from pretrain.types import UserError


def change_patch(image, patch, size):
    patches = patchify(image, patch_size=size)
    patches[:, patch] += 1.0
    return unpatchify(patches, patch_size=size, img_size=image.shape[-1])


# class token; class and register tokens; attention pooling; a layer norm in front of the blocks
OTHER_VITS = {
    "vit_tiny_patch16_224": dict(img_size=64),
    "vit_small_patch14_reg4_dinov2": dict(img_size=56, depth=2),
    "vit_base_patch16_siglip_224": dict(img_size=64, depth=2),
    "vit_base_patch16_clip_224": dict(img_size=64, depth=2),
}


@pytest.mark.parametrize("name", ["aimv2_nano_patch4_32", *OTHER_VITS])
def test_encoder_does_not_leak(name):
    torch.manual_seed(0)
    config = EncoderConfig(name, **OTHER_VITS.get(name, {}))
    encoder = build_encoder(config).eval()
    total, size = num_patches(encoder), encoder.patch_embed.patch_size[0]
    prefix = total // 3
    attend = prefix_attention(torch.tensor([prefix]), num_patches=total)
    image = torch.randn(1, 3, config.image_spec().img_size, config.image_spec().img_size)
    with torch.no_grad():
        before = encoder.forward_features(image, attn_mask=attend)
        for patch in (prefix, total // 2, total - 1):
            after = encoder.forward_features(change_patch(image, patch, size), attn_mask=attend)
            assert torch.equal(before[:, :patch], after[:, :patch])
            assert (before[:, patch:] != after[:, patch:]).any(-1).all(), "what stands behind must change"
        inside = encoder.forward_features(change_patch(image, prefix - 1, size), attn_mask=attend)
        assert (before[:, : prefix - 1] != inside[:, : prefix - 1]).any(-1).all(), "the prefix sees itself fully"


def test_leak_probe_tells_a_leaking_encoder():
    encoder = build_encoder(EncoderConfig())
    assert not leaks(encoder, img_size=32, prefix_len=20)
    encoder.norm = torch.nn.GroupNorm(1, 64)  # normalises over all patches
    assert leaks(encoder, img_size=32, prefix_len=20)


def test_predictions_do_not_see_their_targets(tiny, make_batch, attention_path):
    """Reference, section 2: for k > M, changing patch k leaves the predictions for targets <= k bit-identical."""
    encoder, objective = tiny(path=attention_path)
    image, prefix = make_batch().image_BCHW, 5
    before = objective.predict_patches(encoder, image, prefix_len=prefix)  # row j predicts patch j + 1
    for patch in range(prefix, 16):
        after = objective.predict_patches(encoder, change_patch(image, patch, 4), prefix_len=prefix)
        assert torch.equal(before[:, :patch], after[:, :patch])
        if patch < 15:
            assert (before[:, patch:] != after[:, patch:]).any(-1).all()


def test_caption_predictions_see_only_earlier_tokens(tiny, make_batch):
    encoder, objective = tiny()
    batch = make_batch((8, 8))
    image_BNE = encoder.forward_features(batch.image_BCHW)
    before = objective.decoder(image_BNE, batch.text_BL)
    changed = batch.text_BL.clone()
    changed[:, 4] += 1
    after = objective.decoder(image_BNE, changed)
    assert torch.equal(before[:, : 16 + 5], after[:, : 16 + 5])  # position 16 + l predicts token l from tokens < l
    assert (before[:, 16 + 5 :] != after[:, 16 + 5 :]).any(-1).all()


def test_mask_by_hand():
    # N = 4, M = 2: rows are queries
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    attend = prefix_attention(torch.tensor([2, 1, 4]), num_patches=4)
    assert attend.shape == (3, 1, 4, 4)
    assert attend[0, 0].int().tolist() == expected
    assert torch.equal(attend[1, 0], torch.ones(4, 4).tril().bool()), "M = 1 is causal"
    assert attend[2].all(), "M = N is full"
    loss = predicted_patches(torch.tensor([2, 1, 4]), num_patches=4)
    assert loss.int().tolist() == [[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]


def test_prefix_is_uniform_on_1_to_n_minus_1():
    drawn = draw_prefix_len(PrefixConfig(), seed=3, position_B=torch.arange(63_000), num_patches=64)
    counts = torch.bincount(drawn, minlength=65)
    assert counts[0] == counts[64] == 0
    # 63 values, 1000 expected each: a chi-square with 62 degrees of freedom stays below 110 (p = 0.0002)
    assert ((counts[1:64] - 1000) ** 2 / 1000).sum() < 110


def test_prefix_kinds():
    positions = torch.arange(200)

    def draw(**kwargs):
        return draw_prefix_len(PrefixConfig(**kwargs), seed=0, position_B=positions, num_patches=16)

    assert (draw(kind="causal") == 1).all()
    assert (draw(kind="bidirectional") == 16).all()
    assert (draw(kind="fixed", length=5) == 5).all()
    assert set(draw(kind="range", low=3, high=6).tolist()) == {3, 4, 5, 6}


@pytest.mark.parametrize(
    ("kwargs", "field"),
    [
        (dict(kind="fixed"), "prefix.length"),
        (dict(kind="fixed", length=16), "1..15"),
        (dict(kind="uniform", length=3), "prefix.length"),
        (dict(kind="range", low=9, high=4), "prefix.low=9"),
    ],
)
def test_bad_prefix_is_refused(kwargs, field):
    with pytest.raises(UserError, match=field):
        PrefixConfig(**kwargs).bounds(16)
