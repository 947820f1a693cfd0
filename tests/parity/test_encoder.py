"""The encoder's features equal timm's and Hugging Face's AIMv2 on the same random weights."""

import pytest
import timm
import torch
from transformers import Aimv2VisionConfig, Aimv2VisionModel

from pretrain.models.sizes import VISION_SIZES, swiglu_hidden_dim
from pretrain.models.vision import EncoderConfig, build_encoder, num_patches
from pretrain.types import UserError

SMALL = dict(embed_dim=64, depth=3, num_heads=2)


def randomise(model):
    """Norm weights too: at their initial ones, a norm left out would not show."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
        if parameter.ndim == 1:
            parameter.data += 1
    return model.eval()


def test_equals_timm():
    reference = timm.create_model("aimv2_large_patch14_224", img_size=56, num_classes=0, **SMALL)
    randomise(reference)
    ours = build_encoder(EncoderConfig("aimv2_large_patch14_224", img_size=56, **SMALL)).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    image = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(ours.forward_features(image), reference.forward_features(image), atol=1e-5, rtol=1e-5)


def test_equals_transformers():
    config = Aimv2VisionConfig(
        hidden_size=64, intermediate_size=176, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14,
        use_head=False, attn_implementation="eager",
    )  # fmt: skip
    reference = randomise(Aimv2VisionModel(config))
    theirs = reference.state_dict()
    ours = build_encoder(EncoderConfig("aimv2_large_patch14_224", img_size=56, mlp_hidden_dim=176, **SMALL)).eval()

    def one(name):
        return next(value for key, value in theirs.items() if key.removeprefix("vision_model.") == name)

    weights = {
        "pos_embed": one("embeddings.position_embedding.weight")[None],
        "patch_embed.proj.weight": one("embeddings.patch_embed.weight"),
        "patch_embed.proj.bias": one("embeddings.patch_embed.bias"),
        "patch_embed.norm.weight": one("embeddings.rms_norm.weight"),
        "norm.weight": one("rms_norm.weight"),
    }
    for i in range(3):
        layer, block = f"encoder.layers.{i}.", f"blocks.{i}."
        qkv = [one(f"{layer}attention.{part}_proj.weight") for part in "qkv"]
        weights |= {
            block + "attn.qkv.weight": torch.cat(qkv),
            block + "attn.proj.weight": one(layer + "attention.out_proj.weight"),
            block + "norm1.weight": one(layer + "rms_norm1.weight"),
            block + "norm2.weight": one(layer + "rms_norm2.weight"),
            block + "mlp.fc1_g.weight": one(layer + "ffn.gate_proj.weight"),
            block + "mlp.fc1_x.weight": one(layer + "ffn.up_proj.weight"),
            block + "mlp.fc2.weight": one(layer + "ffn.down_proj.weight"),
        }
    ours.load_state_dict(weights, strict=True)
    image = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.forward_features(image), reference(image).last_hidden_state, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    ("name", "params_m"), [("large", 309.2), ("huge", 680.9), ("1b", 1235.0), ("3b", 2720.7), ("base", 85.6)]
)
def test_published_sizes_have_the_published_parameters(name, params_m):
    # reference, section 1; on the meta device nothing is allocated
    with torch.device("meta"):
        encoder = timm.create_model(f"aimv2_{name}_patch14_224", num_classes=0)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(params_m, abs=0.05)


@pytest.mark.parametrize("name", VISION_SIZES)
def test_our_sizes_are_registered_with_timm(name):
    size = VISION_SIZES[name]
    encoder = build_encoder(EncoderConfig(name))
    assert timm.is_model(name)
    assert num_patches(encoder) == (size.img_size // size.patch_size) ** 2
    assert encoder.blocks[0].mlp.fc1_g.out_features == size.mlp_hidden_dim == swiglu_hidden_dim(size.embed_dim)
    assert (len(encoder.blocks), encoder.blocks[0].attn.num_heads) == (size.depth, size.num_heads)
    assert EncoderConfig(name).image_spec().img_size == size.img_size


def test_published_initialisation():
    encoder = build_encoder(EncoderConfig("aimv2_tiny_patch14_112"))
    fan_in, fan_out = 192, 3 * 192
    bound = (6 / (fan_in + fan_out)) ** 0.5
    weight = encoder.blocks[3].attn.qkv.weight
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)  # a uniform's deviation
    assert encoder.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert encoder.patch_embed.proj.bias.abs().max() == 0
    assert (encoder.norm.weight == 1).all()


def test_overrides_reach_the_model():
    encoder = build_encoder(EncoderConfig("aimv2_nano_patch4_32", depth=2, embed_dim=96, num_heads=3, patch_size=8))
    assert len(encoder.blocks) == 2
    assert encoder.embed_dim == 96
    assert encoder.blocks[0].attn.num_heads == 3
    assert num_patches(encoder) == 16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EncoderConfig("aimv2_nano_patch4"), "aimv2_nano_patch4_32"),
        (EncoderConfig("resnet50"), "ResNet"),
        (EncoderConfig("swin_tiny_patch4_window7_224"), "SwinTransformer"),
        (EncoderConfig("vit_small_r26_s32_224"), "patches"),
        (EncoderConfig(img_size=30), "multiple of the patch size 4"),
        (EncoderConfig(embed_dim=100, num_heads=3), "multiple of the 3 heads"),
    ],
)
def test_bad_encoder_is_one_clear_line(config, message):
    with pytest.raises(UserError, match=message) as error:
        build_encoder(config)
    assert "\n" not in str(error.value)
