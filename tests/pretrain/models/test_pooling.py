"""Attention pooling: one query over all tokens, whatever their order, outside of the encoder."""

import pytest
import torch

from pretrain.models.attention import choose_fused_attention
from pretrain.models.pooling import AttentionPooling
from pretrain.models.vision import EncoderConfig, build_encoder


@pytest.fixture
def pooling():
    def build(path=torch.float32):
        torch.manual_seed(0)
        built = AttentionPooling(24, num_heads=3, out_dim=10)
        choose_fused_attention(built, device_type="cpu", dtype=path)
        return built

    return build


def test_equals_a_restatement(pooling, attention_path):
    pool, tokens_BNE = pooling(attention_path), torch.randn(2, 7, 24)
    weights = pool.state_dict()
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "attend.latent": (1, 1, 24),
        "attend.kv.weight": (48, 24),
        "proj.weight": (10, 24),
    }
    query, (to_keys, to_values) = weights["attend.latent"][0, 0], weights["attend.kv.weight"].chunk(2)
    for tokens_NE, found in zip(tokens_BNE, pool(tokens_BNE), strict=True):
        pooled = []
        for head in range(3):
            own = slice(8 * head, 8 * head + 8)
            share_N = (tokens_NE @ to_keys[own].T @ query[own] / 8**0.5).softmax(0)
            pooled.append(share_N @ (tokens_NE @ to_values[own].T))
        torch.testing.assert_close(found, torch.cat(pooled) @ weights["proj.weight"].T, atol=1e-5, rtol=1e-5)


def test_order_of_tokens_does_not_count_and_each_token_does(pooling, attention_path):
    pool, tokens_BNE = pooling(attention_path), torch.randn(2, 7, 24)
    plain = pool(tokens_BNE)
    torch.testing.assert_close(pool(tokens_BNE[:, torch.randperm(7)]), plain, atol=1e-6, rtol=1e-5)
    for number in range(7):
        changed = tokens_BNE.clone()
        changed[:, number] += 1.0
        assert ((pool(changed) - plain).abs().amax(-1) > 1e-4).all(), number


def test_first_weights():
    torch.manual_seed(0)
    weights = AttentionPooling(256, num_heads=4, out_dim=512).state_dict()
    # xavier uniform: within sqrt(6 / (in + out)); the projection and the query N(0, 1 / E)
    assert float(weights["attend.kv.weight"].abs().max()) == pytest.approx((6 / (256 + 512)) ** 0.5, rel=0.01)
    assert float(weights["proj.weight"].std()) == pytest.approx(1 / 16, rel=0.02)
    assert float(weights["attend.latent"].std()) == pytest.approx(1 / 16, rel=0.15)


def test_it_is_no_part_of_the_encoder(tiny_contrastive):
    encoder, objective = tiny_contrastive()
    plain = build_encoder(EncoderConfig(embed_dim=32, depth=2, num_heads=4, mlp_hidden_dim=64, img_size=16))
    assert list(encoder.state_dict()) == list(plain.state_dict())
    assert sorted(name for name in objective.state_dict() if name.startswith("pool.")) == [
        "pool.attend.kv.weight",
        "pool.attend.latent",
        "pool.proj.weight",
    ]
    owned = {id(parameter) for parameter in objective.parameters()}
    assert not owned & {id(parameter) for parameter in encoder.parameters()}
