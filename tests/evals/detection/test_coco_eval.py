import copy
import json

import numpy as np
import pytest
from coco_cases import SHAPE_IDS, made_detections, made_truth, perturbed, rectangle, scenes_truth
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evals.detection import coco_eval
from evals.detection.coco_eval import faster_is_installed, score, score_lvis
from evals.detection.samples import Detections
from pretrain.types import UserError

needs_faster = pytest.mark.skipif(not faster_is_installed(), reason="faster-coco-eval is not installed")
BACKENDS = ("pycocotools", pytest.param("faster", marks=needs_faster))
KINDS = ("box", "mask")
STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")


def by_pycocotools(ground_truth, detections, category_ids, kind):
    """COCO's twelve numbers as its own documentation gets them, from files' contents."""
    truth = COCO()
    truth.dataset = copy.deepcopy(ground_truth)
    truth.createIndex()
    results = []
    for found in detections:
        for k in range(len(found)):
            x0, y0, x1, y1 = found.box_K4[k].astype(float)
            shape = {"bbox": [x0, y0, x1 - x0, y1 - y0]} if kind == "box" else {"segmentation": dict(found.masks[k])}
            label, confidence = int(found.label_K[k]), float(found.score_K[k])
            results.append(
                {"image_id": found.image_id, "category_id": category_ids[label], "score": confidence, **shape}
            )
    evaluator = COCOeval(truth, truth.loadRes(results), {"box": "bbox", "mask": "segm"}[kind])
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator


def assert_equal_scores(found, evaluator):
    assert evaluator.stats[0] > 0.05, "the case is too easy to fail"
    for name, value in zip(STATS, evaluator.stats):
        assert getattr(found, name) == (None if value == -1 else pytest.approx(100 * value, abs=1e-6)), name
    precision = evaluator.eval["precision"]
    for k, (name, value) in enumerate(found.per_class.items()):
        assert name == evaluator.cocoGt.cats[evaluator.params.catIds[k]]["name"]
        own = precision[:, :, k, 0, 2]
        assert value == (None if (own == -1).all() else pytest.approx(100 * own.mean(), abs=1e-6))
    expected = np.where(precision[0, :, :, 0, 2] == -1, np.nan, precision[0, :, :, 0, 2])
    np.testing.assert_allclose(found.precision_RK, expected, atol=1e-6)


def with_crowds_and_gaps(ground_truth):
    """Some objects become crowds, a category loses its objects, and the last two pictures lose all."""
    changed = copy.deepcopy(ground_truth)
    last = sorted(image["id"] for image in changed["images"])[-2:]
    changed["annotations"] = [
        annotation | {"iscrowd": int(number % 7 == 0)}
        for number, annotation in enumerate(changed["annotations"])
        if annotation["category_id"] != SHAPE_IDS[3] and annotation["image_id"] not in last
    ]
    return changed


