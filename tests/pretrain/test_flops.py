"""The closed forms against torch's flop counter, and against the published parameter counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.flops import Flops, StackSize, model_flops, model_size, swiglu_block_weights
from pretrain.models.attention import choose_fused_attention
from pretrain.models.decoder import DecoderConfig
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.objectives import aimv2
from pretrain.objectives.aimv2 import AIMv2Config, AIMv2Objective
from pretrain.objectives.losses import dense_vocabulary_loss_sum

PUBLISHED_DECODER = DecoderConfig(embed_dim=1024, depth=12, num_heads=8)


def unfused(module):
    # torch's counter sees no fused attention on a CPU
    choose_fused_attention(module, device_type="cpu", dtype=torch.bfloat16)
    return module


@pytest.mark.parametrize("options", [{}, {"separate_decoders": True}, {"image_weight": 0.0}, {"text_weight": 0.0}])
def test_a_step_of_the_objective(tiny, make_batch, monkeypatch, options):
    # the blocked loss multiplies in place, which the counter does not see
    monkeypatch.setattr(aimv2, "vocabulary_loss_sum", dense_vocabulary_loss_sum)
    encoder, objective = tiny(path=torch.bfloat16, **options)
    batch = make_batch((3, 8, 1, 5))
    counter = FlopCounterMode(display=False)
    with counter:
        terms = objective(encoder, batch)
        forward = counter.get_total_flops()
        sum(term.total for term in terms.values()).backward()
    predicted = int(terms["image_mse"].count) if "image_mse" in terms else 0
    size = model_size(encoder, objective.decoder, pixel_decoder=objective.pixel_decoder)
    flops = model_flops(
        size, samples=4, text_len=8, valid_tokens=17, predicted_patches=predicted, attention="dense"
    )  # fmt: skip
    assert forward == pytest.approx(flops.forward, rel=1e-6)
    assert counter.get_total_flops() == pytest.approx(flops.training, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "encoder_m", "width", "hidden"),  # reference, section 1
    [
        ("large", 309.2, 1024, 2816),
        ("huge", 680.9, 1536, 4096),
        ("1b", 1235.0, 2048, 5632),
        ("3b", 2720.7, 3072, 8192),
    ],
)
def test_published_sizes(name, encoder_m, width, hidden):
    """On the meta device, where nothing is allocated, with the heads on as many positions as have a target."""
    with torch.device("meta"):
        encoder = unfused(build_encoder(EncoderConfig(f"aimv2_{name}_patch14_224")))
        objective = unfused(AIMv2Objective(AIMv2Config(decoder=PUBLISHED_DECODER), encoder=encoder, vocab_size=32_000))
        image, text = torch.empty(1, 3, 224, 224), torch.empty(1, 77, dtype=torch.long)

    def millions(module):
        return sum(parameter.numel() for parameter in module.parameters()) / 1e6

    assert millions(encoder) == pytest.approx(encoder_m, abs=0.05)
    assert 221 <= millions(objective) <= 224
    decoder = objective.decoder
    counter = FlopCounterMode(display=False)
    with counter:
        hidden_BSD = decoder(encoder.forward_features(image), text)
        loss = decoder.text_head(hidden_BSD[:, 256:]).sum() + decoder.pixel_head(hidden_BSD[:, :128]).sum()
        forward = counter.get_total_flops()
        loss.backward()
    counts = {"text_len": 77, "valid_tokens": 77, "predicted_patches": 128}
    flops = model_flops(model_size(encoder, decoder), attention="dense", **counts)
    assert forward == pytest.approx(flops.forward, rel=1e-6)
    assert counter.get_total_flops() == pytest.approx(flops.training, rel=1e-6)
    # the same in numbers alone, for the decoder's causal half
    blocks = 24 * (2 * 256 * (4 * width**2 + 3 * width * hidden) + 4 * 256**2 * width)
    decoder_blocks = 12 * (2 * 333 * (4 * 1024**2 + 3 * 1024 * 2816) + 4 * (333 * 334 // 2) * 1024)
    heads = 2 * 1024 * (77 * 32_000 + 128 * 588)
    needed = model_flops(model_size(encoder, decoder), attention="causal", **counts)
    assert needed.forward == 2 * 256 * 588 * width + blocks + 2 * 256 * width * 1024 + decoder_blocks + heads


def test_by_hand():
    # one block, 2 wide, 3 inside: 4 * 4 + 3 * 6 = 34 weights; 5 tokens: 2 * 5 * 34; 25 pairs: 4 * 25 * 2
    weights = swiglu_block_weights(2, 3)
    assert weights == 34
    assert StackSize(2, 1, weights).forward_flops(tokens=5, pairs=25) == 340 + 200
    flops = Flops(patchifier=1, encoder=10, decoder=100, text_head=1000, pixel_head=10_000)
    assert flops.forward == 11_111
    assert flops.training == 3 * 11_110 + 2, "the patchifier's backward is its weights' gradient alone"


def test_sizes_of_another_vit():
    # GELU blocks have two matrices: 4 D^2 + 2 D F
    with torch.device("meta"):
        encoder = build_encoder(EncoderConfig("vit_small_patch16_224"))
        objective = AIMv2Objective(AIMv2Config(decoder=PUBLISHED_DECODER), encoder=encoder, vocab_size=100)
    size = model_size(encoder, objective.decoder)
    assert size.encoder == StackSize(384, 12, 4 * 384**2 + 2 * 384 * 1536)
    assert size.decoder == StackSize(1024, 12, swiglu_block_weights(1024, 2816))
    assert (size.num_patches, size.patch_pixels, size.vocab_size) == (196, 768, 100)


def test_the_causal_half_and_what_it_leaves(tiny):
    encoder, objective = tiny()
    size = model_size(encoder, objective.decoder)
    counts = {"text_len": 8, "valid_tokens": 10, "predicted_patches": 30, "samples": 4}
    dense, causal = (model_flops(size, attention=attention, **counts) for attention in ("dense", "causal"))
    pairs = 4 * (24**2 - 24 * 25 // 2)
    assert dense.decoder - causal.decoder == 2 * 4 * pairs * 24  # 2 blocks, 24 wide
    assert dense.encoder == causal.encoder
