"""What a trained light head answers, and two controls: another picture, another sentence.

Shape letters: B sentences, X expressions of a split.
"""

import numpy as np
import torch

from evals.grounding.expressions import Located
from evals.grounding.feeding import LightSplit
from evals.grounding.metrics import MIN_IOU
from evals.grounding.module import LightModule, relative_corners, relative_iou
from pretrain.data.terminal import progress_bar
from pretrain.rng import draw_rng

#: Sentences at once.
SCORE_BATCH = 256


@torch.no_grad()
def answer(module: LightModule, split: LightSplit) -> list[Located]:
    """The head's box for each usable expression of a split, in pixels of the file's picture; its score says nothing (1)."""
    device, located = next(module.parameters()).device, []
    expressions = split.dataset.expressions
    with progress_bar() as bar:
        task = bar.add_task(f"score {split.dataset.name} {split.dataset.split}", total=len(split.usable_X))
        for number_B in _parts(split.usable_X):
            corners_B4 = relative_corners(module(split.batch(number_B).to(device)))
            for number, corners in zip(number_B.tolist(), corners_B4, strict=True):
                height, width = split.dataset.size(expressions[number].image_id)
                box_14 = (corners * (width, height, width, height))[None].astype(np.float32)
                located.append(Located(expressions[number].sent_id, box_14, np.ones(1, dtype=np.float32)))
            bar.advance(task, len(number_B))
    return located


def controls(module: LightModule, split: LightSplit, *, seed: int) -> dict[str, float]:
    """Precision@1 in percent where the head gets another picture, or another sentence, than those that are scored.

    With "other_picture" only the sentence can help. With "other_sentence", one about another object of the same picture, only the
    picture can. What a head scores above both, it owes to having read the one and looked at the other. Expressions without such
    a picture or sentence are left out of them; a control that is left without any is absent.
    """
    rng = draw_rng(seed, "grounding/controls", 0)
    usable_X = split.usable_X
    shuffled_X = usable_X[rng.permutation(len(usable_X))]
    other_X = split.picture_X[shuffled_X] != split.picture_X[usable_X]
    own_X, sentence_X = _other_sentences(split, rng)
    found = {}
    if other_X.any():
        found["other_picture"] = _precision(module, split, usable_X[other_X], pictures_X=shuffled_X[other_X])
    if len(own_X):
        found["other_sentence"] = _precision(module, split, own_X, texts_X=sentence_X)
    return found


@torch.no_grad()
def _precision(
    module: LightModule,
    split: LightSplit,
    number_X: np.ndarray,
    *,
    pictures_X: np.ndarray | None = None,
    texts_X: np.ndarray | None = None,
) -> float:
    device, right = next(module.parameters()).device, []
    for part in _parts(np.arange(len(number_X))):
        batch = split.batch(
            number_X[part],
            picture_from_B=None if pictures_X is None else pictures_X[part],
            text_from_B=None if texts_X is None else texts_X[part],
        ).to(device)
        right.append(relative_iou(module(batch), batch.box_B4) >= MIN_IOU)
    return 100 * float(np.concatenate(right).mean())


def _other_sentences(split: LightSplit, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Expressions on whose picture another object is referred to, and for each a sentence about such an object."""
    expressions, by_picture = split.dataset.expressions, {}
    for number in split.usable_X.tolist():
        by_picture.setdefault(expressions[number].image_id, []).append(number)
    own, other = [], []
    for number in split.usable_X.tolist():
        same_picture, ann_id = by_picture[expressions[number].image_id], expressions[number].ann_id
        if near := [n for n in same_picture if expressions[n].ann_id != ann_id]:
            own.append(number)
            other.append(near[int(rng.integers(len(near)))])
    return np.array(own, dtype=np.int64), np.array(other, dtype=np.int64)


def _parts(number_X: np.ndarray) -> list[np.ndarray]:
    return np.array_split(number_X, max(1, -(-len(number_X) // SCORE_BATCH)))
