"""Shape letters as in evals/probe/heads.py."""

import math

import pytest
import torch

from evals.probe.heads import AttentiveHead, HeadConfig, HeadGrid, LinearHead, load_head, save_head
from pretrain.types import UserError


def pooled_in_loops(head: AttentiveHead, tokens_BTD: torch.Tensor) -> torch.Tensor:
    """Attention pooling restated with loops over pictures, queries and heads, in double precision."""
    x = tokens_BTD.double()
    if head.config.batch_norm:
        flat = x.reshape(-1, x.shape[-1])
        mean = flat.mean(0)
        x = (x - mean) / ((flat - mean).square().mean(0) + 1e-6).sqrt()
    queries, key, value = head.query.double(), head.key.weight.double(), head.value.weight.double()
    heads, width = head.config.num_heads, x.shape[-1] // head.config.num_heads
    out = torch.zeros(len(x), x.shape[-1], dtype=torch.double)
    for b in range(len(x)):
        for query in queries:
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                scores = torch.stack([query[part] @ (key @ token)[part] / math.sqrt(width) for token in x[b]])
                weights = scores.exp() / scores.exp().sum()
                for weight, token in zip(weights, x[b], strict=True):
                    out[b, part] += weight * (value @ token)[part] / len(queries)
    return out


def randomise(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)


@pytest.mark.parametrize("num_queries", [1, 3])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_attention_pooling_is_its_formula(num_queries, batch_norm):
    torch.manual_seed(0)
    head = AttentiveHead(12, 5, HeadConfig(num_heads=3, num_queries=num_queries, batch_norm=batch_norm))
    randomise(head)
    tokens_BTD = torch.randn(4, 7, 12) * 3 + 1
    assert torch.allclose(head.pool(tokens_BTD).double(), pooled_in_loops(head, tokens_BTD), atol=1e-4)
    logits = head.pool(tokens_BTD) @ head.classifier.weight.T + head.classifier.bias
    assert torch.allclose(head(tokens_BTD), logits, atol=1e-5)


def test_one_query_of_zeros_takes_the_mean():
    head = AttentiveHead(8, 2, HeadConfig(num_heads=2, batch_norm=False))
    torch.nn.init.zeros_(head.query)
    tokens_BTD = torch.randn(3, 6, 8)
    assert torch.allclose(head.pool(tokens_BTD), head.value(tokens_BTD.mean(1)), atol=1e-6)
    assert torch.allclose(head.attention(tokens_BTD), torch.full((3, 2, 6), 1 / 6))


@pytest.mark.parametrize("kind", ["attentive", "linear"])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_grid_is_its_heads(kind, batch_norm, training):
    """Folding the keys into the queries changes neither results nor gradients."""
    torch.manual_seed(0)
    config = HeadConfig(kind=kind, num_heads=4, num_queries=2, batch_norm=batch_norm)
    grid = HeadGrid(16, 5, config, num_settings=3)
    randomise(grid)
    features = torch.randn(6, 9, 16) if kind == "attentive" else torch.randn(6, 16)
    grid.train()(features)  # running statistics that are neither 0 nor 1
    grid.train(training)
    alone = [grid.head(setting) for setting in range(3)]
    logits_GBC = grid(features)
    assert logits_GBC.shape == (3, 6, 5)
    logits_GBC.square().sum().backward()
    for setting, head in enumerate(alone):
        out = head(features)
        assert torch.allclose(logits_GBC[setting], out, atol=1e-4, rtol=1e-4)
        out.square().sum().backward()
        for name, parameter in head.named_parameters():
            grad = grid.heads[setting].get_parameter(name).grad
            assert torch.allclose(grad, parameter.grad, atol=1e-3, rtol=1e-3), name


def test_settings_start_alike():
    grid = HeadGrid(8, 3, HeadConfig(num_heads=2), num_settings=4)
    for head in grid.heads[1:]:
        for name, parameter in head.named_parameters():
            assert torch.equal(parameter, grid.heads[0].get_parameter(name))
            assert parameter is not grid.heads[0].get_parameter(name)


def test_attention_adds_up_to_one():
    head = AttentiveHead(8, 2, HeadConfig(num_heads=4, num_queries=3)).eval()
    attention_BHT = head.attention(torch.randn(2, 5, 8))
    assert attention_BHT.shape == (2, 4, 5)
    assert torch.allclose(attention_BHT.sum(-1), torch.ones(2, 4))


def test_heads_that_do_not_fit():
    with pytest.raises(UserError, match=r"head.num_heads=3 must divide the encoder's width 8"):
        AttentiveHead(8, 2, HeadConfig(num_heads=3))
    with pytest.raises(UserError, match=r"head.num_queries=0"):
        AttentiveHead(8, 2, HeadConfig(num_queries=0))


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_saved_heads_load_back(tmp_path, kind):
    config = HeadConfig(kind=kind, num_heads=2)
    grid = HeadGrid(8, 3, config, num_settings=2)
    randomise(grid)
    features = torch.randn(5, 4, 8) if kind == "attentive" else torch.randn(5, 8)
    grid(features)
    head = grid.eval().head(1)
    save_head(head, tmp_path / "head.safetensors", classes=["a", "b", "c"])
    loaded = load_head(tmp_path / "head.safetensors")
    assert loaded.classes == ["a", "b", "c"]
    assert isinstance(loaded, LinearHead if kind == "linear" else AttentiveHead)
    assert torch.equal(loaded(features), head(features))


def test_files_that_are_no_heads(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    for name in ("x.safetensors", "absent.safetensors"):
        with pytest.raises(UserError, match=r"is no probe's head"):
            load_head(tmp_path / name)