class TestEqualsPycocotools:
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("ties", [False, True])
    def test_scenes_with_crowds_empty_classes_and_empty_pictures(self, backend, kind, ties):
        small, large = scenes_truth("test", 30, img_size=96), scenes_truth("test", 30, img_size=256, start=30)
        whole = small | {key: small[key] + large[key] for key in ("images", "annotations")}
        detections = perturbed(whole, SHAPE_IDS, seed=1, ties=ties)
        ground_truth = with_crowds_and_gaps(whole)
        found = score(ground_truth, detections, category_ids=SHAPE_IDS, kind=kind, backend=backend)
        assert_equal_scores(found, by_pycocotools(ground_truth, detections, SHAPE_IDS, kind))
        assert found.backend == backend
        assert found.per_class["star"] is None
        assert None not in (found.ap_small, found.ap_medium, found.ap_large)

    @pytest.mark.shared_data
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("kind", KINDS)
    def test_photographs(self, shared_data, backend, kind):
        path = shared_data / "coco_mini" / "annotations" / "instances_val2017.json"
        ground_truth = json.loads(path.read_text())
        index = COCO()
        index.dataset = ground_truth
        index.createIndex()
        as_masks = [one | {"segmentation": index.annToRLE(one)} for one in ground_truth["annotations"]]
        assert sum(one["iscrowd"] for one in as_masks) >= 3
        category_ids = tuple(category["id"] for category in ground_truth["categories"])
        detections = perturbed(ground_truth | {"annotations": as_masks}, category_ids)
        found = score(ground_truth, detections, category_ids=category_ids, kind=kind, backend=backend)
        assert_equal_scores(found, by_pycocotools(ground_truth, detections, category_ids, kind))
        assert found.num_images == 79

    @needs_faster
    @pytest.mark.parametrize("seed", range(30))
    def test_backends_agree_where_much_is_equal(self, seed):
        """Few whole numbers for corners and scores: overlaps at thresholds, ties, crowds in crowds, 300 detections."""
        rng = np.random.default_rng(seed)
        size, classes = (13, 13), ("a", "b", "c")

        def box():
            (x0, x1), (y0, y1) = np.sort(rng.integers(0, 13, (2, 2)))
            return float(x0), float(y0), float(max(x1, x0 + 1)), float(max(y1, y0 + 1))

        objects = [(int(rng.integers(1, 5)), int(rng.integers(3)), box(), rng.random() < 0.3) for _ in range(15)]
        truth = made_truth(objects, size=size, classes=classes, num_images=5)
        found = []
        for image_id in range(1, 6):
            rows = [
                (int(rng.integers(3)), rng.integers(0, 11) / 10, box()) for _ in range(int(rng.choice([0, 3, 300])))
            ]
            found.append(made_detections(image_id, rows, size=size))
        for kind in KINDS:
            one, other = (
                score(truth, found, category_ids=(20, 10, 30), kind=kind, backend=backend)
                for backend in ("pycocotools", "faster")
            )
            for name, value in one.metrics().items():
                assert getattr(other, name) == (None if value is None else pytest.approx(value, abs=1e-6)), name


