"""Settings of a detector and of its training.

The paper gives for its Table D3: Mask R-CNN on a ViTDet backbone, 1024 pixels, windows of 16, AdamW, cosine, layer-wise rate
decay, 100 epochs of batches of 64 (reference, section 7); rate, decay and drop path are not published (section 10). What it
leaves open follows ViTDet's own recipe (detectron2's projects/ViTDet; mmdetection's projects/ViTDet): see
configs/evals/mask_rcnn_vitdet_large.yaml. Defaults here are for small pictures and minutes on a CPU, and this suite's choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from evals.detection.backbone import BackboneConfig
from evals.detection.pyramid import FACTORS
from evals.features import Precision
from pretrain.types import UserError


@dataclass(frozen=True)
class MaskRCNNConfig:
    """Sizes of Mask R-CNN (He et al. 2017) on a simple feature pyramid.

    Attributes:
        channels: width of the pyramid and of the heads' convolutions; 256 in ViTDet.
        factors: sides of the pyramid's maps over that of the encoder's map; 4, 2, 1, 1/2 in ViTDet.
        num_extra: coarser maps behind them, for proposals only; 1 in ViTDet.
        anchor_scale: side of an anchor in pixels of its map; 8 in Mask R-CNN.
        anchor_ratios: heights over widths.
        rpn_convs: convolutions of the proposal head; 2 in ViTDet.
        box_convs: convolutions of the box head in front of its linear layers; 4 in ViTDet.
        box_fcs: linear layers of the box head; 1 in ViTDet.
        fc_channels: their width; 1024 in ViTDet.
        mask_convs: convolutions of the mask head; 4.
        num_proposals: that are kept of a picture, in training and in testing; 1000.
        num_anchors: that the proposal head learns from, of a picture; 256.
        num_rois: that the box head learns from, of a picture; 512.
        score_threshold: of boxes that are kept in testing; 0.05 in mmdet. AP wants low scores as well.
    """

    channels: int = 64
    factors: Sequence[float] = (2.0, 1.0, 0.5)
    num_extra: int = 0
    anchor_scale: float = 4.0
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    rpn_convs: int = 1
    box_convs: int = 0
    box_fcs: int = 2
    fc_channels: int = 128
    mask_convs: int = 1
    num_proposals: int = 100
    num_anchors: int = 32
    num_rois: int = 32
    score_threshold: float = 0.01

    def check(self) -> None:
        """Raise UserError for values that cannot be meant."""
        for name in ("channels", "anchor_scale", "fc_channels", "num_proposals", "num_anchors", "num_rois"):
            if getattr(self, name) <= 0:
                raise UserError(f"detector.{name}={getattr(self, name)} must be above 0")
        for name in ("num_extra", "rpn_convs", "box_convs", "box_fcs", "mask_convs"):
            if getattr(self, name) < 0:
                raise UserError(f"detector.{name}={getattr(self, name)} must be 0 or more")
        if not self.factors or any(factor not in FACTORS for factor in self.factors):
            raise UserError(f"detector.factors={list(self.factors)} must be some of {list(FACTORS)}, falling")
        if not self.anchor_ratios or min(self.anchor_ratios) <= 0:
            raise UserError(f"detector.anchor_ratios={list(self.anchor_ratios)} must be above 0, at least one")
        if not 0 <= self.score_threshold < 1:
            raise UserError(f"detector.score_threshold={self.score_threshold} must be at least 0 and below 1")


@dataclass(frozen=True)
class DetectionConfig:
    """A detector on an encoder, and how it is trained.

    Attributes:
        detector: sizes of Mask R-CNN.
        backbone: how the encoder serves it.
        img_size: side of the square canvas in pixels; None takes the encoder's own picture size.
        jitter: smallest and largest factor of large-scale jitter; None trains on pictures as they are.
        flip: mirror half of the training pictures.
        lr: peak rate of all that stands behind the encoder's last block; it does not depend on `batch_size`.
        layer_decay: factor of the rate from one block to the one in front of it.
        weight_decay: AdamW's, of matrices.
        beta1: AdamW's first moment.
        beta2: AdamW's second moment.
        warmup_steps: optimiser steps of linear warm-up.
        warmup_start_lr: rate of the first step, on the scale of `lr`.
        min_lr: rate of the last step, likewise.
        clip: bound of the gradient's norm; None does not clip, as ViTDet's recipe.
        epochs: passes over the training set.
        batch_size: pictures that are computed at once.
        accumulate: so many of these batches make an optimiser step.
        precision: of encoder and pyramid: "bf16" is autocast over fp32 weights; the heads are fp32.
        masks: whether masks are learned and scored; boxes always are.
        check_every_epochs: how often held-out pictures are scored while training; 0 never.
        num_held_out: training pictures that are not trained on but looked at then, for the learning curve.
    """

    detector: MaskRCNNConfig = field(default_factory=MaskRCNNConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    img_size: int | None = None
    jitter: tuple[float, float] | None = None
    flip: bool = True
    lr: float = 1e-3
    layer_decay: float = 0.8
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_steps: int = 50
    warmup_start_lr: float = 1e-6
    min_lr: float = 1e-6
    clip: float | None = 5.0
    epochs: int = 2
    batch_size: int = 16
    accumulate: int = 1
    precision: Precision = "fp32"
    masks: bool = True
    check_every_epochs: int = 1
    num_held_out: int = 200

    def check(self) -> None:
        """Raise UserError for values that cannot be meant."""
        self.detector.check()
        self.backbone.check()
        for name in ("lr", "epochs", "batch_size", "accumulate", "clip", "img_size", "layer_decay"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"train.{name}={value} must be above 0")
        if self.layer_decay > 1:
            raise UserError(f"train.layer_decay={self.layer_decay} must be at most 1: earlier layers learn slower")
        for name in ("weight_decay", "warmup_steps", "warmup_start_lr", "min_lr", "check_every_epochs", "num_held_out"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name}={getattr(self, name)} must not be negative")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)} must be at least 0 and below 1")
        if self.jitter is not None and not 0 < self.jitter[0] <= self.jitter[1]:
            raise UserError(f"train.jitter={list(self.jitter)} must be two factors above 0, the smaller first")
        if self.min_lr > self.lr:
            raise UserError(f"train.min_lr={self.min_lr} is above train.lr={self.lr}")
