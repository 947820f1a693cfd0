"""Pictures on a canvas: cases worked out by hand, a restatement with whole pictures, scenes whose boxes are tight."""

import numpy as np
import pytest
import torch
from PIL import Image

from evals.detection.canvas import LARGE_SCALE_JITTER, CanvasTransform, boxes_to_file, masks_to_file, tight_boxes
from evals.detection.samples import Objects, no_objects
from pretrain.data.scene_render import boxes_xywh, masks, render
from pretrain.data.scenes import LEVELS, draw_scene
from pretrain.types import UserError

LEVEL_WEIGHTS = dict.fromkeys(LEVELS, 1.0)


def objects_of(boxes, mask_NHW=None, *, crowds=()):
    box_N4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    crowd_M4 = torch.tensor(crowds, dtype=torch.float32).reshape(-1, 4)
    return Objects(box_N4, torch.arange(len(box_N4)), mask_NHW, crowd_M4)


def scene(index, size=64):
    """A scene's picture and objects; boxes are tight around the masks."""
    drawn = draw_scene(3, "val", index, LEVEL_WEIGHTS)
    mask_NHW = masks(drawn, size)
    xywh = boxes_xywh(mask_NHW).astype(float)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return Image.fromarray(render(drawn, size)), objects_of(boxes.tolist(), torch.from_numpy(mask_NHW))


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_case_by_hand():
    # 4 x 2 pixels on a canvas of 8: twice as large, 8 x 4 pixels, the lower half of the canvas stays 0
    mask_1HW = torch.tensor([[[0, 1, 1, 0], [0, 0, 1, 0]]], dtype=torch.bool)
    image = Image.new("RGB", (4, 2), (7, 8, 9))
    sample = CanvasTransform(8)(image, objects_of([[1, 0, 3, 2]], mask_1HW, crowds=[[0, 1, 4, 2]]), image_id=5)
    assert sample.image_CSS.dtype == torch.uint8
    assert sample.image_CSS[:, :4].flatten(1).unique(dim=1).flatten().tolist() == [7, 8, 9]
    assert not sample.image_CSS[:, 4:].any()
    assert (sample.content_hw, sample.original_hw, sample.image_id) == ((4, 8), (2, 4), 5)
    assert sample.scale_xy == (2, 2)
    assert sample.objects.box_N4.tolist() == [[2, 0, 6, 4]]
    assert sample.objects.crowd_M4.tolist() == [[0, 2, 8, 4]]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[0:2, 2:6] = True
    expected[2:4, 4:6] = True
    assert torch.equal(sample.objects.mask_NHW[0], expected)


def test_the_longest_side_fits_and_pixels_stay_where_the_size_does():
    image = noise(12, 16)
    sample = CanvasTransform(16)(image, objects_of([[0, 0, 12, 16]]), image_id=1)
    assert torch.equal(sample.image_CSS[:, :, :12], torch.from_numpy(np.array(image)).permute(2, 0, 1))
    assert sample.objects.mask_NHW is None
    for width, height, content in ((640, 427, (683, 1024)), (427, 640, (1024, 683)), (1000, 3, (3, 1024))):
        sample = CanvasTransform(1024)(noise(width, height), objects_of([]), image_id=1)
        assert sample.content_hw == content
        assert sample.image_CSS.shape == (3, 1024, 1024)


def test_without_jitter_nothing_is_drawn():
    image, objects = scene(0)
    transform = CanvasTransform(48, seed=1)
    first = transform(image, objects, image_id=1, epoch=0, index=0)
    other = transform(image, objects, image_id=1, epoch=3, index=9)
    assert torch.equal(first.image_CSS, other.image_CSS)


def flipped_sample(image, objects, size, **options):
    """Of the first epoch that flips, and of the same without a flip."""
    for epoch in range(30):
        plain = CanvasTransform(size, **options)(image, objects, image_id=1, epoch=epoch)
        sample = CanvasTransform(size, flip=True, **options)(image, objects, image_id=1, epoch=epoch)
        if not torch.equal(plain.image_CSS, sample.image_CSS):
            return plain, sample
    raise AssertionError("none of 30 was flipped")


def test_a_flip_by_hand():
    # 6 x 4 pixels, kept at their size on a canvas of 6: x0, x1 = 1, 3 become 6 - 3, 6 - 1
    mask_1HW = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask_1HW[0, 0:2, 1:3] = True
    plain, flipped = flipped_sample(noise(6, 4), objects_of([[1, 0, 3, 2]], mask_1HW, crowds=[[0, 0, 1, 1]]), 6)
    assert flipped.objects.box_N4.tolist() == [[3, 0, 5, 2]]
    assert flipped.objects.crowd_M4.tolist() == [[5, 0, 6, 1]]
    assert torch.equal(flipped.image_CSS[:, :4], plain.image_CSS[:, :4].flip(-1))
    assert torch.equal(flipped.objects.mask_NHW, plain.objects.mask_NHW.flip(-1))
    # the picture is mirrored within itself, not within the canvas
    plain, flipped = flipped_sample(noise(4, 8), objects_of([[0, 0, 1, 2]]), 8)
    assert flipped.objects.box_N4.tolist() == [[3, 0, 4, 2]]
    assert torch.equal(flipped.image_CSS[:, :, :4], plain.image_CSS[:, :, :4].flip(-1))


