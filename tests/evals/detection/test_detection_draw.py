import itertools

import numpy as np
import pytest
import torch
from coco_cases import SHAPE_IDS, made_detections, made_truth, perturbed, scenes_truth
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from pycocotools import mask as coco_mask

from evals.detection import curves as curves_module
from evals.detection.coco_eval import score
from evals.detection.curves import draw_learning_curves, draw_precision_recall
from evals.detection.draw import Example, draw_examples, draw_misses
from evals.detection.misses import CROWD, NOTHING, Miss, WorstMisses, nothing_found, overlaps, pair, worst_misses
from evals.detection.samples import Objects, no_objects
from evals.detection.sheet import Sheet
from pretrain.data.scene_render import render
from pretrain.data.scenes import LEVELS, SHAPES, draw_scene
from pretrain.types import UserError

CLASSES = ("cat", "dog")
HERE, THERE = (0, 0, 20, 20), (60, 60, 80, 80)


def worst(objects, *found, num_images=None, **options):
    truth = made_truth(objects, num_images=num_images)
    return worst_misses(truth, found, category_ids=(10, 20), **options)


class TestPair:
    def test_overlaps(self):
        """10 x 10 and its right half with as much beside it: 50 of 150, of the first's own area 1/2; nothing; empty boxes."""
        box_K4 = np.array([(0.0, 0, 10, 10), (3, 3, 3, 3)])
        box_N4 = np.array([(5.0, 0, 15, 10), (50, 50, 60, 60)])
        np.testing.assert_allclose(overlaps(box_K4, box_N4), [[1 / 3, 0], [0, 0]])
        np.testing.assert_allclose(overlaps(box_K4, box_N4, of_first=True), [[0.5, 0], [0, 0]])

    def test_each_takes_the_free_object_that_it_overlaps_most(self):
        """The second detection overlaps the first object more, which is taken; it gets the other. Then nothing is left."""
        box_N4 = np.array([(0, 0, 10, 10), (0, 0, 10, 13)])
        box_K4 = np.array([(0, 0, 10, 10), (0, 0, 10, 11), (0, 0, 10, 12)])
        taken = pair(box_K4, np.zeros(3, int), box_N4=box_N4, label_N=np.zeros(2, int))
        assert taken.tolist() == [0, 1, NOTHING]
        assert pair(box_K4, np.ones(3, int), box_N4=box_N4, label_N=np.zeros(2, int)).tolist() == [NOTHING] * 3

    def test_crowds(self):
        box_K4, crowd = np.array([(0, 0, 10, 10), (45, 0, 60, 10)]), np.array([(0, 0, 50, 50)])
        options = dict(box_N4=np.zeros((0, 4)), label_N=np.zeros(0, int), crowd_M4=crowd)
        assert pair(box_K4, np.zeros(2, int), **options).tolist() == [CROWD, NOTHING]
        assert pair(box_K4, np.zeros(2, int), **options, crowd_label_M=np.array([1])).tolist() == [NOTHING] * 2