@pytest.mark.parametrize("backend", BACKENDS)
class TestByHand:
    def test_two_objects_and_three_detections(self, backend):
        """Right .9, wrong .8, and .7 with overlap 62/100 with the second object.

        At overlaps .50, .55, .60 it is right, too: precision 1 up to recall 1/2 (51 of 101 levels), then 2/3 (50 levels).
        At the seven others precision is 1 on 51 levels and then 0. Recall is 1 at three overlaps, 1/2 at seven; 1/2 with one
        detection. Both objects have 100 pixels.
        """
        truth = made_truth([(1, 0, (0, 0, 10, 10), False), (1, 0, (20, 0, 30, 10), False)])
        found = made_detections(
            1, [(0, 0.9, (0, 0, 10, 10)), (0, 0.8, (60, 60, 70, 70)), (0, 0.7, (20, 0, 30, 6.2))], with_masks=False
        )
        scores = score(truth, [found], category_ids=(10, 20), backend=backend)
        expected = {
            "ap": 100 * (3 * (51 + 50 * 2 / 3) + 7 * 51) / 1010,
            "ap50": 100 * (51 + 50 * 2 / 3) / 101,
            "ap75": 100 * 51 / 101,
            "ap_medium": None,
            "ap_large": None,
            "ar1": 50.0,
            "ar10": 65.0,
            "ar100": 65.0,
        }
        expected["ap_small"] = expected["ap"]
        assert {name: value and round(value, 9) for name, value in scores.metrics().items()} == {
            name: value and round(value, 9) for name, value in expected.items()
        }
        assert scores.per_class == {"cat": pytest.approx(expected["ap"]), "dog": None}
        assert (scores.num_images, scores.num_objects) == (1, 2)
        np.testing.assert_allclose(scores.precision_RK[:, 0], [1.0] * 51 + [2 / 3] * 50)
        assert np.isnan(scores.precision_RK[:, 1]).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_is_wrong_inside_a_crowd(self, backend, kind):
        """Two detections in the crowd are above the right one; without the crowd, precision is 1/3."""
        objects = [(1, 0, (80, 80, 90, 90), False), (1, 0, (0, 0, 50, 50), True)]
        found = made_detections(1, [(0, 0.9, (5, 5, 15, 15)), (0, 0.8, (6, 5, 16, 15)), (0, 0.7, (80, 80, 90, 90))])
        crowded = score(made_truth(objects), [found], category_ids=(10, 20), kind=kind, backend=backend)
        assert (crowded.ap, crowded.num_objects) == (pytest.approx(100), 1)
        plain = score(made_truth(objects[:1]), [found], category_ids=(10, 20), kind=kind, backend=backend)
        assert plain.ap == pytest.approx(100 / 3)

    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_found_is_zero(self, backend, kind):
        truth = made_truth([(1, 0, (0, 0, 50, 50), False), (2, 1, (0, 0, 10, 10), False)])
        for detections in ([], [made_detections(1, []), made_detections(2, [])]):
            scores = score(truth, detections, category_ids=(10, 20), kind=kind, backend=backend)
            assert (scores.ap, scores.ap_small, scores.ap_medium, scores.ar100) == (0, 0, 0, 0)
            assert scores.ap_large is None
            assert scores.per_class == {"cat": 0, "dog": 0}

    def test_nothing_annotated_has_no_score(self, backend):
        truth = made_truth([], num_images=2)
        scores = score(truth, [made_detections(1, [(0, 0.9, (0, 0, 5, 5))])], category_ids=(10, 20), backend=backend)
        assert set(scores.metrics().values()) == {None}

    def test_annotation_with_id_zero_can_be_found(self, backend):
        truth = made_truth([(1, 0, (0, 0, 10, 10), False)])
        truth["annotations"][0]["id"] = 0
        found = [made_detections(1, [(0, 0.9, (0, 0, 10, 10))])]
        assert score(truth, found, category_ids=(10, 20), backend=backend).ap == pytest.approx(100)

    def test_classes_need_not_go_by_number(self, backend):
        """Class 0 is category 20: a detector that is right on it, and finds nothing else."""
        truth = made_truth([(1, 0, (0, 0, 10, 10), False), (1, 1, (50, 50, 60, 60), False)])
        found = [made_detections(1, [(0, 0.9, (50, 50, 60, 60))])]
        scores = score(truth, found, category_ids=(20, 10), backend=backend)
        assert scores.per_class == {"dog": pytest.approx(100), "cat": 0}
        assert list(scores.per_class) == ["dog", "cat"]
        np.testing.assert_allclose(scores.precision_RK, np.tile([1.0, 0.0], (101, 1)))

    def test_more_masks_than_255_on_a_picture(self, backend):
        """pycocotools 2.0.11 fails on the areas of so many at once."""
        truth = made_truth([(1, 0, (0, 0, 10, 10), False)])
        found = made_detections(1, [(k % 2, 0.9 - k / 1000, (0, 0, 10, 10)) for k in range(300)])
        assert score(truth, [found], category_ids=(10, 20), kind="mask", backend=backend).ap == pytest.approx(100)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_leaves_what_it_is_given_as_it_is_and_says_nothing(capfd, backend, kind):
    truth = made_truth([(1, 0, (0, 0, 10, 10), False), (1, 1, (0, 0, 50, 50), True)])
    found = [made_detections(1, [(0, 0.5, (0, 0, 10, 10)), (1, 0.9, (0, 0, 5, 5))])]
    before = copy.deepcopy((truth, found))
    score(truth, found, category_ids=(10, 20), kind=kind, backend=backend)
    assert truth == before[0]
    for name in ("box_K4", "score_K", "label_K"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(before[1][0], name))
    assert found[0].masks == before[1][0].masks
    assert capfd.readouterr() == ("", "")


