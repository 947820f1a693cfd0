"""What tests share: tiny models and batches, and the folder of real data."""

from pathlib import Path

import pytest
import torch

from pretrain.models.attention import choose_fused_attention
from pretrain.models.decoder import DecoderConfig
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.objectives.aimv2 import AIMv2Config, AIMv2Objective
from pretrain.types import ImageTextBatch

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"
VOCAB_SIZE = 29
TINY_ENCODER = EncoderConfig(embed_dim=32, depth=2, num_heads=4, mlp_hidden_dim=64, img_size=16)
TINY_DECODER = DecoderConfig(embed_dim=24, depth=2, num_heads=2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Indices of shards go to a folder of the test session's, not to the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the shared data sets are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(params=["fused", "unfused"])
def attention_path(request):
    """Both paths that attention can take: SDPA, and the plain products that bf16 on a CPU runs on."""
    return torch.float32 if request.param == "fused" else torch.bfloat16


@pytest.fixture
def tiny():
    """Encoder (16 patches, 4 heads) and objective with random weights; options go to AIMv2Config."""

    def build(encoder: EncoderConfig = TINY_ENCODER, path: torch.dtype = torch.float32, **options):
        torch.manual_seed(0)
        built = build_encoder(encoder)
        options.setdefault("decoder", TINY_DECODER)
        objective = AIMv2Objective(AIMv2Config(**options), encoder=built, vocab_size=VOCAB_SIZE)
        for module in (built, objective):
            choose_fused_attention(module, device_type="cpu", dtype=path)
        return built, objective

    return build


@pytest.fixture
def make_batch():
    """A batch of random pictures with captions of the given lengths, EOS (id 1) included; 0 is a missing caption."""

    def make(lengths=(3, 8, 1, 5), *, img_size=16, pad_to=None, seed=0, first_position=0) -> ImageTextBatch:
        generator = torch.Generator().manual_seed(seed)
        count, width = len(lengths), pad_to or max(8, *lengths)
        text_BL = torch.randint(2, VOCAB_SIZE, (count, width), generator=generator)
        valid_BL = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
        for row, length in enumerate(lengths):
            if length:
                text_BL[row, length - 1] = 1
        return ImageTextBatch(
            image_BCHW=torch.randn(count, 3, img_size, img_size, generator=generator),
            text_BL=text_BL.masked_fill(~valid_BL, 0),
            text_valid_BL=valid_BL,
            position_B=torch.arange(first_position, first_position + count),
            seed=7,
            keys=[f"sample{index}" for index in range(count)],
            captions=["" for _ in lengths],
        )

    return make
