import copy
from dataclasses import replace

import numpy as np
import pytest
from coco_cases import SHAPE_IDS, made_detections, made_truth, perturbed, scenes_truth

from evals.detection import intervals as module
from evals.detection.coco_eval import score
from evals.detection.intervals import average_precision, intervals, match, paired_difference, resample
from pretrain.types import UserError

METRICS = ("ap", "ap50", "ap75")


def some_crowds(ground_truth):
    changed = copy.deepcopy(ground_truth)
    for annotation in changed["annotations"][::9]:
        annotation["iscrowd"] = 1
    return changed


@pytest.fixture(scope="module")
def case():
    """40 scenes with crowds, a class without objects, and detections."""
    truth = some_crowds(scenes_truth("test", 40))
    truth["annotations"] = [one for one in truth["annotations"] if one["category_id"] != 5]
    return truth, perturbed(truth, SHAPE_IDS, seed=2)


def repeated(truth, detections, weights):
    """Ground truth and detections in which each picture is there as often as its weight says."""
    images, annotations, found = [], [], []
    by_picture = {one.image_id: one for one in detections}
    for image, weight in zip(sorted(truth["images"], key=lambda image: image["id"]), weights, strict=True):
        for _ in range(weight):
            new = len(images) + 1
            images.append(image | {"id": new})
            own = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
            annotations += [one | {"image_id": new, "id": len(annotations) + 1 + k} for k, one in enumerate(own)]
            found.append(replace(by_picture[image["id"]], image_id=new))
    return truth | {"images": images, "annotations": annotations}, found


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("backend", ["pycocotools", "auto"])
def test_pictures_as_they_are_give_cocos_own_numbers(case, kind, backend):
    truth, detections = case
    matches = match(truth, detections, category_ids=SHAPE_IDS, kind=kind)
    found = average_precision(matches, np.ones((1, 40), dtype=np.int64))
    scores = score(truth, detections, category_ids=SHAPE_IDS, kind=kind, backend=backend)
    assert scores.ap > 5
    for name in METRICS:
        assert found[name][0] == pytest.approx(getattr(scores, name), abs=1e-9)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_weights_are_repeated_pictures(case, kind, monkeypatch):
    """Against pycocotools on pictures that are really there several times or not at all; in several parts, too."""
    truth, detections = case
    monkeypatch.setattr(module, "_MAX_CELLS", 100)
    weight_SI = resample(40, num=3, seed=1)
    assert weight_SI.shape == (3, 40)
    assert (weight_SI.sum(1) == 40).all()
    assert weight_SI.max() > 2
    assert weight_SI.min() == 0
    found = average_precision(match(truth, detections, category_ids=SHAPE_IDS, kind=kind), weight_SI)
    for row, weights in enumerate(weight_SI):
        scores = score(*repeated(truth, detections, weights), category_ids=SHAPE_IDS, kind=kind, backend="pycocotools")
        for name in METRICS:
            assert found[name][row] == pytest.approx(getattr(scores, name), abs=1e-9)


def test_classes_go_by_their_own_number():
    """Class 0 is category 20."""
    truth = made_truth([(1, 0, (0, 0, 10, 10), False), (1, 1, (50, 50, 60, 60), False), (1, 1, (0, 0, 9, 9), False)])
    matches = match(truth, [made_detections(1, [(0, 0.9, (50, 50, 60, 60))])], category_ids=(20, 10))
    assert [one.objects_I.tolist() for one in matches.classes] == [[2], [1]]
    assert [one.right_TD.sum() for one in matches.classes] == [10, 0]


def test_intervals_hold_the_value_and_shrink_with_more_pictures():
    """Four times as many pictures of the same kind: about half as wide."""
    widths = []
    for num in (60, 240):
        truth = scenes_truth("test", num)
        detections = perturbed(truth, SHAPE_IDS, seed=3)
        matches = match(truth, detections, category_ids=SHAPE_IDS)
        scores = score(truth, detections, category_ids=SHAPE_IDS)
        found = intervals(matches)
        assert list(found) == list(METRICS)
        for name, (low, high) in found.items():
            assert low < getattr(scores, name) < high
        widths.append(found["ap"][1] - found["ap"][0])
        assert found == intervals(matches)
        assert found != intervals(matches, seed=1)
    assert 0.35 < widths[1] / widths[0] < 0.7


