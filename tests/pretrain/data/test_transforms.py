import io

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize

from pretrain.data.storage import decode_image
from pretrain.data.transforms import EvalTransform, PlainTransform, TrainTransform, random_crop_box, to_tensor
from pretrain.types import UserError

SCALE, RATIO = (0.4, 1.0), (3 / 4, 4 / 3)


def _noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(320, 240), (100, 400)])
def test_crops_are_distributed_as_torchvisions(size):
    # 100 x 400: its own ratio is out of bounds, so that many tries fail and the fallback is taken
    width, height = size
    draws = 3000
    rng = np.random.default_rng(0)
    ours = np.array([random_crop_box(width, height, rng, scale=SCALE, ratio=RATIO) for _ in range(draws)], dtype=float)
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, SCALE, RATIO) for _ in range(draws)], dtype=float)
    ours = np.stack([ours[:, 1], ours[:, 0], ours[:, 3] - ours[:, 1], ours[:, 2] - ours[:, 0]], axis=1)

    def statistics(boxes):  # of area share, log ratio, place of the crop in its room
        top, left, h, w = boxes.T
        values = [h * w / (width * height), np.log(w / h), top / height, left / width]
        return np.array([[v.mean(), v.std(), *np.quantile(v, [0.05, 0.25, 0.5, 0.75, 0.95])] for v in values])

    np.testing.assert_allclose(statistics(ours), statistics(theirs), atol=0.02)


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (1, 1), (1, 50), (3, 2)])
def test_crops_that_cannot_fit_fall_back_to_the_middle_as_torchvisions(size):
    width, height = size
    ours = random_crop_box(width, height, np.random.default_rng(0), scale=(1.0, 1.0), ratio=RATIO)
    top, left, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), (1.0, 1.0), RATIO)
    assert ours == (left, top, left + w, top + h)


def test_crop_reaches_every_border():
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(8, 8, rng, scale=(0.4, 1.0), ratio=RATIO) for _ in range(300)])
    assert boxes[:, :2].min(axis=0).tolist() == [0, 0]
    assert boxes[:, 2:].max(axis=0).tolist() == [8, 8]


@pytest.mark.parametrize("img_size", [32, 300])  # smaller and larger than the crop
def test_resizing_equals_torchvision(img_size):
    image = _noise(200, 150)
    ours = TrainTransform(img_size, flip=0.0)(image, np.random.default_rng(3))
    left, top, right, bottom = random_crop_box(200, 150, np.random.default_rng(3), scale=SCALE, ratio=RATIO)
    size = [img_size, img_size]
    theirs = F.resized_crop(
        image, top, left, bottom - top, right - left, size, InterpolationMode.BICUBIC, antialias=True
    )
    assert ours.dtype == torch.uint8
    assert ours.shape == (3, img_size, img_size)
    assert (ours.int() - F.pil_to_tensor(theirs).int()).abs().max() <= 1


def test_flip_mirrors_the_crop():
    image = _noise(64, 48)
    plain, flipped = (TrainTransform(16, flip=flip)(image, np.random.default_rng(1)) for flip in (0.0, 1.0))
    assert torch.equal(flipped, plain.flip(-1))
    assert not torch.equal(flipped, plain)


def test_half_of_the_pictures_are_flipped():
    ramp = Image.fromarray(np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], 24, 0).repeat(3, 2))
    transform = TrainTransform(8)
    results = [transform(ramp, np.random.default_rng(i)).float() for i in range(400)]
    flipped = sum(bool(x[0, 0, 0] > x[0, 0, -1]) for x in results)
    assert 160 < flipped < 240  # 4 standard deviations


def test_draws_come_from_the_generator_only():
    image, transform = _noise(64, 48), TrainTransform(16)
    first = transform(image, np.random.default_rng(5))
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(first, transform(image, np.random.default_rng(5)))
    assert not torch.equal(first, transform(image, np.random.default_rng(6)))


@pytest.mark.parametrize("size", [(200, 150), (150, 201), (33, 32), (32, 32), (20, 31)])
def test_eval_equals_torchvision(size):
    image = _noise(*size)
    ours = EvalTransform(32)(image, np.random.default_rng(0))
    theirs = CenterCrop(32)(Resize(32, InterpolationMode.BICUBIC)(image))
    assert torch.equal(ours, F.pil_to_tensor(theirs))


def test_channels_first_rgb():
    image = Image.new("RGB", (4, 4), (10, 20, 30))
    for transform in (TrainTransform(4), EvalTransform(4), PlainTransform(4)):
        assert transform(image, np.random.default_rng(0))[:, 1, 2].tolist() == [10, 20, 30]


def test_plain_changes_nothing():
    image = _noise(8, 8)
    assert torch.equal(PlainTransform(8)(image, np.random.default_rng(0)), to_tensor(image))


def test_plain_refuses_another_size():
    with pytest.raises(UserError, match=r"9 x 8 pixels, 8 x 8"):
        PlainTransform(8)(_noise(9, 8), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"img_size": 0}, "img_size"),
        ({"scale": (0.0, 1.0)}, "augment.scale"),
        ({"scale": (0.4, 1.5)}, "augment.scale"),
        ({"scale": (0.9, 0.4)}, "augment.scale"),
        ({"scale": (0.4,)}, "augment.scale"),
        ({"ratio": (0.0, 1.0)}, "augment.ratio"),
        ({"ratio": (2.0, 1.0)}, "augment.ratio"),
        ({"flip": -0.1}, "augment.flip"),
        ({"flip": 1.1}, "augment.flip"),
    ],
)
def test_values_out_of_range(arguments, field):
    with pytest.raises(UserError, match=field):
        TrainTransform(**{"img_size": 8, **arguments})


def _jpeg(width, height):
    ramp = (
        np.linspace(0, 255, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None] * np.array([1, 0.7, 0.4])
    )
    buffer = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "decoded"),
    [((500, 375), (250, 188)), ((200, 150), (200, 150)), ((3000, 2000), (375, 250)), ((2000, 400), (1000, 200))],
)
def test_a_jpeg_is_decoded_no_smaller_than_any_crop_needs(size, decoded):
    """For 112 pixels: the smallest crop has 0.4 of the area and a side of sqrt(0.4 * 0.75) = 0.55 of its root."""
    transform = TrainTransform(112, scale=SCALE, ratio=RATIO)
    image = decode_image(_jpeg(*size), "x", spare=transform.spare)
    assert image.size == decoded
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(*image.size, rng, scale=SCALE, ratio=RATIO) for _ in range(300)])
    sides = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    if size != (200, 150):  # which was too small as it was
        assert sides.min() >= 112 * 0.98


def test_reduced_decoding_shows_the_same_picture():
    data = _jpeg(1200, 900)
    whole, reduced = decode_image(data, "x"), decode_image(data, "x", spare=TrainTransform(112).spare)
    assert reduced.size == (300, 225)
    images = [EvalTransform(112)(image, np.random.default_rng(0)).float() for image in (whole, reduced)]
    assert (images[0] - images[1]).abs().mean() < 1.0


def test_only_jpegs_are_reduced():
    buffer = io.BytesIO()
    _noise(800, 600).save(buffer, "PNG")
    assert decode_image(buffer.getvalue(), "x", spare=lambda width, height: 8.0).size == (800, 600)
