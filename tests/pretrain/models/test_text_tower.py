"""The text tower: padding and later tokens change nothing, and a caption is its last valid token's state."""

import pytest
import torch
from torch.nn import functional as F

from pretrain.models.attention import choose_fused_attention
from pretrain.models.text_tower import TextTower


@pytest.fixture
def tower():
    def build(path=torch.float32, **options):
        torch.manual_seed(0)
        sizes = dict(embed_dim=24, depth=2, num_heads=2, mlp_hidden_dim=40, context_length=12)
        built = TextTower(30, **sizes | options).eval()
        choose_fused_attention(built, device_type="cpu", dtype=path)
        return built

    return build


def rows(*captions, length):
    """Ids and validity, padded with 0."""
    text_BL = torch.zeros(len(captions), length, dtype=torch.long)
    for row, ids in zip(text_BL, captions, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return text_BL, torch.arange(length) < torch.tensor([len(ids) for ids in captions])[:, None]


def restated(tower, ids):
    """One caption alone, from the weights, by plain products: the state of its last token."""

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    weights = tower.state_dict()
    length, heads = len(ids), tower.blocks[0].attn.num_heads
    x_LD = weights["token_embed.weight"][torch.tensor(ids)] + weights["pos_embed"][0, :length]
    later_LL = torch.arange(length)[None] > torch.arange(length)[:, None]
    for number in range(len(tower.blocks)):
        w = {name.split(".", 2)[2]: value for name, value in weights.items() if name.startswith(f"blocks.{number}.")}
        q, k, v = (norm(x_LD, w["norm1.weight"]) @ w["attn.qkv.weight"].T).chunk(3, dim=-1)
        outputs = []
        for q_h, k_h, v_h in zip(*(part.chunk(heads, dim=-1) for part in (q, k, v)), strict=True):
            scores = q_h @ k_h.T / q_h.shape[-1] ** 0.5
            outputs.append(scores.masked_fill(later_LL, float("-inf")).softmax(-1) @ v_h)
        x_LD = x_LD + torch.cat(outputs, dim=-1) @ w["attn.proj.weight"].T
        inner = norm(x_LD, w["norm2.weight"])
        gated = F.silu(inner @ w["mlp.fc1_g.weight"].T) * (inner @ w["mlp.fc1_x.weight"].T)
        x_LD = x_LD + gated @ w["mlp.fc2.weight"].T
    return norm(x_LD, weights["norm.weight"])[-1]


def test_captions_equal_a_restatement(tower, attention_path):
    built, captions = tower(attention_path), ([7, 3, 9, 1], [5, 1], [1], [8, 2, 2, 6, 4, 1])
    found = built(*rows(*captions, length=8))
    torch.testing.assert_close(found, torch.stack([restated(built, ids) for ids in captions]), atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing(tower, attention_path):
    built, captions = tower(attention_path), ([7, 3, 9, 1], [5, 1])
    short, long = (rows(*captions, length=length) for length in (4, 12))
    long[0][~long[1]] = 17  # whatever stands there
    torch.testing.assert_close(built(*short), built(*long), atol=1e-6, rtol=1e-6)
    # a caption alone, without its longer neighbour
    torch.testing.assert_close(built(*rows([5, 1], length=2))[0], built(*short)[1], atol=1e-6, rtol=1e-6)


def test_later_tokens_are_not_seen_and_earlier_ones_are(tower, attention_path):
    built = tower(attention_path)
    text_BL, valid_BL = rows([7, 3, 9, 4, 5, 1], [7, 3, 9, 4, 5, 1], length=6)
    valid_BL[:, 3:] = False  # the caption ends at its third token
    text_BL[1, 3:] = torch.tensor([22, 23, 24])
    one, other = built(text_BL, valid_BL)
    assert torch.equal(one, other)
    text_BL[1, 0] = 8
    one, other = built(text_BL, valid_BL)
    assert (one - other).abs().max() > 1e-3


def test_pooled_at_the_last_valid_token_not_at_the_largest_id(tower):
    built = tower()
    # the largest id, 29, stands in the middle and once more in the padding; EOS is 1
    text_BL, valid_BL = rows([7, 29, 9, 1], length=6)
    text_BL[0, 5] = 29
    states = []
    handle = built.norm.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    last = []
    block = built.blocks[-1].register_forward_hook(lambda _, inputs, output: last.append(output[0]))
    built(text_BL, valid_BL)
    handle.remove(), block.remove()
    assert torch.equal(states[0][0], last[0][0, 3])
    assert not torch.equal(states[0][0], last[0][0, 1])


def test_gradients_reach_every_parameter_and_no_padding(tower):
    built = tower()
    text_BL, valid_BL = rows([7, 3, 1], length=5)
    text_BL[~valid_BL] = 11
    built(text_BL, valid_BL).square().sum().backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    touched = built.token_embed.weight.grad.abs().sum(-1).nonzero().flatten().tolist()
    assert touched == [1, 3, 7]
    assert built.pos_embed.grad[0, 3:].abs().sum() == 0


def test_too_many_tokens_are_our_own_mistake(tower):
    with pytest.raises(AssertionError, match="13 tokens exceed the context of 12"):
        tower()(*rows([1], length=13))
