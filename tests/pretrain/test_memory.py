"""The memory estimate against what torch allocates in training steps, and its parts by hand."""

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.throughput import SIZES, Size, make_batch, peak_mib
from pretrain.memory import TOLERANCE, Step, estimate_memory
from pretrain.models.attention import choose_fused_attention
from pretrain.models.decoder import DecoderConfig
from pretrain.models.recompute import recompute_blocks
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.objectives.build import build_objective
from pretrain.objectives.config import ContrastiveConfig, MAEConfig, ObjectiveConfig, TextTowerConfig
from pretrain.optim import OptimConfig, build_optimizer

#: a ViT with GELU and LayerNorm beside the two of our own
VIT = Size("vit_tiny_patch16_224", DecoderConfig(embed_dim=128, depth=1, num_heads=2), 512)
TOWERS = ContrastiveConfig(TextTowerConfig(128, depth=3, num_heads=2, mlp_hidden_dim=344), proj_dim=96, pool_heads=4)
RIVALS = {
    "clip": ObjectiveConfig(kind="clip", contrastive=TOWERS),
    "siglip": ObjectiveConfig(kind="siglip", contrastive=TOWERS),
    "mae": ObjectiveConfig(kind="mae", mae=MAEConfig(embed_dim=128, depth=3, num_heads=4)),
}


def build(size, *, dtype, recompute=False, config=None):
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(size.encoder))
    config = config or ObjectiveConfig(decoder=size.decoder)
    objective = build_objective(config, encoder=encoder, vocab_size=size.vocab_size)
    modules = nn.ModuleList([encoder, objective])
    choose_fused_attention(modules, device_type="cpu", dtype=dtype)
    if recompute:
        recompute_blocks(modules)
    return modules


def train(modules, batch, *, dtype):
    """Two steps in Lightning's order: the last gradients go between forward and backward pass."""
    optimizer = build_optimizer(modules, OptimConfig(warmup_steps=1))
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False):
            terms = modules[1](modules[0], batch)
            loss = sum(term.weight * term.total / term.count for term in terms.values())
        optimizer.zero_grad()
        loss.backward()
        del loss, terms
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0, foreach=True)
        optimizer.step()


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "recompute"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [SIZES["nano"], replace(SIZES["tiny"], batch_size=6), replace(VIT, batch_size=2)])
def test_estimate_is_near_what_is_allocated(size, dtype, recompute):
    check_estimate(size, dtype=dtype, recompute=recompute)


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "recompute"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", list(RIVALS))
def test_estimate_of_rivals(kind, dtype, recompute):
    check_estimate(SIZES["nano"], dtype=dtype, recompute=recompute, config=RIVALS[kind])


def check_estimate(size, *, dtype, recompute, config=None):
    batch = make_batch(size, EncoderConfig(size.encoder).image_spec().img_size)
    made = []

    def run():
        made.append(build(size, dtype=dtype, recompute=recompute, config=config))
        train(made[0], batch, dtype=dtype)

    gc.collect()  # what is left of earlier tests would count against this one when it goes
    measured = peak_mib(run)
    step = Step(
        size.batch_size,
        text_len=batch.text_BL.shape[1],
        low_precision=dtype == torch.bfloat16,
        activation_checkpointing=recompute,
    )
    estimate = estimate_memory(*made[0], step)
    assert 1 / TOLERANCE < estimate.total / 2**20 / measured < TOLERANCE
    if not recompute:  # what comes on top of the parameters, too
        static = (estimate.parameters + estimate.gradients + estimate.moments) / 2**20
        assert 1 / TOLERANCE < (estimate.total / 2**20 - static) / (measured - static) < TOLERANCE


def test_ranks_share_what_they_shard(tiny):
    modules = tiny()
    count = sum(parameter.numel() for module in modules for parameter in module.parameters())
    one, ddp, fsdp = (
        estimate_memory(*modules, Step(4, world_size=ranks, sharded=sharded))
        for ranks, sharded in ((1, False), (2, False), (2, True))
    )
    assert (one.parameters, one.gradients, one.moments) == (4 * count, 4 * count, 8 * count)
    assert (ddp.parameters, ddp.gradients, ddp.moments) == (4 * count, 8 * count, 8 * count)  # buckets
    assert (fsdp.parameters, fsdp.gradients, fsdp.moments) == (2 * count, 2 * count, 4 * count)
    assert (one.gathered, ddp.gathered) == (0, 0)
    # roots 8 bytes a parameter; the largest block twice in fp32, once as gradients, once on its way to the shards
    blocks = [sum(p.numel() for p in b.parameters()) for b in (*modules[0].blocks, *modules[1].decoder.blocks)]
    assert fsdp.gathered == 8 * (count - sum(blocks)) + max(blocks) * 16
    assert one.activations == ddp.activations == fsdp.activations
    assert one.total == 16 * count + one.activations + one.logits


def test_the_line_names_every_part_and_the_alternative(tiny):
    step = Step(4, activation_checkpointing=True, world_size=2, sharded=True)
    line = estimate_memory(*tiny(), step).describe(step)
    for word in ("parameters", "gradients", "moments", "gathered", "logits", "without activation checkpointing)"):
        assert word in line
    assert "batch of 4" in line
    assert "gathered" not in estimate_memory(*tiny(), Step(4)).describe(Step(4))
