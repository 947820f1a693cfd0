import math

import pytest
import torch

from pretrain.objectives.config import ContrastiveConfig, ObjectiveConfig, TextTowerConfig
from pretrain.objectives.contrastive import ContrastiveObjective
from pretrain.optim import Branch, OptimConfig, apply_config, build_optimizer, is_decayed, rate_factor
from pretrain.types import UserError

CONFIG = OptimConfig(lr=1e-2, weight_decay=1e-3, warmup_steps=3, min_lr=1e-5)


def test_equals_fully_decoupled_adamw():
    """ml-l3m's update written out: p *= 1 - wd * lr / lr_max, then Adam's step; 12 steps of a changing rate."""
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 4)
    weight, bias = model.weight.detach().clone().double(), model.bias.detach().clone().double()
    state = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in (("weight", weight), ("bias", bias))}
    optimizer = build_optimizer(model, CONFIG)
    factor = rate_factor(CONFIG, warmup_steps=3, total_steps=12)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for step in range(12):
        optimizer.zero_grad()
        model(torch.randn(6, 5)).square().sum().backward()
        lr = 1e-2 * factor(step)
        for name, value, decay in (("weight", weight, 1e-3), ("bias", bias, 0.0)):
            gradient = getattr(model, name).grad.double()
            value.mul_(1 - decay * lr / 1e-2)
            first, second = state[name]
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.95).add_(0.05 * gradient**2)
            denominator = (second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
            value.sub_(lr * (first / (1 - 0.9 ** (step + 1))) / denominator)
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(model.weight.double(), weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.bias.double(), bias, atol=1e-6, rtol=1e-5)


def test_published_decay_as_torch_sees_it():
    # reference, section 4: 0.1 (L), 0.125 (H, 1B), 0.25 (3B)
    for lr, expected in ((1e-3, 0.1), (8e-4, 0.125), (4e-4, 0.25)):
        optimizer = build_optimizer(torch.nn.Linear(2, 2), OptimConfig(lr=lr, warmup_steps=0))
        assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(expected), 0.0]
        assert optimizer.defaults["betas"] == (0.9, 0.95)
        assert optimizer.defaults["fused"]


def test_who_is_decayed(tiny):
    encoder, objective = tiny()
    decayed = {n for m in (encoder, objective) for n, p in m.named_parameters() if is_decayed(n, p)}
    kept = {n for m in (encoder, objective) for n, p in m.named_parameters() if not is_decayed(n, p)}
    assert {"pos_embed", "patch_embed.proj.bias", "patch_embed.norm.weight", "norm.weight", "decoder.bos"} <= kept
    assert {"blocks.0.norm1.weight", "decoder.pos_embed", "decoder.blocks.1.norm2.weight"} <= kept
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "decoder.token_embed.weight"} <= decayed
    assert {"decoder.text_head.weight", "decoder.pixel_head.weight", "decoder.image_proj.weight"} <= decayed


def test_who_is_decayed_of_a_contrastive_objective(tiny):
    encoder, _ = tiny()
    options = ContrastiveConfig(TextTowerConfig(16, 1, 2, 32), proj_dim=16, pool_heads=2)
    objective = ContrastiveObjective(
        ObjectiveConfig(kind="siglip", contrastive=options), encoder=encoder, vocab_size=29
    )
    kept = {name for name, parameter in objective.named_parameters() if not is_decayed(name, parameter)}
    assert {"pool.attend.latent", "text.pos_embed", "logit_scale", "logit_bias"} <= kept
    decayed = {name for name, _ in objective.named_parameters()} - kept
    assert {"pool.attend.kv.weight", "pool.proj.weight", "text_proj.weight", "text.token_embed.weight"} <= decayed