def test_auto_takes_what_is_installed(monkeypatch):
    truth, found = made_truth([(1, 0, (0, 0, 10, 10), False)]), [made_detections(1, [(0, 0.5, (0, 0, 10, 10))])]
    expected = "faster" if faster_is_installed() else "pycocotools"
    assert score(truth, found, category_ids=(10, 20)).backend == expected
    monkeypatch.setattr(coco_eval, "faster_is_installed", lambda: False)
    assert score(truth, found, category_ids=(10, 20)).backend == "pycocotools"
    with pytest.raises(UserError, match=r"backend='faster' .* not installed"):
        score(truth, found, category_ids=(10, 20), backend="faster")
    with pytest.raises(UserError, match="LVIS's scores need faster-coco-eval"):
        score_lvis(truth, found, category_ids=(10, 20))


def lvis_case():
    """Pictures: 1 has a cat, no dogs; 2 a dog, and others may be missing; 3 an owl, no cats. Owls are not looked for on 1."""
    objects = [(1, 0, (0, 0, 10, 10), False), (2, 1, (0, 0, 10, 10), False), (3, 2, (0, 0, 10, 10), False)]
    truth = made_truth(objects, classes=("cat", "dog", "owl"))
    for category, frequency in zip(truth["categories"], "fcr"):
        category["frequency"] = frequency
    for annotation in truth["annotations"]:
        del annotation["iscrowd"]  # LVIS has none
    absent, partly = {1: [20], 2: [], 3: [10]}, {1: [], 2: [20], 3: []}
    for image in truth["images"]:
        image["neg_category_ids"] = absent[image["id"]]
        image["not_exhaustive_category_ids"] = partly[image["id"]]
    right, elsewhere = (0, 0, 10, 10), (50, 50, 60, 60)
    found = [
        made_detections(1, [(2, 0.99, elsewhere), (1, 0.95, elsewhere), (0, 0.9, right)]),
        made_detections(2, [(1, 0.9, elsewhere), (1, 0.8, right)]),
        made_detections(3, [(0, 0.95, elsewhere), (2, 0.7, right)]),
    ]
    return truth, found


@needs_faster
class TestLvis:
    @pytest.mark.parametrize("kind", KINDS)
    def test_by_hand(self, kind):
        """Cats: wrong .95 (known to be absent), right .9: 1/2. Dogs: wrong .95 (absent), .9 does not count, right .8: 1/2.

        Owls: .99 is on a picture where they are not looked for, right .7: 1. COCO's rules give 1/2, 1/3 and 1/2.
        """
        truth, found = lvis_case()
        scores = score_lvis(truth, found, category_ids=(10, 20, 30), kind=kind)
        assert scores.per_class == {name: pytest.approx(ap) for name, ap in (("cat", 50), ("dog", 50), ("owl", 100))}
        assert (scores.ap, scores.ap50, scores.ap75) == (pytest.approx(200 / 3),) * 3
        groups = (scores.ap_rare, scores.ap_common, scores.ap_frequent)
        assert groups == (pytest.approx(100), pytest.approx(50), pytest.approx(50))
        assert (scores.num_images, scores.num_objects) == (3, 3)
        as_coco = score(truth, found, category_ids=(10, 20, 30), kind=kind).per_class
        assert as_coco == {name: pytest.approx(ap) for name, ap in (("cat", 50), ("dog", 100 / 3), ("owl", 50))}

    @pytest.mark.parametrize("wrong", [299, 300])
    def test_three_hundred_of_a_picture_count(self, wrong):
        truth, _ = lvis_case()
        rows = [(1, 0.9, (50, 50, 60, 60))] * wrong + [(0, 0.5, (0, 0, 10, 10))]
        found = [made_detections(1, rows[::-1], with_masks=False)]
        assert score_lvis(truth, found, category_ids=(10, 20, 30)).per_class["cat"] == pytest.approx(
            100 * (wrong < 300)
        )

    def test_group_without_objects_and_empty_detections(self):
        truth, _ = lvis_case()
        truth["annotations"] = truth["annotations"][:2]
        scores = score_lvis(truth, [], category_ids=(30, 20, 10))
        assert (scores.ap, scores.ap_rare, scores.ap_common, scores.ap_frequent) == (0, None, 0, 0)
        assert scores.per_class == {"owl": None, "dog": 0, "cat": 0}

    def test_coco_layout_is_refused(self):
        truth, found = lvis_case()
        del truth["images"][1]["neg_category_ids"]
        with pytest.raises(UserError, match="picture 2 has no 'neg_category_ids'"):
            score_lvis(truth, found, category_ids=(10, 20, 30))
        truth, found = lvis_case()
        truth["categories"][1]["frequency"] = "x"
        with pytest.raises(UserError, match="category 'dog' has frequency 'x'"):
            score_lvis(truth, found, category_ids=(10, 20, 30))


