"""Precision@k, mean IoU, intervals over pictures and paired differences, against cases worked out by hand."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou as torchvision_iou

from evals.grounding.expressions import Expression, Located
from evals.grounding.metrics import Placed, box_iou, paired_difference, paired_iou, place
from evals.statistics import picture_interval
from pretrain.rng import draw_rng


def expression(sent_id, box, *, image_id=1):
    return Expression("it", box, image_id=image_id, sent_id=sent_id, ref_id=sent_id, ann_id=sent_id)


def located(sent_id, *scored):
    """Pairs of a score and a box, in the order that they are given."""
    boxes = np.array([box for _, box in scored], dtype=np.float32).reshape(-1, 4)
    return Located(sent_id, boxes, np.array([score for score, _ in scored], dtype=np.float32))


def by_hand():
    """Three sentences on two pictures; IoUs by falling score:

    7: the object is 10 x 10. 0.9: beside it, IoU 0. 0.5: the upper six rows of it, 60 / 100. 0.2: the object, 1.
       Wrong at 1, right at 5 and at 10.
    8: the object is 10 x 10. 0.9: four rows of it, 0.4. Four boxes elsewhere. The sixth, 0.1: the object. Right at 10 only.
    9: the object is 4 x 4. The only box has twice its height: 16 / 32, exactly 0.5. Right.

    Right at 1: 1 of 3; at 5: 2 of 3; at 10: all. Mean IoU of the first boxes: (0 + 0.4 + 0.5) / 3 = 0.3.
    """
    expressions = [
        expression(7, (0.0, 0.0, 10.0, 10.0)),
        expression(8, (10.0, 10.0, 20.0, 20.0)),
        expression(9, (0.0, 0.0, 4.0, 4.0), image_id=2),
    ]
    elsewhere = [(0.2 + 0.1 * number, (50.0, 50.0, 60.0, 60.0)) for number in range(4)]
    answers = [
        located(9, (0.3, (0, 0, 4, 8))),
        located(8, (0.1, (10, 10, 20, 20)), *elsewhere, (0.9, (10, 10, 20, 14))),
        located(7, (0.2, (0, 0, 10, 10)), (0.9, (20, 20, 30, 30)), (0.5, (0, 0, 10, 6))),
    ]
    return expressions, answers


def test_three_sentences_by_hand():
    placed = place(*by_hand())
    assert len(placed) == 3
    assert placed.image_id_N.tolist() == [1, 1, 2]
    assert [placed.right_N[k].tolist() for k in (1, 5, 10)] == [
        [False, False, True],
        [True, False, True],
        [True, True, True],
    ]
    assert placed.precision() == pytest.approx(100 / 3)
    assert placed.precision(5) == pytest.approx(200 / 3)
    assert placed.precision(10) == 100
    assert placed.best_iou_N == pytest.approx([0, 0.4, 0.5])
    assert placed.mean_iou() == pytest.approx(30)
    assert placed.estimate(5).value == pytest.approx(200 / 3)
    assert placed.estimate_iou().value == pytest.approx(30)


def test_the_scores_decide_whatever_the_order():
    expressions, answers = by_hand()
    wanted = place(expressions, answers)
    rng = np.random.default_rng(0)
    for _ in range(5):
        orders = [rng.permutation(len(answer.score_K)) for answer in answers]
        shuffled = [Located(a.sent_id, a.box_K4[o], a.score_K[o]) for a, o in zip(answers, orders, strict=True)]
        found = place(expressions, shuffled)
        assert found.best_iou_N.tolist() == wanted.best_iou_N.tolist()
        assert all(np.array_equal(found.right_N[k], wanted.right_N[k]) for k in (1, 5, 10))
    # of equal scores the first box counts
    tied = [located(7, (0.5, (0, 0, 10, 10)), (0.5, (20, 20, 30, 30)))]
    assert place(expressions[:1], tied).precision(1) == 100
    assert place(expressions[:1], [Located(7, tied[0].box_K4[::-1], tied[0].score_K)]).precision(1) == 0


@pytest.mark.parametrize(("height", "right"), [(8.0, True), (8.01, False), (2.0, True), (1.99, False)])
def test_iou_of_one_half_is_right(height, right):
    """A box of height h against one of 4 x 4 at the same corner: IoU is 4 / h or h / 4. mmdet's RefExpMetric has ">=" too."""
    found = place([expression(1, (0.0, 0.0, 4.0, 4.0))], [located(1, (1.0, (0, 0, 4, height)))])
    assert bool(found.right_N[1][0]) is right


