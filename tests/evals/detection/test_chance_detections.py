import copy

import numpy as np
import pytest
from coco_cases import GroundTruthSet, made_truth, rectangle, scenes_truth
from pycocotools import mask as coco_mask

from evals.detection import chance
from evals.detection.chance import blind_detections
from evals.detection.coco_eval import score
from evals.detection.samples import Detections
from pretrain.types import UserError

LEFT, RIGHT, BELOW = (0, 0, 60, 100), (60, 0, 120, 100), (30, 60, 90, 100)


def test_by_hand():
    """Cats of four pictures: left, left, left, right; dogs: below on one. What matches most comes first.

    Scores: 3/4 (left), then 1/4 each (right; the dog, behind it since its class is). Nothing else is left to match.
    """
    train = made_truth(
        [
            *(
                (1, 0, RIGHT, False),
                (2, 0, LEFT, False),
                (3, 0, LEFT, False),
                (4, 0, LEFT, False),
                (4, 1, BELOW, False),
            ),
            (4, 0, (0, 0, 120, 50), True),  # a crowd is no object
        ]
    )
    test = made_truth([], size=(50, 240), num_images=2)  # twice as wide, half as high
    found = blind_detections(GroundTruthSet(train), GroundTruthSet(test), with_masks=True)
    assert [one.image_id for one in found] == [1, 2]
    for one in found:
        np.testing.assert_allclose(one.box_K4, [(0, 0, 120, 50), (120, 0, 240, 50), (60, 30, 180, 50)])
        np.testing.assert_allclose(one.score_K, [0.75, 0.25, 0.25])
        assert one.label_K.tolist() == [0, 0, 1]
        for mask, box in zip(one.masks, one.box_K4, strict=True):
            np.testing.assert_array_equal(coco_mask.decode(mask), coco_mask.decode(rectangle(box, (50, 240))))


def test_a_box_counts_for_the_overlaps_that_it_reaches():
    """Boxes of 100 and 80 rows: their overlap .8 is reached at seven of ten levels (.50 to .80).

    Two of 100 rows and one of 80: 100 rows first, 2 + .7 of 3 pictures; then 80 rows, for the three levels left.
    """
    rows = [(0, 0, 50, 100), (0, 0, 50, 100), (0, 0, 50, 80)]
    train = made_truth([(k, 0, box, False) for k, box in enumerate(rows, start=1)])
    (found,) = blind_detections(GroundTruthSet(train), GroundTruthSet(made_truth([], num_images=1)))
    np.testing.assert_allclose(found.box_K4, [rows[0], rows[2]])
    np.testing.assert_allclose(found.score_K, [2.7 / 3, 0.3 / 3], rtol=1e-6)
    assert found.masks is None


@pytest.fixture(scope="module")
def scenes():
    return scenes_truth("train", 400), scenes_truth("test", 150)


def test_is_better_than_a_plain_draw_of_training_objects(scenes):
    train, test = scenes
    sets = GroundTruthSet(train), GroundTruthSet(test)
    blind = blind_detections(*sets, with_masks=True)
    rng = np.random.default_rng(0)
    plain = []
    for image in test["images"]:
        drawn = [train["annotations"][k] for k in rng.choice(len(train["annotations"]), 100, replace=False)]
        box_K4 = np.array([one["bbox"] for one in drawn], np.float32)
        box_K4[:, 2:] += box_K4[:, :2]
        labels = np.array([one["category_id"] - 1 for one in drawn])
        often = np.bincount([one["category_id"] - 1 for one in train["annotations"]])
        masks = [one["segmentation"] for one in drawn]
        order = np.argsort(-often[labels], kind="stable")
        confidence = (often / often.sum())[labels[order]].astype(np.float32)
        plain.append(Detections(image["id"], box_K4[order], confidence, labels[order], [masks[k] for k in order]))
    for kind in ("box", "mask"):
        scores = [score(test, one, category_ids=sets[0].category_ids, kind=kind) for one in (blind, plain)]
        assert scores[0].ap50 > 1.5 * scores[1].ap50, kind
        assert 0 < scores[0].ap < 10, "that is more than one can know without a look"
    assert all(len(one) == 100 for one in blind)


