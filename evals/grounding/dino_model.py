"""mmdet's Grounding DINO on any backbone.

Shape letters: B pictures, C channels, S side of the canvas, N boxes, L text tokens, M places of all levels of the picture,
D width.
"""

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evals.detection.backbone import EncoderBackbone
from evals.detection.mmdet_setup import use_mmdet
from evals.detection.pyramid import SimpleFeaturePyramid
from evals.grounding import language_model
from evals.grounding.dino_config import GroundingDinoConfig
from pretrain.types import UserError

#: Numbers that mmdet encodes a box in: 128 for each of x, y, width and height (`coordinate_to_encoding`).
_BOX_CODE = 4 * 128


@cache
def detector_class() -> type[nn.Module]:
    """mmdet's GroundingDINO with four repairs; a function, since mmdet must not be imported before its operators are there.

    - Padding of the text is invisible to the picture. mmdet hands its fusion layers a boolean mask that is True on padding;
      `BiMultiHeadAttention` fills it where it is 0, with a number that a boolean cannot hold, so that it ends up True
      everywhere and hides nothing: a sentence's scores depend on how long the others of the batch are.
    - The text's layers see each text's own mask. mmdet repeats the masks of a batch once for each head, where torch's attention
      wants those of one text in a row: in batches of more than one text most heads have another text's mask.
    - Queries do not lend their positions to the text. mmcv's attention takes them for the keys' where both have the same shape,
      which is where a prompt happens to have as many tokens as there are queries.
    - Any width: mmdet encodes positions of text, and coordinates of boxes, in 256 numbers whatever `embed_dims` is.
    """
    use_mmdet()
    from mmcv.cnn.bricks.transformer import MultiheadAttention
    from mmdet.models.detectors import GroundingDINO
    from mmdet.models.layers.transformer.utils import MLP, get_text_sine_pos_embed
    from mmdet.registry import MODELS

    class TextAttention(MultiheadAttention):
        def forward(
            self, query: Tensor, key: Tensor, value: Tensor, query_pos: Tensor, key_padding_mask: Tensor
        ) -> Tensor:
            return super().forward(
                query, key, value, query_pos=query_pos, key_pos=torch.zeros_like(key), key_padding_mask=key_padding_mask
            )

    class AnyWidthGroundingDINO(GroundingDINO):
        def _init_layers(self) -> None:
            super()._init_layers()
            width = self.embed_dims
            self.decoder.ref_point_head = MLP(_BOX_CODE, width, width, 2)  # as it is where the width is 256
            for layer in self.decoder.layers:
                layer.cross_attn_text.__class__ = TextAttention  # the same layer, asked in another way

        def forward_encoder(
            self,
            feat: Tensor,
            feat_mask: Tensor | None,
            feat_pos: Tensor,
            spatial_shapes: Tensor,
            level_start_index: Tensor,
            valid_ratios: Tensor,
            text_dict: dict[str, Tensor],
        ) -> dict[str, Tensor | None]:
            if feat.shape[1] < self.num_queries:
                raise UserError(
                    f"dino.num_queries={self.num_queries} is more than the {feat.shape[1]} places of the pyramid's maps; "
                    "give fewer, larger pictures or larger dino.factors"
                )
            encoder, picture_BMD, text_BLD = self.encoder, feat, text_dict["embedded"]
            valid_BL, attend_BLL = text_dict["text_token_mask"], text_dict["masks"]
            position_BLD = get_text_sine_pos_embed(
                text_dict["position_ids"][..., None], num_pos_feats=self.embed_dims, exchange_xy=False
            )
            points = encoder.get_encoder_reference_points(spatial_shapes, valid_ratios, device=feat.device)
            for fuse, read, look in zip(encoder.fusion_layers, encoder.text_layers, encoder.layers, strict=True):
                picture_BMD, text_BLD = fuse(
                    visual_feature=picture_BMD,
                    lang_feature=text_BLD,
                    attention_mask_v=feat_mask,
                    attention_mask_l=valid_BL.float(),  # 0 is filled with a large negative number
                )
                text_BLD = read(
                    query=text_BLD,
                    query_pos=position_BLD,
                    attn_mask=~attend_BLL.repeat_interleave(read.self_attn_cfg.num_heads, 0),
                    key_padding_mask=None,
                )
                picture_BMD = look(
                    query=picture_BMD,
                    query_pos=feat_pos,
                    reference_points=points,
                    spatial_shapes=spatial_shapes,
                    level_start_index=level_start_index,
                    key_padding_mask=feat_mask,
                )
            return {
                "memory": picture_BMD,
                "memory_mask": feat_mask,
                "spatial_shapes": spatial_shapes,
                "memory_text": text_BLD,
                "text_token_mask": valid_BL,
            }

    MODELS.register_module(name="AnyWidthGroundingDINO", module=AnyWidthGroundingDINO)
    language_model.register()
    return AnyWidthGroundingDINO