def test_schedule_by_hand():
    config = OptimConfig(lr=1e-3, warmup_steps=10)
    rate = [1e-3 * rate_factor(config, warmup_steps=10, total_steps=111)(step) for step in range(111)]
    assert rate[0] == pytest.approx(1e-6)
    assert rate[5] == pytest.approx((1e-6 + 1e-3) / 2)
    assert rate[10] == pytest.approx(1e-3)
    assert rate[60] == pytest.approx((1e-3 + 1e-5) / 2)  # half of the cosine
    assert rate[35] == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi / 4)) / 2)
    assert rate[110] == pytest.approx(1e-5)
    assert max(rate) == rate[10]


def test_trunks_and_cooldowns_by_hand():
    def rates(branch=None, total=111, **fields):
        config = OptimConfig(lr=1e-3, warmup_steps=10, **fields)
        factor = rate_factor(config, warmup_steps=10, total_steps=total, branch=branch)
        return [1e-3 * factor(step) for step in range(total)]

    half, constant = rates(schedule="half_cosine"), rates(schedule="constant")
    assert half[0] == constant[0] == pytest.approx(1e-6)
    assert half[10] == constant[10] == constant[110] == pytest.approx(1e-3)
    assert half[60] == pytest.approx(0.75e-3)  # half way from 1e-3 to 0.5e-3
    assert half[110] == pytest.approx(0.5e-3)
    # from 0.75e-3 at step 60 to 1e-6 at step 80, in a line
    down = rates(Branch(60, 0.75e-3), total=81, schedule="cooldown", min_lr=1e-6)
    assert down[60] == pytest.approx(0.75e-3)
    assert down[70] == pytest.approx((0.75e-3 + 1e-6) / 2)
    assert down[80] == pytest.approx(1e-6)


def test_cooldowns_that_cannot_be():
    config = OptimConfig(warmup_steps=0, schedule="cooldown")
    with pytest.raises(UserError, match="--branch_from"):
        rate_factor(config, warmup_steps=0, total_steps=10)
    with pytest.raises(UserError, match="the trunk has 10 steps already"):
        rate_factor(config, warmup_steps=0, total_steps=10, branch=Branch(10, 1e-3))


def test_the_config_wins_over_a_checkpoint():
    """A checkpoint at step 3 of one config, loaded under another: every number is the other's."""
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(model, CONFIG)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor(CONFIG, warmup_steps=3, total_steps=12))
    for _ in range(3):
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
    checkpoint = {
        "global_step": 3,
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
    }
    other = OptimConfig(lr=5e-3, weight_decay=1e-2, beta1=0.8, beta2=0.9, eps=1e-6, warmup_steps=0)
    factor = rate_factor(other, warmup_steps=0, total_steps=20)
    apply_config(checkpoint, other, factor)
    fresh = build_optimizer(model, other)
    expected = [{key: value for key, value in group.items() if key != "params"} for group in fresh.param_groups]
    resumed_scheduler = torch.optim.lr_scheduler.LambdaLR(fresh, factor)
    fresh.load_state_dict(checkpoint["optimizer_states"][0])
    resumed_scheduler.load_state_dict(checkpoint["lr_schedulers"][0])
    for group, wanted in zip(fresh.param_groups, expected, strict=True):
        assert group["lr"] == pytest.approx(5e-3 * factor(3))
        assert group["initial_lr"] == 5e-3
        for key in ("weight_decay", "betas", "eps"):
            assert group[key] == wanted[key]
    fresh.step()
    resumed_scheduler.step()
    assert fresh.param_groups[0]["lr"] == pytest.approx(5e-3 * factor(4))
    assert fresh.state[model.weight]["step"] == 4, "the moments are the checkpoint's"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(), "exactly one of warmup_steps"),
        (dict(warmup_steps=1, warmup_samples=2), "exactly one of warmup_steps"),
        (dict(warmup_steps=1, lr=0.0), "optim.lr=0"),
        (dict(warmup_steps=1, lr=1e-6), "min_lr"),
        (dict(warmup_steps=1, weight_decay=-0.1), "weight_decay"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        OptimConfig(**fields).check()


def test_a_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(UserError, match="does not fit into a run of 5 steps"):
        rate_factor(CONFIG, warmup_steps=5, total_steps=5)
