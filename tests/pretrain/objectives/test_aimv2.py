import pytest
import torch

from pretrain.models.attention import PrefixConfig
from pretrain.models.decoder import DecoderConfig
from pretrain.models.vision import EncoderConfig
from pretrain.objectives.losses import normalise_patches, patchify
from pretrain.types import UserError


def mean_loss(terms):
    return sum(term.weight * term.total / term.count.clamp(min=1) for term in terms.values())


def gradients(encoder, objective, batch):
    terms = objective(encoder, batch)
    parameters = [*encoder.parameters(), *objective.parameters()]
    return mean_loss(terms), torch.autograd.grad(mean_loss(terms), parameters)


def test_padding_changes_nothing(tiny, make_batch):
    encoder, objective = tiny()
    short, long = make_batch((3, 8, 1, 5)), make_batch((3, 8, 1, 5))
    long.text_BL = torch.nn.functional.pad(long.text_BL, (0, 16), value=9)  # other pad ids, too
    long.text_valid_BL = torch.nn.functional.pad(long.text_valid_BL, (0, 16))
    (loss, grads), (padded_loss, padded_grads) = (gradients(encoder, objective, b) for b in (short, long))
    torch.testing.assert_close(loss, padded_loss, atol=1e-6, rtol=1e-6)
    for a, b in zip(grads, padded_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def rows(batch, chosen):
    parts = {name: getattr(batch, name)[chosen] for name in ("image_BCHW", "text_BL", "text_valid_BL", "position_B")}
    return type(batch)(**parts, seed=batch.seed, keys=[], captions=[])


@pytest.mark.parametrize("split", [([0, 1], [2, 3]), ([3], [0, 1, 2]), ([2, 0, 3], [1])])
def test_sums_do_not_depend_on_the_split(tiny, make_batch, split):
    encoder, objective = tiny()
    batch = make_batch((3, 8, 1, 5))
    whole = objective(encoder, batch)
    parts = [objective(encoder, rows(batch, chosen)) for chosen in split]
    for name, term in whole.items():
        torch.testing.assert_close(term.total, sum(part[name].total for part in parts), atol=1e-4, rtol=1e-5)
        assert term.count == sum(part[name].count for part in parts)


def test_shift_alignment_by_an_oracle(tiny, make_batch):
    """A decoder that copies the next target reaches loss 0, and only at the right offset."""
    encoder, objective = tiny(prefix=PrefixConfig(kind="fixed", length=4))
    batch = make_batch((3, 8, 1, 5))
    target_BNP = normalise_patches(patchify(batch.image_BCHW, patch_size=4))
    width = 48 + 29  # patch pixels, then one-hot tokens
    objective.decoder.pixel_head.weight = torch.nn.Parameter(torch.eye(48, width))
    objective.decoder.text_head.weight = torch.nn.Parameter(100 * torch.eye(29, width).roll(48, 1))

    def oracle(offset):
        def forward(image_BNE, text_BL=None, masked_B=None):
            hidden = torch.zeros(4, 16 + text_BL.shape[1], width)
            hidden[:, :16, :48] = target_BNP.roll(-offset, dims=1)
            hidden[:, 16:, 48:] = torch.nn.functional.one_hot(text_BL.roll(1 - offset, dims=1), 29)
            return hidden

        return forward

    losses = {}
    for offset in (0, 1, 2):
        objective.decoder.forward = oracle(offset)
        terms = objective(encoder, batch)
        losses[offset] = {name: float(term.total / term.count) for name, term in terms.items()}
    assert losses[1] == {"text_ce": pytest.approx(0, abs=1e-6), "image_mse": pytest.approx(0, abs=1e-6)}
    assert all(loss > 0.5 for offset in (0, 2) for loss in losses[offset].values())


def test_counts_are_valid_tokens_and_predicted_patches(tiny, make_batch):
    encoder, objective = tiny(prefix=PrefixConfig(kind="fixed", length=5))
    terms = objective(encoder, make_batch((3, 8, 1, 5)))
    assert terms["text_ce"].count == 3 + 8 + 1 + 5
    assert terms["image_mse"].count == 4 * (16 - 5)
    assert (terms["text_ce"].weight, terms["image_mse"].weight) == (1.0, 0.4)


def test_no_captions_count_zero_and_still_reach_every_parameter(tiny, make_batch):
    """A rank whose pictures have no captions must give gradients, zeros, or the other ranks would wait for ever."""
    encoder, objective = tiny()
    terms = objective(encoder, make_batch((0, 0)))
    assert terms["text_ce"].count == 0
    assert terms["text_ce"].total == 0
    mean_loss(terms).backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
    assert objective.decoder.text_head.weight.grad.abs().max() == 0
    assert objective.decoder.image_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("lengths", [(1, 1), (5, 0)])
def test_validation_terms_are_finite(tiny, make_batch, lengths):
    encoder, objective = tiny()
    terms = objective.validation_terms(encoder, make_batch(lengths))
    assert set(terms) == {"text_ce", "image_mse_prefix25", "image_mse_prefix50", "image_mse_prefix75"}
    assert [int(terms[f"image_mse_prefix{share}"].count) for share in (25, 50, 75)] == [24, 16, 8]
    assert all(torch.isfinite(term.total) and term.total > 0 for term in terms.values())
    for prefix_len in (1, 16):  # the shortest prefix and full attention
        assert torch.isfinite(mean_loss(objective(encoder, make_batch(lengths), prefix_len=prefix_len)))
    assert objective(encoder, make_batch(lengths), prefix_len=16)["image_mse"].count == 0


def test_full_attention_equals_prefix_n(tiny, make_batch):
    encoder, _ = tiny()
    from pretrain.models.attention import prefix_attention

    image = make_batch().image_BCHW
    masked = encoder.forward_features(image, attn_mask=prefix_attention(torch.full((4,), 16), num_patches=16))
    torch.testing.assert_close(masked, encoder.forward_features(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "names", "absent"),
    [
        (dict(image_weight=0.0), {"text_ce"}, "pixel_head"),
        (dict(text_weight=0.0), {"image_mse"}, "text_head"),
        (dict(image_weight=0.0, prefix=PrefixConfig(kind="bidirectional")), {"text_ce"}, "pixel_head"),
        (dict(prefix=PrefixConfig(kind="causal")), {"text_ce", "image_mse"}, "nothing"),
    ],
)
def test_ablations_switch_terms_off(tiny, make_batch, options, names, absent):
    encoder, objective = tiny(**options)
    terms = objective(encoder, make_batch())
    assert set(terms) == names
    assert not any(absent in name for name, _ in objective.named_parameters())
    mean_loss(terms).backward()
    assert all(p.grad is not None for p in [*encoder.parameters(), *objective.parameters()]), (
        "an unused parameter hangs DDP"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image_weight=0.0, text_weight=0.0), "nothing is left"),
        (dict(image_weight=-1.0), "image_weight=-1"),
        (dict(prefix=PrefixConfig(kind="bidirectional")), "image_weight=0"),
        (dict(decoder=DecoderConfig(embed_dim=24, num_heads=5)), "num_heads=5"),
        (dict(decoder=DecoderConfig()), "exactly one of"),
        (dict(decoder=DecoderConfig(embed_dim=24, num_heads=2, ratio=0.5)), "exactly one of"),
        (dict(decoder=DecoderConfig(ratio=0.25, depth=1, head_dim=128)), "more than 10% off"),
    ],
)
def test_bad_options_are_one_clear_line(tiny, options, message):
    with pytest.raises(UserError, match=message):
        tiny(**options)


