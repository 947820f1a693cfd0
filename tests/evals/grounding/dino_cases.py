"""A tiny Grounding DINO and pictures for it."""

import timm
import torch

from evals.detection.backbone import BackboneConfig, EncoderBackbone
from evals.detection.samples import Objects, Sample
from evals.encoder import BlockEncoder, Provenance
from evals.grounding.dino_config import GroundingDinoConfig, LanguageConfig
from evals.grounding.dino_model import build_grounding_dino
from evals.transforms import ImageTransform
from pretrain.types import ImageSpec

CANVAS = 32


def tiny_dino_config(**options) -> GroundingDinoConfig:
    """4 x 4 patches and 2 x 2 of the next level: 20 places for 12 queries."""
    values = {
        "num_queries": 12,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "embed_dim": 32,
        "num_heads": 4,
        "ffn_dim": 32,
        "text_heads": 4,
        "text_ffn_dim": 32,
        "fusion_dim": 32,
        "fusion_heads": 4,
        "fusion_dropout": 0.0,
        "factors": (1.0, 0.5),
        "num_extra": 0,
        "dn_queries": 4,
        "max_per_img": 10,
        "language": LanguageConfig(max_tokens=32, frozen=True),
    }
    return GroundingDinoConfig(**(values | options))


def tiny_backbone(*, frozen=False) -> EncoderBackbone:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=CANVAS,
        patch_size=8,
        embed_dim=32,
        depth=1,
        num_heads=2,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
    )
    encoder = BlockEncoder(
        vit, transform=ImageTransform(ImageSpec(CANVAS)), provenance=Provenance("tiny", "vit_tiny_patch16_224")
    )
    return EncoderBackbone(encoder, BackboneConfig(window=0, frozen=frozen))


def tiny_dino(*, frozen=False, seed=0, **options):
    """A detector; options go to its config."""
    return build_grounding_dino(tiny_backbone(frozen=frozen), tiny_dino_config(**options), seed=seed)


def sample(*boxes, labels=None, image_id=0, hw=(24, 32)) -> Sample:
    """A picture of random pixels that fills 24 rows of the canvas, of a file of twice its size, with boxes on the canvas."""
    generator = torch.Generator().manual_seed(image_id)
    image_CSS = torch.randint(0, 256, (3, CANVAS, CANVAS), generator=generator, dtype=torch.uint8)
    image_CSS[:, hw[0] :], image_CSS[:, :, hw[1] :] = 0, 0
    label_N = torch.tensor(labels if labels is not None else [0] * len(boxes), dtype=torch.int64)
    objects = Objects(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), label_N, None, torch.zeros(0, 4))
    return Sample(image_CSS, objects, image_id, hw, (2 * hw[0], 2 * hw[1]))