class TestWorstMisses:
    @pytest.mark.parametrize(
        ("found", "kind", "caption"),
        [
            ([(1, 0.8, HERE)], "confused", ("said dog 80%", "there is: cat")),
            ([(0, 0.8, (0, 0, 20, 8))], "misplaced", ("said cat 80%", "the box is off")),
            ([(1, 0.8, (0, 0, 20, 8))], "invented", ("said dog 80%", "nothing is there")),
            ([(0, 0.8, THERE)], "invented", ("said cat 80%", "nothing is there")),
            ([(0, 0.9, HERE), (0, 0.8, (0, 0, 20, 18))], "duplicate", ("said cat 80%", "found a second time")),
        ],
    )
    def test_what_is_wrong(self, found, kind, caption):
        """One cat at the top left."""
        (miss,) = worst([(1, 0, HERE, False)], made_detections(1, found)).wrong
        assert (miss.kind, miss.score, miss.image_id) == (kind, pytest.approx(0.8), 1)
        assert miss.caption(CLASSES) == caption
        assert miss.box == pytest.approx(found[-1][2])

    @pytest.mark.parametrize(
        ("found", "caption"),
        [
            ([], ("missed: cat", "nothing found there")),
            ([(1, 0.8, HERE), (1, 0.7, HERE)], ("missed: cat", "taken for dog 80%")),
            ([(0, 0.1, HERE)], ("cat found with 10% only", "nothing found there")),
            ([(1, 0.8, HERE), (0, 0.1, HERE)], ("cat found with 10% only", "taken for dog 80%")),
            ([(1, 0.05, HERE), (0, 0.1, HERE)], ("cat found with 10% only", "nothing found there")),
        ],
    )
    def test_what_is_missed(self, found, caption):
        (miss,) = worst([(1, 0, HERE, False)], made_detections(1, found)).missed
        assert (miss.kind, miss.label, miss.box) == ("missed", 0, HERE)
        assert miss.caption(CLASSES) == caption

    def test_an_object_is_not_taken_for_its_neighbour(self):
        """A cat and a dog in the same place, both found: the dog's detection says nothing against the cat."""
        objects = [(1, 0, HERE, False), (1, 1, HERE, False)]
        found = worst(objects, made_detections(1, [(1, 0.9, HERE), (0, 0.3, HERE)]))
        assert found.wrong == []
        assert found.missed[0].caption(CLASSES) == ("cat found with 30% only", "nothing found there")

    def test_order_and_one_for_each_picture(self):
        """Wrong: by falling score. Missed: not found at all first; of these the one called something else, then the largest."""
        objects = [
            *((1, 0, HERE, False), (1, 0, (50, 50, 60, 60), False)),
            *((2, 0, (0, 0, 30, 30), False), (3, 0, (0, 0, 5, 5), False), (4, 1, HERE, False)),
        ]
        detections = [
            made_detections(1, [(0, 0.6, HERE), (0, 0.5, THERE)]),
            made_detections(3, [(1, 0.7, (0, 0, 5, 5)), (0, 0.2, (0, 50, 9, 60))]),
            made_detections(4, [(1, 0.4, HERE), (0, 0.9, THERE)]),
        ]
        found = worst(objects, *detections)
        assert [miss.image_id for miss in found.wrong] == [4, 3, 1]
        assert [miss.image_id for miss in found.missed] == [3, 2, 1, 4]
        assert found.missed[2].box == (50, 50, 60, 60)
        few = worst(objects, *detections, num=2)
        assert (few.wrong, few.missed) == (found.wrong[:2], found.missed[:2])

    def test_crowds_are_neither_missed_nor_wrong(self):
        found = worst([(1, 0, (0, 0, 50, 50), True)], made_detections(1, [(0, 0.9, HERE), (1, 0.8, HERE)]))
        assert [miss.label for miss in found.wrong] == [1]
        assert found.missed == []

    def test_bad_input(self):
        with pytest.raises(UserError, match="picture 7 belong to no picture"):
            worst([(1, 0, HERE, False)], made_detections(7, []))


def objects_of(annotations, size):
    box_N4 = torch.tensor([one["bbox"] for one in annotations], dtype=torch.float32).reshape(-1, 4)
    box_N4[:, 2:] += box_N4[:, :2]
    masks = [coco_mask.decode(one["segmentation"]) for one in annotations]
    mask_NHW = torch.from_numpy(np.stack(masks).astype(bool)) if masks else torch.zeros(0, *size, dtype=torch.bool)
    return Objects(box_N4, torch.tensor([one["category_id"] - 1 for one in annotations]), mask_NHW, torch.zeros(0, 4))


@pytest.fixture(scope="module")
def scenes():
    """Ground truth of 30 scenes of 32 pixels, their pictures with objects by id, and detections of two detectors."""
    truth = scenes_truth("test", 30)
    levels = dict.fromkeys(LEVELS, 1.0)
    pictures = {}
    for index, image in enumerate(truth["images"]):
        own = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        pixels = render(draw_scene(5, "test", index, levels), 32)
        pictures[image["id"]] = (Image.fromarray(pixels), objects_of(own, (32, 32)))
    return truth, pictures, {"trained": perturbed(truth, SHAPE_IDS), "random": perturbed(truth, SHAPE_IDS, seed=1)}


@pytest.fixture
def sheets(monkeypatch):
    """The figures that are written."""
    kept = []
    write = Sheet.write

    def keep(self, path):
        kept.append(self.figure)
        return write(self, path)

    monkeypatch.setattr(Sheet, "write", keep)
    return kept