def test_agrees_with_a_loop_over_resamples(case):
    """The percentiles of AP on resamples that pycocotools scored one by one, moved by what their mean is off."""
    truth, detections = case
    drawn = [
        score(*repeated(truth, detections, weights), category_ids=SHAPE_IDS).ap
        for weights in resample(40, num=25, seed=4)
    ]
    found = intervals(match(truth, detections, category_ids=SHAPE_IDS), num=25, seed=4)["ap"]
    off = np.mean(drawn) - score(truth, detections, category_ids=SHAPE_IDS).ap
    assert off > 0.1
    assert found == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5]) - off), abs=1e-9)


def test_a_resample_without_any_object_counts_for_nothing():
    """One object on one of two pictures: AP is 100 where its picture is drawn, and is not defined otherwise."""
    truth = made_truth([(1, 0, (0, 0, 10, 10), False)], num_images=2)
    matches = match(truth, [made_detections(1, [(0, 0.9, (0, 0, 10, 10))])], category_ids=(10, 20))
    found = average_precision(matches, np.array([[0, 2], [1, 1]]))["ap"]
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(100)
    assert intervals(matches)["ap"] == pytest.approx((100, 100))


def test_nothing_annotated_has_no_interval_and_nothing_found_is_zero():
    assert intervals(match(made_truth([], num_images=3), [], category_ids=(10, 20))) == {}
    truth = made_truth([(k, 0, (0, 0, 10, 10), False) for k in (1, 2, 3)])
    assert intervals(match(truth, [], category_ids=(10, 20))) == dict.fromkeys(METRICS, (0.0, 0.0))


class TestPairedDifference:
    def test_value_and_interval(self, case):
        """A detector without its less certain half: the interval of the difference is narrower than either's own."""
        truth, detections = case
        fewer = [
            replace(
                one,
                box_K4=one.box_K4[: len(one) // 2],
                score_K=one.score_K[: len(one) // 2],
                label_K=one.label_K[: len(one) // 2],
                masks=one.masks[: len(one) // 2],
            )
            for one in detections
        ]
        first, second = (match(truth, some, category_ids=SHAPE_IDS) for some in (detections, fewer))
        found = paired_difference(first, second)
        for name in METRICS:
            value, (low, high) = found[name].value, found[name].interval
            scores = [getattr(score(truth, some, category_ids=SHAPE_IDS), name) for some in (detections, fewer)]
            assert value == pytest.approx(scores[0] - scores[1], abs=1e-9)
            assert low < value < high
            assert high - low < np.subtract(*intervals(first)[name][::-1])
        assert found["ap50"].interval[0] > 0
        other = paired_difference(second, first)["ap"]
        assert (other.value, *other.interval) == pytest.approx(
            (-found["ap"].value, *(-v for v in found["ap"].interval[::-1]))
        )

    def test_a_detector_does_not_differ_from_itself(self, case):
        matches = match(case[0], case[1], category_ids=SHAPE_IDS)
        assert all((one.value, one.interval) == (0, (0, 0)) for one in paired_difference(matches, matches).values())

    def test_other_pictures_or_objects_are_refused(self, case):
        truth, detections = case
        matches = match(truth, detections, category_ids=SHAPE_IDS)
        other = match(scenes_truth("test", 39), [], category_ids=SHAPE_IDS)
        with pytest.raises(UserError, match=r"40 and 39 pictures .* the same ground truth"):
            paired_difference(matches, other)
        fewer = match(truth | {"annotations": truth["annotations"][:-1]}, [], category_ids=SHAPE_IDS)
        with pytest.raises(UserError, match="the same ground truth"):
            paired_difference(matches, fewer)


def test_no_resamples_are_refused():
    with pytest.raises(UserError, match="0 resamples of 5 pictures; both must be 1 or more"):
        resample(5, num=0)