def build_grounding_dino(backbone: EncoderBackbone, config: GroundingDinoConfig, *, seed: int = 0) -> nn.Module:
    """mmdet's GroundingDINO on a backbone.

    Args:
        backbone: the encoder; used in place.
        config: of the detector.
        seed: of all weights but the backbone's and the text encoder's; the process's own random numbers are left alone.

    Returns:
        mmdet's detector: `loss(image, data_samples)` and `predict(image, data_samples)`.

    Raises:
        UserError: settings that cannot be meant, or a text encoder that cannot serve.
    """
    config.check()
    build = detector_class()
    from mmengine.config import ConfigDict

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        neck = SimpleFeaturePyramid(
            backbone.out_channels, config.embed_dim, factors=config.factors, num_extra=config.num_extra
        )
        detector = build(
            # built already; mmdet takes anything that can be called for a type
            backbone={"type": lambda: backbone},
            neck={"type": lambda: neck},
            **ConfigDict(detector_settings(config)),  # mmdet reads nested settings as attributes
        )
        detector.init_weights()
    if config.checkpointing:
        for layer in (*detector.encoder.layers, *detector.encoder.fusion_layers):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return detector


def detector_settings(config: GroundingDinoConfig) -> dict[str, Any]:
    """The arguments of mmdet's GroundingDINO, backbone and neck aside; new ones each time, since mmdet changes them."""
    width, levels = config.embed_dim, len(config.factors) + config.num_extra
    deformable = {"embed_dims": width, "num_heads": config.num_heads, "num_points": config.num_points, "dropout": 0.0}
    deformable |= {"num_levels": levels}
    attention = {"embed_dims": width, "num_heads": config.num_heads, "dropout": 0.0}
    ffn = {"embed_dims": width, "feedforward_channels": config.ffn_dim, "ffn_drop": 0.0}
    language = config.language
    return {
        "num_queries": config.num_queries,
        "num_feature_levels": levels,
        "with_box_refine": True,
        "as_two_stage": True,
        "language_model": {
            "type": "HuggingFaceTextEncoder",
            "name": language.model,
            "max_tokens": language.max_tokens,
            "frozen": language.frozen,
        },
        "encoder": {
            "num_layers": config.encoder_layers,
            "num_cp": 0,
            "layer_cfg": {"self_attn_cfg": dict(deformable), "ffn_cfg": dict(ffn)},
            "text_layer_cfg": {
                "self_attn_cfg": attention | {"num_heads": config.text_heads},
                "ffn_cfg": ffn | {"feedforward_channels": config.text_ffn_dim},
            },
            "fusion_layer_cfg": {
                "v_dim": width,
                "l_dim": width,
                "embed_dim": config.fusion_dim,
                "num_heads": config.fusion_heads,
                "dropout": config.fusion_dropout,
                "init_values": 1e-4,
            },
        },
        "decoder": {
            "num_layers": config.decoder_layers,
            "return_intermediate": True,
            "layer_cfg": {
                "self_attn_cfg": dict(attention),
                "cross_attn_text_cfg": dict(attention),
                "cross_attn_cfg": dict(deformable),
                "ffn_cfg": dict(ffn),
            },
            "post_norm_cfg": None,
        },
        "positional_encoding": {"num_feats": width // 2, "normalize": True, "offset": 0.0, "temperature": 20},
        "bbox_head": _head_settings(config),
        "dn_cfg": {
            "label_noise_scale": config.label_noise,
            "box_noise_scale": config.box_noise,
            "group_cfg": {"dynamic": True, "num_groups": None, "num_dn_queries": config.dn_queries},
        },
        "train_cfg": {
            "assigner": {
                "type": "HungarianAssigner",
                "match_costs": [
                    {"type": "BinaryFocalLossCost", "weight": config.cls_cost},
                    {"type": "BBoxL1Cost", "weight": config.l1_cost, "box_format": "xywh"},
                    {"type": "IoUCost", "iou_mode": "giou", "weight": config.giou_cost},
                ],
            }
        },
        "test_cfg": {"max_per_img": config.max_per_img},
    }


def _head_settings(config: GroundingDinoConfig) -> dict[str, Any]:
    tokens = config.language.max_tokens
    focal = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": config.cls_weight}
    return {
        "type": "GroundingDINOHead",
        "embed_dims": config.embed_dim,
        "num_classes": tokens,
        "sync_cls_avg_factor": True,
        "contrastive_cfg": {"max_text_len": tokens, "log_scale": "auto", "bias": True},
        "loss_cls": focal,
        "loss_bbox": {"type": "L1Loss", "loss_weight": config.l1_weight},
        "loss_iou": {"type": "GIoULoss", "loss_weight": config.giou_weight},
    }