def assert_nothing_overlaps(figure):
    """Lines of text lie on the page, apart from each other and from pictures."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts if text.get_text()]
    pictures = [axis.get_window_extent(renderer) for axis in figure.axes]
    page = figure.bbox
    for text, box in texts:
        assert box.x0 >= 0, text
        assert box.x1 <= page.x1, text
        assert box.y0 >= 0, text
        assert not any(box.overlaps(picture) for picture in pictures), text
    for (one, first), (other, second) in itertools.combinations(texts, 2):
        assert not first.overlaps(second), (one, other)
    for one, other in itertools.combinations(pictures, 2):
        assert not one.overlaps(other)


def rows_of(scenes, num, names=("trained", "random")):
    _, pictures, found = scenes
    by_picture = {name: {one.image_id: one for one in found[name]} for name in names}
    return [
        Example(*pictures[image_id], {name: by_picture[name][image_id] for name in names})
        for image_id in list(pictures)[:num]
    ]


class TestExamples:
    @pytest.mark.parametrize("names", [("trained",), ("trained", "random")])
    @pytest.mark.parametrize("num", [1, 7])
    def test_page(self, scenes, sheets, tmp_path, names, num):
        path = draw_examples(
            tmp_path / "a" / "examples.png",
            rows_of(scenes, num, names),
            classes=SHAPES,
            threshold=0.3,
            title="Detections of $both$ encoders " * 5,
            subtitle="scenes (synthetic)",
        )
        with Image.open(path) as image:
            assert 600 <= image.width <= 1250
        (figure,) = sheets
        assert len(figure.axes) == num * (1 + len(names))
        assert_nothing_overlaps(figure)

    def test_shows_what_is_above_the_threshold_and_what_is_right(self, sheets, tmp_path):
        """A cat and a dog; the cat is found, a wrong dog, and the right dog with a score below the threshold."""
        image = Image.new("RGB", (120, 100), (90, 90, 90))
        objects = Objects(torch.tensor([HERE, THERE]).float(), torch.tensor([0, 1]), None, torch.zeros(0, 4))
        found = made_detections(1, [(1, 0.8, (40, 0, 60, 20)), (0, 0.9, HERE), (1, 0.4, THERE)], with_masks=False)
        draw_examples(tmp_path / "one.png", [Example(image, objects, {"net": found})], classes=CLASSES)
        texts = {text.get_text() for text in sheets[0].texts}
        assert {"1 cat", "2 dog", "1 cat 90% ✓", "2 dog 80% ✗", "annotated", "net"} <= texts
        assert not any("40%" in text for text in texts)
        boxes = [[patch.get_bbox().extents.tolist() for patch in axis.patches] for axis in sheets[0].axes]
        assert boxes == [[[0, 0, 20, 20], [60, 60, 80, 80]], [[0, 0, 20, 20], [40, 0, 60, 20]]]

    def test_further_boxes_are_counted_and_the_largest_shown(self, sheets, tmp_path):
        boxes = [(0, 0, side, side) for side in (5, 50, 20, 40)]
        objects = Objects(torch.tensor(boxes).float(), torch.tensor([0, 1, 0, 0]), None, torch.zeros(0, 4))
        image = Image.new("RGB", (120, 100))
        draw_examples(
            tmp_path / "one.png", [Example(image, objects, {"net": nothing_found(1)})], classes=CLASSES, most=2
        )
        texts = [text.get_text() for text in sheets[0].texts]
        assert "and 2 more" in texts
        assert {"1 dog", "2 cat", "nothing"} <= set(texts)

    def test_small_pictures_are_shown_as_their_squares(self, tmp_path):
        """A chequered picture of 8 pixels, drawn in black and white only, apart from its edges."""
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[::2, ::2] = pixels[1::2, 1::2] = 255
        row = Example(Image.fromarray(pixels), no_objects(8, 8, with_masks=True), {})
        path = draw_examples(tmp_path / "one.png", [row], classes=CLASSES)
        with Image.open(path) as image:
            shown = np.asarray(image.convert("RGB")).astype(int)
        left, top, side = round(0.14 * 110), round((0.62 + 1.6 * 0.145) * 110), round(1.62 * 110)
        inside = shown[top + 2 : top + side - 2, left + 2 : left + side - 2]
        assert inside.shape[0] > 170
        assert np.isin(inside, (0, 255)).mean() > 0.99
        assert 0.45 < (inside == 255).mean() < 0.55

    def test_masks_and_boxes_beyond_the_edge(self, sheets, tmp_path):
        """A mask colours its own pixels only; a box is cut at the picture's edge, so that no line runs through text."""
        image = Image.new("RGB", (120, 100), (128, 128, 128))
        found = made_detections(1, [(0, 0.9, (0, 0, 60, 100))])
        found.box_K4[0] = (-30, -5, 60, 140)
        objects = no_objects(100, 120, with_masks=True)
        path = draw_examples(tmp_path / "one.png", [Example(image, objects, {"net": found})], classes=CLASSES)
        axis = sheets[0].axes[1]
        assert axis.patches[0].get_bbox().extents.tolist() == [0, 0, 60, 100]
        with Image.open(path) as written:
            shown = np.asarray(written.convert("RGB")).astype(int)
        extent = axis.get_window_extent()
        middle = round(shown.shape[0] - (extent.y0 + extent.y1) / 2)
        quarter, rest = (shown[middle, round(extent.x0 + share * extent.width)] for share in (0.25, 0.75))
        assert np.ptp(rest) <= 2
        assert quarter[0] - quarter[2] > 40

    def test_bad_input(self, scenes, tmp_path):
        with pytest.raises(UserError, match="one picture or more"):
            draw_examples(tmp_path / "none.png", [], classes=SHAPES)
        rows = rows_of(scenes, 1) + rows_of(scenes, 1, ("trained",))
        with pytest.raises(UserError, match="of the same encoders"):
            draw_examples(tmp_path / "none.png", rows, classes=SHAPES)
        assert not list(tmp_path.iterdir())