def test_iou_is_torchvisions():
    rng = np.random.default_rng(0)
    low, side = rng.uniform(0, 20, (2, 9, 2)), rng.uniform(0.5, 12, (2, 9, 2))
    one, other = np.concatenate([low, low + side], axis=-1)
    wanted = torchvision_iou(torch.from_numpy(one), torch.from_numpy(other)).numpy()
    assert (wanted > 0).any()
    assert (wanted == 0).any()
    assert np.allclose(box_iou(one, other), wanted)
    assert np.allclose(paired_iou(one, other), np.diag(wanted))
    empty = np.array([[3.0, 3.0, 3.0, 9.0], [5.0, 5.0, 2.0, 2.0]])  # no width; turned inside out
    assert box_iou(empty, np.concatenate([empty, [[0, 0, 9, 9]]])).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert paired_iou(empty, empty).tolist() == [0, 0]


def test_no_box_is_a_wrong_answer():
    expressions, answers = by_hand()
    found = place(expressions, [*answers[:2], located(7)])
    assert found.best_iou_N[0] == 0
    assert not any(found.right_N[k][0] for k in (1, 5, 10))


def test_answers_that_are_not_one_each():
    expressions, answers = by_hand()
    for wrong in (answers[:2], [*answers, answers[0]], [*answers[:2], answers[0]], [*answers, located(10)]):
        with pytest.raises(ValueError, match=rf"{len(wrong)} answers .* to 3 expressions"):
            place(expressions, wrong)
    with pytest.raises(ValueError, match="sentence 7: a score is no number"):
        place(expressions, [*answers[:2], located(7, (float("nan"), (0, 0, 1, 1)))])


def test_the_interval_is_that_of_a_loop():
    rng = np.random.default_rng(1)
    image_id_N, value_N = rng.integers(0, 7, 30) * 11, rng.uniform(0, 1, 30)
    names = np.unique(image_id_N)
    draws = draw_rng(3, "grounding/resample", 0).multinomial(len(names), [1 / len(names)] * len(names), 400)
    means = []
    for draw in draws:
        values = [v for name, times in zip(names, draw, strict=True) for v in list(value_N[image_id_N == name]) * times]
        means.append(100 * sum(values) / len(values))
    wanted = np.percentile(means, [2.5, 97.5])
    assert picture_interval(value_N, image_id_N, seed=3, num=400) == pytest.approx(tuple(wanted))
    assert picture_interval(value_N, image_id_N, seed=4, num=400) != pytest.approx(tuple(wanted))


def test_few_numbers_at_once_are_the_same_interval(monkeypatch):
    rng = np.random.default_rng(2)
    value_N, image_id_N = rng.uniform(0, 1, 20), np.arange(20) // 2
    wanted = picture_interval(value_N, image_id_N)
    monkeypatch.setattr("evals.statistics._MAX_CELLS", 70)
    assert picture_interval(value_N, image_id_N) == pytest.approx(wanted)


def test_pictures_are_drawn_not_sentences():
    """One picture with 99 right sentences, one with a wrong one. A quarter of the draws has the first twice (100%), a quarter
    the second twice (0%). Over sentences it would be about 97% to 100%."""
    right_N = np.array([True] * 99 + [False])
    assert picture_interval(right_N, np.array([5] * 99 + [2])) == (0.0, 100.0)
    low, high = picture_interval(right_N, np.arange(100))
    assert 96 < low < 98.5
    assert high == 100


def placed(right, image_id_N):
    right_N = np.array(right, dtype=bool)
    return Placed(np.array(image_id_N), right_N.astype(float), {1: right_N})


def test_a_paired_difference():
    """4 sentences on 2 pictures, 3 right against 1 right: 50 points. By picture the differences are 1 of 2 and 1 of 2, so any
    draw of pictures has 50 points too. The intervals of the two models overlap all the same."""
    first, second = placed([1, 1, 0, 1], [3, 3, 4, 4]), placed([1, 0, 0, 0], [3, 3, 4, 4])
    found = paired_difference(first, second)
    assert (found.value, found.interval) == (50, (50, 50))
    assert first.estimate().interval == (50, 100)
    assert second.estimate().interval == (0, 50)
    back = paired_difference(second, first)
    assert (back.value, back.interval) == (-50, (-50, -50))
    assert paired_difference(first, first).interval == (0, 0)
    with pytest.raises(ValueError, match="same expressions in the same order"):
        paired_difference(first, placed([1, 0, 0, 0], [3, 4, 4, 4]))
