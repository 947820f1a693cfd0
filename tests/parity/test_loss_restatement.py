"""The whole loss against a restatement in plain PyTorch: sample by sample, patch by patch, token by token.

Nothing of the package is used but the weights and the prefix lengths.
"""

import math

import pytest
import torch

from pretrain.models.attention import draw_prefix_len


def rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def attention(x, w, prefix, heads, may_attend):
    """x [T, D] of one sample; may_attend(i, j) in plain Python."""
    length, width = x.shape
    q, k, v = (x @ w[prefix + "qkv.weight"].T).split(width, dim=-1)
    allowed = torch.tensor([[may_attend(i, j) for j in range(length)] for i in range(length)])
    out = []
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width // heads)
        out.append(torch.where(allowed, scores, -torch.inf).softmax(-1) @ v[:, part])
    return torch.cat(out, -1) @ w[prefix + "proj.weight"].T


def block(x, w, prefix, heads, may_attend):
    x = x + attention(rms_norm(x, w[prefix + "norm1.weight"]), w, prefix + "attn.", heads, may_attend)
    y = rms_norm(x, w[prefix + "norm2.weight"])
    gate, up = y @ w[prefix + "mlp.fc1_g.weight"].T, y @ w[prefix + "mlp.fc1_x.weight"].T
    return x + (gate * torch.sigmoid(gate) * up) @ w[prefix + "mlp.fc2.weight"].T


def cut_patches(image, size):
    side = image.shape[-1] // size
    return [image[:, r * size : (r + 1) * size, c * size : (c + 1) * size] for r in range(side) for c in range(side)]


def encode(image, w, depth, heads, size, prefix_len):
    kernel = w["patch_embed.proj.weight"].flatten(1)
    tokens = torch.stack([kernel @ patch.flatten() + w["patch_embed.proj.bias"] for patch in cut_patches(image, size)])
    x = rms_norm(tokens, w["patch_embed.norm.weight"]) + w["pos_embed"][0]
    for i in range(depth):
        x = block(x, w, f"blocks.{i}.", heads, lambda i, j: j <= i or (i < prefix_len and j < prefix_len))
    return rms_norm(x, w["norm.weight"])


def decode(tokens, inputs, w, prefix, depth, heads):
    x = tokens @ w[prefix + "image_proj.weight"].T
    if inputs is not None:
        rows = [w[prefix + "bos"][0, 0], *(w[prefix + "token_embed.weight"][token] for token in inputs)]
        text = torch.stack(rows) + w[prefix + "pos_embed"][0, : len(rows)]
        x = torch.cat([x, text])
    for i in range(depth):
        x = block(x, w, f"{prefix}blocks.{i}.", heads, lambda i, j: j <= i)
    return rms_norm(x, w[prefix + "norm.weight"])


def restated_loss(encoder, objective, batch, prefixes, *, image_weight=0.4, separate=False):
    e, d = dict(encoder.named_parameters()), dict(objective.named_parameters())
    text_losses, patch_losses = [], []
    for row, prefix_len in enumerate(prefixes):
        image = batch.image_BCHW[row]
        tokens = encode(image, e, 2, 4, 4, prefix_len)
        caption = batch.text_BL[row][batch.text_valid_BL[row]].tolist()
        hidden = decode(tokens, caption[:-1] if caption else [], d, "decoder.", 2, 2)
        for place, token in enumerate(caption):
            logits = d["decoder.text_head.weight"] @ hidden[16 + place]
            text_losses.append(torch.logsumexp(logits, 0) - logits[token])
        name = "pixel_decoder." if separate else "decoder."
        if separate:
            hidden = decode(tokens, None, d, name, 2, 2)
        for k in range(1, 17):  # patches numbered from 1, as in the paper
            if k > prefix_len:
                # the patch's pixels in the order row, column, channel
                pixels = cut_patches(image, 4)[k - 1].permute(1, 2, 0).flatten()
                target = (pixels - pixels.mean()) / torch.sqrt(
                    ((pixels - pixels.mean()) ** 2).sum() / (len(pixels) - 1) + 1e-6
                )
                prediction = d[name + "pixel_head.weight"] @ hidden[k - 2]
                patch_losses.append(((prediction - target) ** 2).mean())
    text = torch.stack(text_losses).mean() if text_losses else torch.tensor(0.0)
    return text + image_weight * torch.stack(patch_losses).mean()


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(
    "lengths",
    [
        (3, 8, 1, 5),  # B = 4 = encoder heads: a [B, N, N] mask would broadcast over heads unnoticed
        (2, 7),  # B = 2 = decoder heads
        (77, 1, 0),  # longest, shortest and missing captions
    ],
)
def test_loss_and_gradients(tiny, make_batch, attention_path, lengths, separate):
    encoder, objective = tiny(path=attention_path, separate_decoders=separate)
    for parameter in [*encoder.parameters(), *objective.parameters()]:
        torch.nn.init.normal_(parameter, std=0.2)  # larger than the initial ones, so that mistakes show
    batch = make_batch(lengths)
    prefixes = draw_prefix_len(objective.config.prefix, seed=7, position_B=batch.position_B, num_patches=16).tolist()
    assert len(set(prefixes)) > 1, "mixed prefixes are the point"
    parameters = [*encoder.parameters(), *objective.parameters()]

    terms = objective(encoder, batch)
    loss = sum(term.weight * term.total / term.count for term in terms.values())
    gradients = torch.autograd.grad(loss, parameters)
    expected = restated_loss(encoder, objective, batch, prefixes, separate=separate)
    expected_gradients = torch.autograd.grad(expected, parameters)

    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for got, want in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_the_restatement_can_tell(tiny, make_batch):
    """A prefix off by one must not pass for the right one."""
    encoder, objective = tiny()
    batch = make_batch()
    prefixes = draw_prefix_len(objective.config.prefix, seed=7, position_B=batch.position_B, num_patches=16).tolist()
    terms = objective(encoder, batch)
    loss = sum(term.weight * term.total / term.count for term in terms.values())
    wrong = restated_loss(encoder, objective, batch, [max(1, p - 1) for p in prefixes])
    assert abs(loss - wrong) > 1e-4