def test_half_of_the_pictures_are_flipped():
    image, transform = noise(4, 4), CanvasTransform(4, flip=True)
    plain = CanvasTransform(4)(image, objects_of([]), image_id=1).image_CSS
    samples = [transform(image, objects_of([]), image_id=1, index=index).image_CSS for index in range(400)]
    # 200 expected, deviation 10
    assert 160 < sum(not torch.equal(plain, sample) for sample in samples) < 240


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.37, 2.0])
def test_a_window_equals_resizing_the_whole_and_cutting(scale):
    """Restated: Pillow's resize of picture and masks at once, then a cut at the place where the pixels agree."""
    size = 40
    image, objects = scene(7, size=37)  # a prime: no new centre falls on an edge between two pixels
    for epoch in range(4):
        sample = CanvasTransform(size, jitter=(scale, scale), seed=2)(image, objects, image_id=1, epoch=epoch)
        side = int(size * scale + 0.5)
        whole = torch.from_numpy(np.array(image.resize((side, side), Image.Resampling.BILINEAR))).permute(2, 0, 1)
        kept = min(side, size)
        assert sample.content_hw == (kept, kept)
        content = sample.image_CSS[:, :kept, :kept].int()
        places = [(top, left) for top in range(side - kept + 1) for left in range(side - kept + 1)]
        errors = [(whole[:, y : y + kept, x : x + kept].int() - content).abs().max() for y, x in places]
        top, left = places[int(np.argmin(errors))]
        assert min(errors) <= 2
        resized = [
            np.array(Image.fromarray(mask.numpy()).resize((side, side), Image.Resampling.NEAREST))
            for mask in objects.mask_NHW
        ]
        cut = torch.from_numpy(np.stack(resized))[:, top : top + kept, left : left + kept]
        alive = sample.objects.label_N
        assert torch.equal(sample.objects.mask_NHW[:, :kept, :kept], cut[alive])
        factor = side / 37
        moved = objects.box_N4[alive] * factor - torch.tensor([left, top, left, top])
        inside = moved.clamp(0, kept)
        uncut = (inside - moved).abs().max(1).values < 1e-3
        assert torch.allclose(sample.objects.box_N4[uncut], moved[uncut], atol=1e-3)
        assert (sample.objects.box_N4[:, :2] >= inside[:, :2] - 1e-3).all()
        assert (sample.objects.box_N4[:, 2:] <= inside[:, 2:] + 1e-3).all()


def test_boxes_are_tight_before_and_after():
    cut = 0
    for index in range(40):
        image, objects = scene(index)
        assert torch.equal(tight_boxes(objects.mask_NHW), objects.box_N4)
        for transform in (CanvasTransform(64), CanvasTransform(96), CanvasTransform(96, jitter=(0.7, 2.0), flip=True)):
            sample = transform(image, objects, image_id=1, index=index)
            moved = sample.objects
            if len(moved):
                # nothing here is made smaller, so that the centre of a new pixel is within half a pixel of each edge
                assert (tight_boxes(moved.mask_NHW) - moved.box_N4).abs().max() <= 0.5 + 1e-3
            cut += len(objects) - len(moved)
    assert cut > 0


def test_where_a_crop_cuts_the_box_shrinks_to_what_is_left():
    # a right triangle below the diagonal, 64 pixels; of its upper part only a thin strip on the left is there
    mask_1HW = torch.ones(64, 64).tril().bool()[None]
    objects = objects_of([[0, 0, 64, 64]], mask_1HW)
    image, looser = Image.new("RGB", (64, 64)), 0
    for epoch in range(20):
        options = {"image_id": 1, "epoch": epoch}
        with_mask = CanvasTransform(64, jitter=(2.0, 2.0))(image, objects, **options).objects
        without = CanvasTransform(64, jitter=(2.0, 2.0))(image, objects_of([[0, 0, 64, 64]]), **options).objects
        assert without.box_N4.tolist() == [[0, 0, 64, 64]]
        if len(with_mask):
            assert torch.equal(with_mask.box_N4, tight_boxes(with_mask.mask_NHW))
            looser += bool((with_mask.box_N4 != without.box_N4).any())
    assert looser > 3