def test_does_not_look_at_the_test_pictures_annotations(scenes):
    train, test = scenes
    hidden = GroundTruthSet(test | {"annotations": []})
    one, other = (blind_detections(GroundTruthSet(train), some, num=7) for some in (GroundTruthSet(test), hidden))
    for first, second in zip(one, other, strict=True):
        assert len(first) == 7
        np.testing.assert_array_equal(first.box_K4, second.box_K4)
        np.testing.assert_array_equal(first.box_K4, one[0].box_K4)  # nor at the picture
        assert (np.diff(first.score_K) <= 0).all()


def test_many_objects_are_drawn_from_by_seed(scenes, monkeypatch):
    train, test = (GroundTruthSet(one) for one in scenes)
    monkeypatch.setattr(chance, "_MAX_OBJECTS", 25)
    some = [blind_detections(train, test, seed=seed)[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(some[0].box_K4, some[1].box_K4)
    assert not np.array_equal(some[0].box_K4, some[2].box_K4)
    # those drawn stand for all: on half of the pictures there is a cat at the left
    same = GroundTruthSet(made_truth([(k, 0, LEFT, False) for k in range(1, 101)], num_images=200))
    assert blind_detections(same, same)[0].score_K.tolist() == [0.5]


def test_a_mask_is_where_most_of_its_objects_are():
    """Three cats in one box: two fill its upper half, one all of it. Half of the box is in each, the other half in a third."""
    train = made_truth([(k, 0, LEFT, False) for k in (1, 2, 3)])
    upper = (0, 0, 60, 50)
    for annotation in train["annotations"][:2]:
        annotation["segmentation"] = rectangle(upper, (100, 120))
    (found,) = blind_detections(GroundTruthSet(train), GroundTruthSet(made_truth([], num_images=1)), with_masks=True)
    np.testing.assert_array_equal(found.box_K4, [LEFT])
    np.testing.assert_array_equal(coco_mask.decode(found.masks[0]), coco_mask.decode(rectangle(upper, (100, 120))))


@pytest.mark.parametrize("form", ["polygon", "uncompressed"])
def test_masks_in_cocos_other_forms(form):
    train = made_truth([(1, 0, LEFT, False)])
    forms = {
        "polygon": [[0, 0, 60, 0, 60, 100, 0, 100]],
        "uncompressed": {"size": [100, 120], "counts": [0, 6000, 6000]},
    }
    changed = copy.deepcopy(train)
    changed["annotations"][0]["segmentation"] = forms[form]
    test = GroundTruthSet(made_truth([], num_images=1))
    one, other = (blind_detections(GroundTruthSet(some), test, with_masks=True)[0].masks for some in (train, changed))
    np.testing.assert_array_equal(coco_mask.decode(one[0]), coco_mask.decode(other[0]))


class TestBadInput:
    train = GroundTruthSet(made_truth([(1, 0, LEFT, False)]))

    def test_other_categories(self):
        other = GroundTruthSet(made_truth([], num_images=1, classes=("cat",)), name="other")
        with pytest.raises(UserError, match=r"made has categories \[10, 20\] and other \[10\]"):
            blind_detections(self.train, other)

    def test_no_objects(self):
        empty = GroundTruthSet(made_truth([(1, 0, LEFT, True)]))
        with pytest.raises(UserError, match="none of the 1 training pictures has an object"):
            blind_detections(empty, self.train)

    def test_no_boxes(self):
        with pytest.raises(UserError, match="num=0 boxes"):
            blind_detections(self.train, self.train, num=0)

    def test_masks_that_are_not_there(self):
        truth = made_truth([(1, 0, LEFT, False)])
        del truth["annotations"][0]["segmentation"]
        with pytest.raises(UserError, match=r"annotation 1 has no mask; .* with_masks=False"):
            blind_detections(GroundTruthSet(truth), self.train, with_masks=True)
