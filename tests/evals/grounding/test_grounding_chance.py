"""What is right without looking, against cases worked out by hand."""

from itertools import product

import numpy as np
import pytest

from evals.grounding import chance
from evals.grounding.chance import all_chances, best_constant_box, chance_levels, random_object, relative_boxes
from evals.grounding.expressions import Expression
from evals.grounding.metrics import box_iou


class FewRefs:
    """What chance asks of a split: expressions, sizes (height, width) and objects of pictures.

    Args:
        sizes: of each picture.
        objects: boxes of all objects of each picture.
        referred: picture and box of each expression.
    """

    def __init__(self, sizes, referred, objects=None, *, split="test"):
        self.split, self.sizes, self.found = split, sizes, objects or {}
        self.expressions = [
            Expression("it", box, image_id=image_id, sent_id=number, ref_id=number, ann_id=number)
            for number, (image_id, box) in enumerate(referred)
        ]
        self.image_ids = np.array(sorted({image_id for image_id, _ in referred}))

    def size(self, image_id):
        return self.sizes[image_id]

    def objects(self, image_id):
        return np.array(self.found.get(image_id, []), dtype=np.float32).reshape(-1, 4)


def test_shares_of_width_and_height():
    """The first picture is 20 high and 40 wide."""
    few = FewRefs({1: (20, 40), 2: (10, 5)}, [(2, (0.0, 5.0, 5.0, 10.0)), (1, (10.0, 5.0, 20.0, 15.0))])
    assert relative_boxes(few).tolist() == [[0, 0.5, 1, 1], [0.25, 0.25, 0.5, 0.75]]


def test_the_constant_box_by_hand():
    """Three objects at the same place and one in the corner, which no box can reach together with them: 3 of 4."""
    boxes = np.array([[0.2, 0.3, 0.6, 0.5]] * 3 + [[0.9, 0.9, 1.0, 1.0]])
    found = best_constant_box(boxes)
    assert (box_iou(np.array(found), boxes)[0] >= 0.5).tolist() == [True, True, True, False]
    assert all(0 <= side <= 1 for side in found)


def test_no_box_of_a_finer_grid_is_much_better():
    rng = np.random.default_rng(0)
    centre, side = rng.normal(0.45, 0.13, (150, 2)), rng.uniform(0.2, 0.6, (150, 2))
    boxes = np.clip(np.concatenate([centre - side / 2, centre + side / 2], axis=1), 0, 1)
    fine = np.arange(0.2, 0.71, 0.05)
    every = np.array([(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in product(fine, repeat=4)])
    wanted = (box_iou(every.clip(0, 1), boxes) >= 0.5).mean(1).max()
    found = best_constant_box(boxes)
    reached = (box_iou(np.array(found), boxes) >= 0.5).mean()
    assert reached >= wanted - 0.02
    # no step of the refinement gains
    x0, y0, x1, y1 = found
    for dx, dy, dw, dh in product((-0.01, 0, 0.01), repeat=4):
        moved = np.array((x0 + dx - dw / 2, y0 + dy - dh / 2, x1 + dx + dw / 2, y1 + dy + dh / 2)).clip(0, 1)
        assert (box_iou(moved, boxes) >= 0.5).mean() <= reached


def test_of_many_boxes_some_are_searched_and_all_decide(monkeypatch):
    """The sample of 20 is the same each time; 15 of 16 boxes are at one place, so any sample finds it."""
    boxes = np.array(([[0.2, 0.3, 0.6, 0.5]] * 15 + [[0.9, 0.9, 1.0, 1.0]]) * 10)
    monkeypatch.setattr(chance, "_MAX_BOXES", 20)
    found = best_constant_box(boxes)
    assert found == best_constant_box(boxes)
    assert (box_iou(np.array(found), boxes) >= 0.5).mean() == 15 / 16


def test_levels_by_hand():
    """The constant box is the upper left quarter. On a picture 20 high and 40 wide that is the object itself; with the second
    object, half as high as the box, it has IoU 0.5; the third is elsewhere: 2 of 3.

    Each object is the only one of its kind. The first picture has one object: 1. The second has two: 1/2 for either. 2/3 on the
    whole.
    """
    referred = [(1, (0.0, 0.0, 20.0, 10.0)), (2, (0.0, 0.0, 50.0, 25.0)), (2, (50.0, 50.0, 100.0, 100.0))]
    objects = {1: [referred[0][1]], 2: [referred[1][1], referred[2][1]]}
    found = chance_levels((0.0, 0.0, 0.5, 0.5), FewRefs({1: (20, 40), 2: (100, 100)}, referred, objects))
    assert found.constant == pytest.approx(200 / 3)
    assert found.random_object == pytest.approx(200 / 3)
    assert found.constant_box == (0.0, 0.0, 0.5, 0.5)


def test_any_object_at_random_by_hand():
    """Three objects on picture 1: A, B elsewhere, and C, 8 of A's 10 rows. A is right with A or C (2/3), B with B only (1/3).
    Picture 2 has one object (1). Picture 3 has none that counts, only a crowd (0). (2/3 + 1/3 + 1 + 0) / 4 = 1/2."""
    a, b, c = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 30.0, 30.0), (0.0, 0.0, 10.0, 8.0)
    sizes = dict.fromkeys((1, 2, 3), (40, 40))
    few = FewRefs(sizes, [(1, a), (1, b), (2, a), (3, a)], {1: [a, b, c], 2: [a]})
    assert random_object(few) == pytest.approx(50)


def test_the_constant_box_is_chosen_on_the_training_split():
    """All training objects are upper left, all others lower right: a box that had looked at those would be right."""
    upper, lower = (0.0, 0.0, 12.0, 12.0), (28.0, 28.0, 40.0, 40.0)
    splits = [
        FewRefs({1: (40, 40)}, [(1, box)], {1: [box]}, split=split) for split, box in (("val", lower), ("test", upper))
    ]
    found = all_chances(FewRefs({1: (40, 40)}, [(1, upper)] * 3, split="train"), splits)
    assert {split: level.constant for split, level in found.items()} == {"val": 0, "test": 100}
    assert found["val"].constant_box == found["test"].constant_box