def test_what_becomes_too_small_is_left_out():
    # 100 pixels on 25: a quarter. 4 pixels become 1 and stay, 3 go; a line of one column is between the new centres
    mask_NHW = torch.zeros(3, 100, 100, dtype=torch.bool)
    boxes = [[0, 0, 4, 40], [50, 0, 53, 40], [20, 0, 28, 40]]
    mask_NHW[0, 0:40, 0:4] = True
    mask_NHW[1, 0:40, 50:53] = True
    mask_NHW[2, 0:40, 20] = True  # its box says more than its mask has
    image = Image.new("RGB", (100, 100))
    crowds = [[0, 0, 3, 3], [0, 0, 8, 8]]
    sample = CanvasTransform(25)(image, objects_of(boxes, mask_NHW, crowds=crowds), image_id=1)
    assert sample.objects.label_N.tolist() == [0]
    assert len(sample.objects.mask_NHW) == 1
    assert sample.objects.crowd_M4.tolist() == [[0, 0, 2, 2]]
    assert CanvasTransform(25)(image, objects_of(boxes), image_id=1).objects.label_N.tolist() == [0, 2]


def test_large_scale_jitter_spreads_and_keeps_no_empty_mask():
    transform, image_and_objects = CanvasTransform(64, jitter=LARGE_SCALE_JITTER, flip=True), scene(11)
    sides, numbers = [], []
    for index in range(300):
        sample = transform(*image_and_objects, image_id=1, index=index)
        sides.append(sample.content_hw[0])
        numbers.append(len(sample.objects))
        assert sample.objects.mask_NHW.flatten(1).any(1).all()
        box_N4 = sample.objects.box_N4
        assert (box_N4 >= 0).all()
        assert (box_N4 <= sample.content_hw[0]).all()
        assert (box_N4[:, 2:] - box_N4[:, :2] >= 1).all()
        assert not sample.image_CSS[:, sides[-1] :].any()
    # uniform on 0.1 .. 2.0: (1 - 0.1) / 1.9 = 47% of the pictures are smaller than the canvas
    assert 0.38 < np.mean(np.array(sides) < 64) < 0.57
    assert min(sides) < 12
    assert min(numbers) < max(numbers)


def test_draws_are_a_function_of_seed_epoch_and_index():
    image, objects = scene(2)

    def drawn(seed=0, epoch=0, index=0):
        transform = CanvasTransform(32, jitter=(0.1, 2.0), flip=True, seed=seed)
        return transform(image, objects, image_id=1, epoch=epoch, index=index)

    torch.manual_seed(1)
    first = drawn(epoch=3, index=4)
    np.random.seed(5)
    drawn(index=8)
    again = drawn(epoch=3, index=4)
    assert torch.equal(first.image_CSS, again.image_CSS)
    assert torch.equal(first.objects.box_N4, again.objects.box_N4)
    for other in (drawn(epoch=4, index=4), drawn(epoch=3, index=5), drawn(seed=1, epoch=3, index=4)):
        assert not torch.equal(first.image_CSS, other.image_CSS)


def test_pictures_without_objects():
    image = noise(8, 8)
    sample = CanvasTransform(16, jitter=(0.5, 2.0), flip=True)(image, no_objects(8, 8, with_masks=True), image_id=1)
    assert sample.objects.mask_NHW.shape == (0, 16, 16)
    assert sample.objects.box_N4.shape == (0, 4)


def test_the_way_back():
    image, objects = noise(100, 60), objects_of([[10, 20, 90, 60], [0, 0, 5, 5]])
    sample = CanvasTransform(37)(image, objects, image_id=1)
    back = boxes_to_file(sample.objects.box_N4, sample=sample)
    assert back.dtype == np.float32
    assert np.allclose(back, objects.box_N4, atol=1e-3)
    # beyond the picture, on the empty part of the canvas
    assert boxes_to_file(np.array([[-3.0, 0, 37, 37]]), sample=sample).tolist() == [[0, 0, 100, 60]]
    mask_1SS = torch.zeros(1, 37, 37, dtype=torch.bool)
    mask_1SS[0, :11, :] = True  # 22 of the canvas's rows are picture: the upper half
    expected = torch.zeros(60, 100, dtype=torch.bool)
    expected[:30] = True
    assert torch.equal(masks_to_file(mask_1SS, sample=sample)[0], expected)
    assert masks_to_file(mask_1SS[:0], sample=sample).shape == (0, 60, 100)


@pytest.mark.parametrize("size", [48, 64, 130])
def test_masks_come_back(size):
    image, objects = scene(4)
    sample = CanvasTransform(size)(image, objects, image_id=1)
    back = masks_to_file(sample.objects.mask_NHW.float(), sample=sample)
    for mask, original in zip(back, objects.mask_NHW, strict=True):
        overlap = (mask & original).sum() / (mask | original).sum()
        assert overlap == 1 if size == 64 else overlap > 0.85


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: 0 is no side in pixels"),
        ({"size": 8, "jitter": (2.0, 0.1)}, r"jitter: \(2.0, 0.1\) is no range of scales"),
        ({"size": 8, "jitter": (0.0, 1.0)}, "jitter: .* is no range of scales"),
    ],
)
def test_values_that_cannot_be_meant(options, message):
    with pytest.raises(UserError, match=message):
        CanvasTransform(**options)
