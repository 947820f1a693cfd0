"""Pictures padded to a square, as LLaVA-1.5 has it: nothing is cut off, and the bars have the statistics' mean colour."""

import numpy as np
import pytest
from PIL import Image

from evals.encoder import seeing_whole_pictures
from evals.load import load_encoder
from evals.transforms import ImageTransform, whole_picture
from pretrain.types import ImageSpec

MEAN = (0.4, 0.2, 0.6)


def transform(size, **options):
    return ImageTransform(ImageSpec(size, MEAN, (0.5, 0.5, 0.5)), **options)


def test_a_wide_picture_gets_bars_above_and_below():
    """8 x 4, green: two rows of the mean above, four of green, two below."""
    picture = Image.new("RGB", (8, 4), (0, 255, 0))
    seen = transform(8, mode="pad")(picture).permute(1, 2, 0).numpy()
    bar = np.array([102, 51, 153])  # 255 times the mean
    assert (seen[:2] == bar).all()
    assert (seen[2:6] == (0, 255, 0)).all()
    assert (seen[6:] == bar).all()


def test_a_tall_picture_gets_bars_at_its_sides():
    picture = Image.new("RGB", (4, 8), (0, 255, 0))
    seen = transform(8, mode="pad")(picture).permute(1, 2, 0).numpy()
    assert (seen[:, 2:6] == (0, 255, 0)).all()
    assert (seen[:, [0, 1, 6, 7]] == (102, 51, 153)).all()


def test_nothing_is_cut_off_and_the_aspect_stays():
    """A white dot in each corner of a 40 x 20 picture is seen in a 20 x 20 one, ten rows high in the middle."""
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    for y in (0, 16):
        for x in (0, 36):
            pixels[y : y + 4, x : x + 4] = 255
    seen = transform(20, mode="pad", interpolation="nearest")(Image.fromarray(pixels)).permute(1, 2, 0).numpy()
    white = np.argwhere((seen == 255).all(-1))
    assert white.min(0).tolist() == [5, 0]
    assert white.max(0).tolist() == [14, 19]


def test_a_square_picture_is_resized_as_ever():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8))
    assert (transform(6, mode="pad")(picture) == transform(6, mode="squash")(picture)).all()


def test_a_crop_is_given_up():
    cropping = transform(8, crop_pct=0.5, mode="crop")
    padded = whole_picture(cropping, mode="pad", img_size=6)
    assert (padded.crop_pct, padded.mode, padded.spec.img_size) == (1.0, "pad", 6)
    assert padded.identity() != cropping.identity()


def test_an_encoder_sees_so_and_stays_as_it_is():
    encoder = load_encoder("random:timm:test_vit[img_size=32]")
    before = encoder.transform
    seeing = seeing_whole_pictures(encoder, mode="pad")
    assert seeing.transform.mode == "pad"
    assert encoder.transform is before
    assert seeing.vit is encoder.vit
    with pytest.raises(Exception, match="multiples of its patch"):
        seeing_whole_pictures(encoder, mode="pad", img_size=33)