class TestBadInput:
    truth = made_truth([(1, 0, (0, 0, 10, 10), False)])
    good = made_detections(1, [(0, 0.9, (0, 0, 10, 10))])

    def changed(self, **fields):
        return Detections(**{**vars(self.good), **fields})

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"score_K": np.array([np.nan], np.float32)}, "picture 1: a score is nan; all must be finite"),
            ({"score_K": np.array([np.inf], np.float32)}, "picture 1: a score is inf"),
            ({"box_K4": np.array([[0, 0, np.inf, 5]], np.float32)}, "picture 1: a box is inf"),
            ({"box_K4": np.array([[5, 0, 1, 5]], np.float32)}, r"box \[5.0, 0.0, 1.0, 5.0\]; it must be .* x0 <= x1"),
            ({"label_K": np.array([2])}, r"class number 2; there are 2 classes, so it must be 0\.\.1"),
            ({"label_K": np.array([-1])}, "class number -1"),
            ({"score_K": np.zeros(2, np.float32)}, r"shapes .*must be \[K, 4\], \[K\] and \[K\]"),
            ({"image_id": 9}, "picture 9 belong to no picture of the ground truth"),
            ({"masks": None}, "no masks for 1 boxes"),
            ({"masks": []}, "0 masks for 1 boxes"),
            ({"masks": [rectangle((0, 0, 5, 5), (50, 60))]}, r"mask of \(50, 60\) pixels .* picture has \(100, 120\)"),
        ],
    )
    def test_detections(self, fields, text):
        with pytest.raises(UserError, match=text):
            score(self.truth, [self.changed(**fields)], category_ids=(10, 20), kind="mask")

    def test_picture_twice(self):
        with pytest.raises(UserError, match="picture 1 are given twice"):
            score(self.truth, [self.good, self.good], category_ids=(10, 20))

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"category_ids": (10, 30)}, r"30 is not a category of the ground truth, which has \[10, 20\]"),
            ({"category_ids": (10, 10)}, "each once"),
            ({"category_ids": ()}, "one or more"),
            ({"kind": "boxes"}, "kind='boxes' .* must be 'box' or 'mask'"),
            ({"backend": "fast"}, "backend='fast' .* must be 'auto', 'pycocotools' or 'faster'"),
        ],
    )
    def test_options(self, options, text):
        with pytest.raises(UserError, match=text):
            score(self.truth, [self.good], **{"category_ids": (10, 20), **options})

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            (lambda truth: truth["annotations"][0].pop("area"), "annotation 1 has no 'area'"),
            (lambda truth: truth["annotations"][0].update(segmentation=[]), "annotation 1 has no 'segmentation'"),
            (lambda truth: truth["annotations"][0].update(image_id=5), "annotation 1 is of picture 5"),
            (lambda truth: truth["images"].clear(), "0 pictures with 0 ids"),
            (lambda truth: truth["images"].append(truth["images"][0]), "2 pictures with 1 ids"),
            (lambda truth: truth["categories"][1].update(name="cat"), "with own names"),
        ],
    )
    def test_ground_truth(self, change, text):
        truth = copy.deepcopy(self.truth)
        change(truth)
        with pytest.raises(UserError, match=text):
            score(truth, [self.good], category_ids=(10, 20), kind="mask")
