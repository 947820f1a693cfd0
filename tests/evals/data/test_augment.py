"""The published augmentations: functions of (seed, epoch, index), in timm's order, without a trace elsewhere."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_train
from torchvision.transforms import Compose

from evals.data.augment import AugmentTransform, seeded, train_transform
from evals.transforms import ImageTransform
from pretrain.rng import draw_key, draw_rng
from pretrain.types import ImageSpec

SPEC = ImageSpec(24)


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (10, 13, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((52, 40), Image.Resampling.BICUBIC)


def test_draws_are_functions_of_seed_epoch_and_index(image):
    first, again = AugmentTransform(SPEC, 0), AugmentTransform(SPEC, 0)
    one = first(image, epoch=3, index=7)
    first(image, epoch=0, index=0)
    assert (one.dtype, one.shape) == (torch.uint8, (3, 24, 24))
    assert torch.equal(first(image, epoch=3, index=7), one)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    assert torch.equal(again(image, epoch=3, index=7), one), "whatever was drawn before, in any worker"
    others = [again(image, epoch=4, index=7), again(image, epoch=3, index=8)]
    others.append(AugmentTransform(SPEC, 1)(image, epoch=3, index=7))
    assert not any(torch.equal(other, one) for other in others)
    assert len({again(image, epoch=e, index=i).numpy().tobytes() for e in range(4) for i in range(25)}) == 100


def test_global_generators_go_on_as_if_nothing_had_been(image):
    def draws():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()

    for function in (random.seed, np.random.seed, torch.manual_seed):
        function(5)
    random.gauss(0, 1)  # each of these keeps a second number for the next call
    np.random.randn()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    wanted = draws()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    AugmentTransform(SPEC, 0)(image, epoch=0, index=0)
    assert draws() == wanted
    with pytest.raises(ZeroDivisionError), seeded(3):
        raise ZeroDivisionError
    random.setstate(states[0])
    with seeded(1):
        inside = draws()
    with seeded(1):
        assert draws() == inside
    assert random.getstate() == states[0]


def timms_own() -> tuple[Compose, Compose]:
    """timm's factory with the values of Table A2: crop and flip, and what comes behind them."""
    crop_and_flip, others, _ = transforms_imagenet_train(
        24,
        scale=(0.08, 1.0),
        ratio=(0.75, 1.33),
        hflip=0.5,
        color_jitter=0.3,
        force_color_jitter=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        mean=SPEC.mean,
        std=SPEC.std,
        separate=True,
    )
    return crop_and_flip, others


def test_crop_and_flip_have_timms_numbers():
    ours, (crop, flip) = AugmentTransform(SPEC, 0), timms_own()[0].transforms
    assert (crop.scale, crop.ratio, flip.p) == (ours._crop.scale, ours._crop.ratio, ours._crop.flip)
    assert crop.size == (24, 24)


def test_what_follows_is_timms_own(image):
    """On our crop, from the same state of the generators: equal pixels. Each of timm's two steps must change some picture."""
    ours, (rand_augment, jitter) = AugmentTransform(SPEC, 0), timms_own()[1].transforms
    assert (type(rand_augment).__name__, type(jitter).__name__) == ("RandAugment", "ColorJitter")
    changed = 0
    for index in range(20):
        crop_CHW = ours._crop(image, draw_rng(0, "probe/crop", index, attempt=2))
        crop = Image.fromarray(crop_CHW.permute(1, 2, 0).numpy())
        with seeded(draw_key(0, "probe/augment", index, attempt=2)):
            between = rand_augment(crop)
            wanted = np.asarray(jitter(between))
        changed += not np.array_equal(np.asarray(between), np.asarray(crop))
        assert np.array_equal(ours(image, epoch=2, index=index).permute(1, 2, 0).numpy(), wanted)
    assert changed > 8  # two operations with probability 1/2 each: 15 of 20 on average


def test_crops_have_the_published_scale():
    """A picture whose red is its column and green its row tells its crop: shares of the area go from 0.08 to 1, evenly."""
    side = 200
    ramp = np.arange(side, dtype=np.uint8)
    rows, columns = np.meshgrid(ramp, ramp, indexing="ij")
    image = Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], axis=-1))
    transform = AugmentTransform(ImageSpec(200), 0)
    transform._rand_augment = transform._jitter = lambda picture: picture
    shares = []
    for index in range(200):
        picture = transform(image, epoch=0, index=index).float()
        width, height = (float(picture[c].max() - picture[c].min() + 1) for c in (0, 1))
        shares.append(width * height / side**2)
    # the mean of U(0.08, 1) is 0.54; wide crops of large shares do not fit and are drawn again, so that it is a little lower
    assert 0.07 < min(shares) < 0.15
    assert max(shares) > 0.9
    assert 0.42 < np.mean(shares) < 0.58


def test_half_of_the_pictures_are_flipped():
    ramp = np.tile(np.arange(60, dtype=np.uint8)[None, :, None] * 4, (60, 1, 3))
    transform = AugmentTransform(ImageSpec(16), 0)
    transform._rand_augment = transform._jitter = lambda picture: picture
    flipped = 0
    for index in range(200):
        picture = transform(Image.fromarray(ramp), epoch=0, index=index).float()
        flipped += bool(picture[0, 0, 0] > picture[0, 0, -1])
    assert 75 < flipped < 125


def test_what_training_pictures_go_through():
    plain = ImageTransform(SPEC)
    assert train_transform("none", transform=plain, seed=3) is plain
    augmented = train_transform("published", transform=plain, seed=3)
    assert isinstance(augmented, AugmentTransform)
    assert (augmented.spec, augmented.seed) == (SPEC, 3)


def test_the_strongest_posterize_is_not_refused():
    """N(9, 0.5) is 10 now and then: timm then keeps 0 bits, which Pillow refuses; here one bit is kept."""
    transform = AugmentTransform(ImageSpec(8), 0)
    ops = [op for op in transform._rand_augment.ops if op.name.startswith("Posterize")]
    assert ops
    image = Image.fromarray(np.full((8, 8, 3), 200, dtype=np.uint8))
    for op in ops:
        op.prob, op.magnitude, op.magnitude_std = 1.0, 10, 0
        assert np.asarray(op(image)).max() == 128
