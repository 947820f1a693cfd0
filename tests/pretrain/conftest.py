"""What tests of pre-training share beside the fixtures of all tests."""

import pytest
import torch

from pretrain.models.attention import choose_fused_attention
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.objectives.config import ContrastiveConfig, ObjectiveConfig, TextTowerConfig
from pretrain.objectives.contrastive import ContrastiveObjective

TINY_TEXT = TextTowerConfig(embed_dim=24, depth=2, num_heads=2, mlp_hidden_dim=40)


@pytest.fixture
def tiny_contrastive():
    """Encoder (32 wide, 16 patches) and contrastive objective (text 24 wide, space 12 wide); options go to ContrastiveConfig."""

    def build(kind="clip", *, path=torch.float32, **options):
        torch.manual_seed(0)
        encoder = build_encoder(EncoderConfig(embed_dim=32, depth=2, num_heads=4, mlp_hidden_dim=64, img_size=16))
        options = {"text": TINY_TEXT, "proj_dim": 12, "pool_heads": 4} | options
        config = ObjectiveConfig(kind=kind, contrastive=ContrastiveConfig(**options))
        objective = ContrastiveObjective(config, encoder=encoder, vocab_size=29)
        for module in (encoder, objective):
            choose_fused_attention(module, device_type="cpu", dtype=path)
        return encoder, objective

    return build
