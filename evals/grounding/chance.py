"""What is right without looking: the best constant box, and any object of the picture at random.

A head that has learned nothing but where objects tend to be scores as the constant box does; a head that finds objects but does
not understand the sentence scores as a random object does. Only what is above both has used the picture and the sentence.

Shape letters: N expressions, C candidates.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np

from evals.grounding.metrics import MIN_IOU, box_iou, paired_iou
from evals.grounding.ref_set import RefSet
from pretrain.rng import draw_rng

Box = tuple[float, float, float, float]
#: The coarse grid is searched on so many training boxes at most, and holds centres and sides at these steps.
_MAX_BOXES = 5000
_CENTRES = np.linspace(0.15, 0.85, 8)
_SIDES = np.array([0.15, 0.22, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0])
#: Steps of the refinement, each tried up and down on centre and sides until nothing gains.
_STEPS = (0.05, 0.02, 0.01)


@dataclass(frozen=True)
class Chance:
    """Percent right at IoU 0.5 without looking.

    Attributes:
        constant: of one box for all expressions.
        constant_box: that box, chosen on the training split, in shares of the picture's width and height.
        random_object: expectation where any annotated object of the picture is taken at random.
    """

    constant: float
    constant_box: Box
    random_object: float

    def plain(self) -> dict[str, float | list[float]]:
        """As rows of results keep it."""
        return {**asdict(self), "constant_box": list(self.constant_box)}


def relative_boxes(dataset: RefSet) -> np.ndarray:
    """float64 [N, 4]: each expression's box in shares of its picture's width and height. IoU is the same in them."""
    box_N4 = np.array([expression.box for expression in dataset.expressions], dtype=np.float64)
    sizes = {int(i): dataset.size(int(i)) for i in dataset.image_ids}
    size_N2 = np.array([sizes[expression.image_id] for expression in dataset.expressions], dtype=np.float64)
    return box_N4 / size_N2[:, [1, 0, 1, 0]]


def best_constant_box(box_N4: np.ndarray, *, seed: int = 0) -> Box:
    """The box that is right for the largest share of `box_N4`: a grid of centres and sides, then refined step by step.

    Args:
        box_N4: relative boxes of a training split.
        seed: of the sample that the grid is searched on where there are many.
    """
    chosen_N4 = box_N4
    if len(box_N4) > _MAX_BOXES:
        chosen_N4 = box_N4[draw_rng(seed, "grounding/constant", 0).choice(len(box_N4), _MAX_BOXES, replace=False)]
    grid_C4 = np.array(list(product(_CENTRES, _CENTRES, _SIDES, _SIDES)))
    best = _best(grid_C4, chosen_N4)
    share = float(_shares(best[None], box_N4)[0])
    for step in _STEPS:
        while True:
            near_C4 = best + step * np.array([move for move in product((-1, 0, 1), repeat=4) if any(move)])
            near_C4 = near_C4[(near_C4[:, 2:] > 0).all(1)]
            candidate = _best(near_C4, box_N4)
            if (gained := float(_shares(candidate[None], box_N4)[0])) <= share:
                break
            best, share = candidate, gained
    x0, y0, x1, y1 = _corners(best[None])[0].tolist()
    return x0, y0, x1, y1


def _corners(centred_C4: np.ndarray) -> np.ndarray:
    """Centre and sides to corners, cut at the picture's edge."""
    half_C2 = centred_C4[:, 2:] / 2
    return np.clip(np.concatenate([centred_C4[:, :2] - half_C2, centred_C4[:, :2] + half_C2], axis=1), 0, 1)


def _shares(centred_C4: np.ndarray, box_N4: np.ndarray) -> np.ndarray:
    return (box_iou(_corners(centred_C4), box_N4) >= MIN_IOU).mean(1)


def _best(centred_C4: np.ndarray, box_N4: np.ndarray) -> np.ndarray:
    """The candidate that is right most often, in parts that fit the memory."""
    parts = max(1, len(centred_C4) * len(box_N4) // 2_000_000)
    shares_C = np.concatenate([_shares(part, box_N4) for part in np.array_split(centred_C4, parts) if len(part)])
    return centred_C4[int(np.argmax(shares_C))]


def random_object(dataset: RefSet) -> float:
    """Percent right, in expectation, of an answer that is any annotated object of the expression's picture."""
    shares = []
    for expression in dataset.expressions:
        objects_M4 = dataset.objects(expression.image_id)
        right_M = box_iou(objects_M4, np.array(expression.box))[:, 0] >= MIN_IOU
        shares.append(float(right_M.mean()) if len(right_M) else 0.0)  # none, where the only one is a crowd region
    return 100 * float(np.mean(shares))


def all_chances(train: RefSet, scored: Sequence[RefSet]) -> dict[str, Chance]:
    """The levels of some splits by their names; a function of the data alone, so that all models have the same."""
    constant_box = best_constant_box(relative_boxes(train))
    return {part.split: chance_levels(constant_box, part) for part in scored}


def chance_levels(constant_box: Box, scored: RefSet) -> Chance:
    """Both levels on a split; `constant_box` was chosen on the training split."""
    box_N4 = relative_boxes(scored)
    right_N = paired_iou(np.broadcast_to(np.array(constant_box), box_N4.shape), box_N4) >= MIN_IOU
    return Chance(100 * float(right_N.mean()), constant_box, random_object(scored))