class TestMissesPage:
    def test_page(self, scenes, sheets, tmp_path):
        truth, pictures, found = scenes
        misses = worst_misses(truth, found["trained"], category_ids=SHAPE_IDS, num=7)
        path = draw_misses(tmp_path / "misses.png", misses, images=pictures, classes=SHAPES, title="Worst misses")
        with Image.open(path) as image:
            assert 800 <= image.width <= 1200
        (figure,) = sheets
        assert len(figure.axes) == len(misses.wrong) + len(misses.missed) == 14
        assert_nothing_overlaps(figure)
        texts = [text.get_text() for text in figure.texts]
        for miss in misses.wrong + misses.missed:
            assert set(miss.caption(SHAPES)) <= set(texts)

    def test_none(self, sheets, tmp_path):
        draw_misses(tmp_path / "misses.png", WorstMisses([], []), images={}, classes=SHAPES)
        assert [text.get_text() for text in sheets[0].texts].count("none") == 2
        assert_nothing_overlaps(sheets[0])

    def test_picture_that_is_not_there(self, tmp_path):
        misses = WorstMisses([Miss(3, "invented", HERE, 0, 0.5)], [])
        with pytest.raises(UserError, match="picture 3 is not among the 0 pictures given"):
            draw_misses(tmp_path / "misses.png", misses, images={}, classes=SHAPES)


@pytest.fixture
def figures(monkeypatch):
    """The figures of curves that are written."""
    kept = []
    write = curves_module._write

    def keep(figure, path, note=""):
        kept.append(figure)
        return write(figure, path, note)

    monkeypatch.setattr(curves_module, "_write", keep)
    return kept


class TestCurves:
    def test_precision_recall(self, scenes, figures, tmp_path):
        """A faint line for each class with objects, their mean bold, the other's mean dotted."""
        truth, _, found = scenes
        gone = truth | {"annotations": [one for one in truth["annotations"] if one["category_id"] != 3]}
        scores = {name: score(gone, some, category_ids=SHAPE_IDS) for name, some in found.items()}
        path = draw_precision_recall(tmp_path / "curves.png", scores, title="Precision and recall")
        assert path.stat().st_size > 5000
        axes = figures[0].axes
        assert [axis.get_title(loc="left").split("\n")[0] for axis in axes] == ["trained", "random"]
        for axis, (name, own) in zip(axes, scores.items()):
            other = next(scores[key] for key in scores if key != name)
            lines = {line.get_linewidth(): line.get_ydata() for line in axis.lines}
            assert len(axis.lines) == 1 + 8 + 1
            np.testing.assert_allclose(lines[2.2], np.nanmean(own.precision_RK, axis=1))
            np.testing.assert_allclose(lines[1.2], np.nanmean(other.precision_RK, axis=1))
            assert lines[2.2].mean() * 100 == pytest.approx(own.ap50)  # what AP50 is

    def test_precision_recall_without_objects(self, figures, tmp_path):
        scores = score(made_truth([], num_images=1), [], category_ids=(10, 20))
        draw_precision_recall(tmp_path / "curves.png", {"net": scores})
        assert "no objects" in figures[0].axes[0].get_title(loc="left")

    def test_learning_curves(self, figures, tmp_path):
        points = {"trained": [(1, 5.0, 10.0), (2, 8.0, 15.0)], "random": [(1, None, None), (2, 3.0, 6.0)]}
        draw_learning_curves(tmp_path / "learning.png", points, chance=(0.2, 0.8), progress="step", title="Boxes")
        for place, axis in enumerate(figures[0].axes, start=1):
            first, second, chance = axis.lines
            assert first.get_ydata().tolist() == [point[place] for point in points["trained"]]
            np.testing.assert_array_equal(second.get_ydata(), [np.nan, points["random"][1][place]])
            assert chance.get_ydata()[0] == (0.2, 0.8)[place - 1]
            assert axis.get_xlabel() == "step"
        (legend,) = figures[0].legends
        assert [text.get_text() for text in legend.get_texts()] == ["trained", "random", "chance (picture-blind)"]

    def test_bad_input(self, tmp_path):
        with pytest.raises(UserError, match="no scores to draw"):
            draw_precision_recall(tmp_path / "none.png", {})
        with pytest.raises(UserError, match="no points to draw"):
            draw_learning_curves(tmp_path / "none.png", {"net": []})
