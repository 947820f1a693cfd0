"""What grounding asks and what models answer: one sentence, one box.

Boxes are x0, y0, x1, y1 in pixels of the file's picture, y downwards; x1 and y1 lie behind the last pixel.

Shape letters: K boxes.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Expression:
    """A sentence that holds for one object of a picture, as RefCOCO's releases have it.

    Attributes:
        text: the sentence, as annotators wrote it ("sent": lower-cased, without punctuation).
        box: of its object, inside the picture.
        image_id: COCO's.
        sent_id: of the sentence; single in a data set.
        ref_id: of the object's entry: its sentences share it.
        ann_id: of the object's annotation.
    """

    text: str
    box: tuple[float, float, float, float]
    image_id: int
    sent_id: int
    ref_id: int
    ann_id: int


@dataclass(frozen=True)
class Located:
    """Where a model places a sentence: its boxes, by falling score (a light head has one).

    Attributes:
        sent_id: of the sentence.
        box_K4: float32.
        score_K: float32.
    """

    sent_id: int
    box_K4: np.ndarray
    score_K: np.ndarray
