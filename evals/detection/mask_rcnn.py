"""Mask R-CNN on an encoder, built by mmdet's registry."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from evals.detection.backbone import EncoderBackbone
from evals.detection.config import MaskRCNNConfig
from evals.detection.mmdet_setup import use_mmdet
from evals.detection.pyramid import ChannelNorm, SimpleFeaturePyramid

Config = dict[str, Any]
#: Boxes below twice so many places of the finest map are read from it: 56 pixels at stride 4 (Lin et al. 2017, equation 1: a box
#: of 224 pixels belongs to stride 16).
_FINEST_PLACES = 14


def build_mask_rcnn(
    backbone: EncoderBackbone, config: MaskRCNNConfig, *, num_classes: int, masks: bool, max_per_img: int = 100
) -> nn.Module:
    """An mmdet MaskRCNN (FasterRCNN without masks) with new heads on a backbone, its initial weights drawn by torch's generator.

    Args:
        backbone: the encoder.
        config: sizes.
        num_classes: classes of the data set.
        masks: whether there is a mask head.
        max_per_img: objects that are found on a picture; COCO counts 100.
    """
    use_mmdet()
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    neck = SimpleFeaturePyramid(
        backbone.out_channels, config.channels, factors=config.factors, num_extra=config.num_extra
    )
    strides = [backbone.stride / scale for scale in neck.scales]
    content = {
        "type": "MaskRCNN" if masks else "FasterRCNN",
        # built already; mmdet takes anything that can be called for a type
        "backbone": {"type": lambda: backbone},
        "neck": {"type": lambda: neck},
        "rpn_head": _rpn_head(config, strides),
        "roi_head": _roi_head(config, strides[: len(config.factors)], num_classes=num_classes, masks=masks),
        "train_cfg": _train_settings(config),
        "test_cfg": _test_settings(config, max_per_img=max_per_img),
    }
    detector = MODELS.build(ConfigDict(content))
    for part in (detector.rpn_head, detector.roi_head):
        part.init_weights()
    return detector


def _rpn_head(config: MaskRCNNConfig, strides: Sequence[float]) -> Config:
    return {
        "type": "RPNHead",
        "in_channels": config.channels,
        "feat_channels": config.channels,
        "num_convs": config.rpn_convs,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": [config.anchor_scale],
            "ratios": list(config.anchor_ratios),
            "strides": list(strides),
        },
        "bbox_coder": _coder(1.0, 1.0),
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }


def _coder(center: float, size: float) -> Config:
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [center, center, size, size]}


def _extractor(config: MaskRCNNConfig, strides: Sequence[float], *, side: int) -> Config:
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": side, "sampling_ratio": 0},
        "out_channels": config.channels,
        "featmap_strides": list(strides),
        "finest_scale": _FINEST_PLACES * strides[0],
    }


def _roi_head(config: MaskRCNNConfig, strides: Sequence[float], *, num_classes: int, masks: bool) -> Config:
    norm = {"type": ChannelNorm} if config.box_convs else None
    head: Config = {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": _extractor(config, strides, side=7),
        "bbox_head": {
            "type": "ConvFCBBoxHead",
            "num_shared_convs": config.box_convs,
            "num_shared_fcs": config.box_fcs,
            "in_channels": config.channels,
            "conv_out_channels": config.channels,
            "fc_out_channels": config.fc_channels,
            "roi_feat_size": 7,
            "num_classes": num_classes,
            "bbox_coder": _coder(0.1, 0.2),
            "reg_class_agnostic": False,
            "norm_cfg": norm,
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
    }
    if masks:
        head["mask_roi_extractor"] = _extractor(config, strides, side=14)
        head["mask_head"] = {
            "type": "FCNMaskHead",
            "num_convs": config.mask_convs,
            "in_channels": config.channels,
            "conv_out_channels": config.channels,
            "num_classes": num_classes,
            "norm_cfg": norm,
            "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
        }
    return head


def _assigner(positive: float, negative: float, *, low_quality: bool) -> Config:
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": negative,
        "match_low_quality": low_quality,
        "ignore_iof_thr": 0.5,  # what lies in a crowd is no background; mmdet's own configs teach that it is
    }


def _sampler(num: int, positive: float, *, add_truth: bool) -> Config:
    return {
        "type": "RandomSampler",
        "num": num,
        "pos_fraction": positive,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": add_truth,
    }


def _proposals(config: MaskRCNNConfig, *, num_before: int) -> Config:
    nms = {"type": "nms", "iou_threshold": 0.7}
    return {"nms_pre": num_before, "max_per_img": config.num_proposals, "nms": nms, "min_bbox_size": 0}


def _train_settings(config: MaskRCNNConfig) -> Config:
    """Thresholds as in mmdet's _base_/models/mask-rcnn_r50_fpn.py."""
    return {
        "rpn": {
            "assigner": _assigner(0.7, 0.3, low_quality=True),
            "sampler": _sampler(config.num_anchors, 0.5, add_truth=False),
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "rpn_proposal": _proposals(config, num_before=2 * config.num_proposals),
        "rcnn": {
            "assigner": _assigner(0.5, 0.5, low_quality=True),
            "sampler": _sampler(config.num_rois, 0.25, add_truth=True),
            "mask_size": 28,
            "pos_weight": -1,
            "debug": False,
        },
    }


def _test_settings(config: MaskRCNNConfig, *, max_per_img: int) -> Config:
    return {
        "rpn": _proposals(config, num_before=config.num_proposals),
        "rcnn": {
            "score_thr": config.score_threshold,
            "nms": {"type": "nms", "iou_threshold": 0.5},
            "max_per_img": max_per_img,
            "mask_thr_binary": 0.5,
        },
    }
