"""What goes into mmdet's detectors and comes out of them.

Shape letters: B batch, C channels, S side of the canvas, N objects, K detections.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from evals.detection.mmdet_setup import use_mmdet
from evals.detection.samples import Detections, Sample
from pretrain.types import ImageSpec


def normalised(samples: Sequence[Sample], spec: ImageSpec) -> Tensor:
    """Canvases as the encoder wants them, [B, C, S, S]; what no picture covers is 0, its mean, as mmdet pads."""
    image_BCSS = spec.normalise(torch.stack([sample.image_CSS for sample in samples]))
    for image_CSS, sample in zip(image_BCSS, samples, strict=True):
        height, width = sample.content_hw
        image_CSS[:, height:] = 0
        image_CSS[:, :, width:] = 0
    return image_BCSS


def data_sample(
    sample: Sample,
    *,
    masks: bool = False,
    truth: bool = True,
    text: str | None = None,
    tokens_positive: Any = None,
    stride: int = 1,
) -> Any:
    """mmdet's DetDataSample of a picture, in pixels of the canvas: sizes and, with `truth`, objects and crowds.

    Args:
        sample: the picture.
        masks: whether masks are among what is told.
        truth: False for predictions.
        text: the prompt, of detectors that read one.
        tokens_positive: what in the prompt an object's label stands for: in training label -> [[first character, character behind
            the last], ...]; -1 at prediction makes all of the prompt one name.
        stride: pixels of a patch, of detectors that count in shares of the maps: these cover whole patches, so that the canvas is
            told to reach as far as they do.
    """
    use_mmdet()
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    side = tuple(-(-one // stride) * stride for one in sample.image_CSS.shape[-2:])
    about: dict[str, Any] = {
        "img_id": sample.image_id,
        "img_shape": sample.content_hw,
        "pad_shape": side,
        "batch_input_shape": side,
        "ori_shape": sample.original_hw,
        "scale_factor": sample.scale_xy,
    }
    # mmdet asks whether they are there
    about |= {} if text is None else {"text": text}
    about |= {} if tokens_positive is None else {"tokens_positive": tokens_positive}
    told = DetDataSample(metainfo=about)
    if truth:
        objects = sample.objects
        told.gt_instances = InstanceData(bboxes=objects.box_N4, labels=objects.label_N)
        if masks:
            told.gt_instances.masks = BitmapMasks(objects.mask_NHW.cpu().numpy().astype(np.uint8), *side)
        told.ignored_instances = InstanceData(bboxes=objects.crowd_M4)
    return told


def detections(predicted: Sequence[Any], *, masks: bool) -> list[Detections]:
    """mmdet's predictions, made with `rescale`, by falling score; masks run-length encoded."""
    found = []
    for one in predicted:
        instances = one.pred_instances
        order_K = instances.scores.argsort(descending=True, stable=True)
        encoded = None
        if masks:
            mask_KHW = instances.masks[order_K].to(torch.uint8).cpu().numpy()
            encoded = coco_mask.encode(np.asfortranarray(mask_KHW.transpose(1, 2, 0))) if len(mask_KHW) else []
        found.append(
            Detections(
                image_id=int(one.img_id),
                box_K4=instances.bboxes[order_K].float().cpu().numpy(),
                score_K=instances.scores[order_K].float().cpu().numpy(),
                label_K=instances.labels[order_K].cpu().numpy(),
                masks=encoded,
            )
        )
    return found
