"""CapPa: some captions are predicted in parallel, from masks alone."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pretrain.types import UserError

NUM_PATCHES = 16


def losses_of_tokens(encoder, objective, batch, masked_B):
    """Cross-entropy of each token under full attention, restated: embed, append to the image tokens, run the blocks, read out."""
    decoder = objective.decoder
    image_BND = decoder.image_proj(encoder.forward_features(batch.image_BCHW))
    rows = []
    for row, masked in enumerate(masked_B):
        tokens = batch.text_BL[row : row + 1]
        if masked:
            inputs = decoder.mask_token.expand(1, tokens.shape[1], -1)
        else:
            inputs = torch.cat([decoder.bos, decoder.token_embed(tokens[:, :-1])], dim=1)
        x = torch.cat([image_BND[row : row + 1], inputs + decoder.pos_embed[:, : tokens.shape[1]]], dim=1)
        for block in decoder.blocks:
            x = block(x)[0]
        rows.append(F.cross_entropy(decoder.text_head(decoder.norm(x))[0, NUM_PATCHES:], tokens[0], reduction="none"))
    return torch.stack(rows)


def test_equals_a_restatement(tiny, make_batch):
    encoder, objective = tiny(image_weight=0.0, parallel=0.75)
    batch = make_batch((3, 8, 2, 5))
    for parallel, name in ((False, "text_ce"), (True, "text_ce_parallel")):
        expected = losses_of_tokens(encoder, objective, batch, [parallel] * 4)[batch.text_valid_BL].sum()
        term = objective.validation_terms(encoder, batch)[name]
        torch.testing.assert_close(term.total, expected, atol=1e-4, rtol=1e-5)
        assert term.count == 18


def test_a_step_mixes_both_kinds_by_seed_and_position(tiny, make_batch):
    encoder, objective = tiny(image_weight=0.0, parallel=0.5)
    objective.config = replace(objective.config, prefix=replace(objective.config.prefix, kind="bidirectional"))
    batch = make_batch((3,) * 8)
    masked_B = objective._masked(batch, parallel=None)
    assert 0 < masked_B.sum() < 8
    expected = losses_of_tokens(encoder, objective, batch, masked_B.tolist())[batch.text_valid_BL].sum()
    torch.testing.assert_close(objective(encoder, batch)["text_ce"].total, expected, atol=1e-4, rtol=1e-5)


def test_the_share_is_the_configured_one_and_each_sample_has_its_own_draw(tiny, make_batch):
    _, objective = tiny(image_weight=0.0, parallel=0.75)
    batch = make_batch((1,))
    batch.position_B = torch.arange(20_000)
    masked_B = objective._masked(batch, parallel=None)
    assert masked_B.float().mean().item() == pytest.approx(0.75, abs=0.01)  # three deviations of 20,000 draws
    batch.position_B = torch.arange(20_000).flip(0)
    assert torch.equal(objective._masked(batch, parallel=None).flip(0), masked_B)
    batch.seed = 8
    assert not torch.equal(objective._masked(batch, parallel=None).flip(0), masked_B)


def test_in_parallel_no_word_helps_with_another(tiny, make_batch):
    encoder, objective = tiny(image_weight=0.0, parallel=0.75)
    batch, other = make_batch((8,)), make_batch((8,))
    other.text_BL[0, 2] = 3 + (batch.text_BL[0, 2] == 3)
    for masked, same in ((True, True), (False, False)):
        masked_B = torch.tensor([masked])
        image_BNE = encoder.forward_features(batch.image_BCHW)
        hidden = [objective.decoder(image_BNE, b.text_BL, masked_B) for b in (batch, other)]
        assert torch.equal(*hidden) == same


def test_weights_of_validation_are_the_shares(tiny):
    _, objective = tiny(image_weight=0.0, parallel=0.75)
    assert objective.validation_weights() == {"text_ce": 0.25, "text_ce_parallel": 0.75}


def test_without_parallel_there_is_no_mask_token(tiny):
    _, objective = tiny(image_weight=0.0)
    assert objective.decoder.mask_token is None
    assert not [name for name, _ in objective.named_parameters() if "mask" in name]


@pytest.mark.parametrize(
    ("options", "message"),
    [(dict(parallel=0.5), "objective.image_weight=0"), (dict(parallel=1.5, image_weight=0.0), "parallel=1.5")],
)
def test_bad_shares(tiny, options, message):
    with pytest.raises(UserError, match=message):
        tiny(**options)