@pytest.mark.parametrize("ratio", [0.5, 0.25, 0.125])
def test_decoder_by_ratio(tiny, ratio):
    encoder, objective = tiny(
        EncoderConfig("aimv2_small_patch14_112"), decoder=DecoderConfig(ratio=ratio, depth=8, head_dim=16)
    )
    params = [sum(p.numel() for p in module.blocks.parameters()) for module in (objective.decoder, encoder)]
    assert params[0] / params[1] == pytest.approx(ratio, rel=0.1)
    assert len(objective.decoder.blocks) == 8
    attention = objective.decoder.blocks[0].attn
    assert attention.qkv.in_features == 16 * attention.num_heads


def test_published_decoder_parameters():
    # reference, section 1: 221-224 M with 32,000 words, 154 M of them in blocks
    from pretrain.models.decoder import Decoder

    for encoder_dim, total_m in ((1024, 221.4), (3072, 223.5)):
        with torch.device("meta"):
            decoder = Decoder(
                encoder_dim,
                embed_dim=1024,
                depth=12,
                num_heads=8,
                mlp_hidden_dim=2816,
                vocab_size=32_000,
                patch_pixels=588,
            )
        assert sum(p.numel() for p in decoder.blocks.parameters()) / 1e6 == pytest.approx(154.2, abs=0.1)
        assert sum(p.numel() for p in decoder.parameters()) / 1e6 == pytest.approx(total_m, abs=0.1)
