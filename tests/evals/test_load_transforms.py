"""Each library's own preprocessing of a picture against the encoder's: exact in pixels, 1e-5 in normalised floats."""

import open_clip
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from transformers import AutoImageProcessor, BitImageProcessor, CLIPImageProcessor, SiglipImageProcessor

from evals.encoders.preprocessing import from_open_clip, from_preprocessor, from_timm
from evals.load import load_encoder
from evals.transforms import ImageTransform, crop_share
from pretrain.data.transforms import EvalTransform
from pretrain.export import save_json
from pretrain.types import ImageSpec, UserError

#: Wide, high, smaller than the crop, and with odd rests on both sides of it.
SIZES = [(90, 70), (70, 91), (20, 33), (123, 57), (64, 64)]
TIMM = {"input_size": (3, 32, 32), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"}
TIMM |= {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}


def photograph(size: tuple[int, int]) -> Image.Image:
    """Smooth areas with noise."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(size[1] // 8 + 1, size[0] // 8 + 1, 3, generator=generator)
    smooth = Image.fromarray((coarse * 200).to(torch.uint8).numpy()).resize(size, Image.Resampling.BICUBIC)
    noise = Image.fromarray((torch.rand(size[1], size[0], 3, generator=generator) * 255).to(torch.uint8).numpy())
    return Image.blend(smooth, noise, 0.15)


def pixels(transform: ImageTransform, image: Image.Image):
    return transform.spec.normalise(transform(image)[None])[0]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "change",
    [{}, {"crop_pct": 1.0}, {"crop_pct": 0.875, "interpolation": "bilinear"}, {"crop_mode": "squash"}],
    ids=["crop", "whole", "bilinear", "squash"],
)
def test_timm(size, change):
    config = TIMM | change
    close(pixels(from_timm(config, where=""), photograph(size)), create_transform(**config)(photograph(size)))


def test_timm_through_a_name():
    encoder = load_encoder("random:timm:vit_tiny_patch16_224[depth=1]")
    theirs = create_transform(**resolve_model_data_config(timm.create_model("vit_tiny_patch16_224", depth=1)))
    close(encoder.preprocess([photograph((300, 260))])[0], theirs(photograph((300, 260))))
    assert encoder.transform.crop_pct == 0.9


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_open_clip(size, mode, interpolation):
    config = PreprocessCfg(
        size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), interpolation=interpolation, resize_mode=mode
    )
    close(
        pixels(from_open_clip(vars(config), where=""), photograph(size)),
        image_transform_v2(config, is_train=False)(photograph(size)),
    )


def test_open_clip_takes_what_a_names_tags_share():
    """SigLIP squashes pictures and has its own statistics; without a tag open_clip would take CLIP's."""
    encoder = load_encoder("random:open_clip:ViT-B-16-SigLIP[img_size=32]")
    assert encoder.transform == ImageTransform(ImageSpec(32, (0.5,) * 3, (0.5,) * 3), mode="squash")
    assert encoder.provenance.architecture == "ViT-B-16-SigLIP[img_size=32]"
    tag = open_clip.get_pretrained_cfg("ViT-B-16-SigLIP", "webli")
    assert (tag["mean"], tag["resize_mode"]) == ((0.5,) * 3, "squash")


PROCESSORS = {
    "clip": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
    "siglip": SiglipImageProcessor(size={"height": 32, "width": 32}),
    "dinov2": BitImageProcessor(size={"shortest_edge": 37}, crop_size=32, image_mean=[0.4, 0.5, 0.6]),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", list(PROCESSORS))
def test_hugging_face(tmp_path, family, size):
    """Exact with transformers' PIL backend, within one grey level with its default, which resizes tensors.

    A crop's odd rest is halved downwards there and rounded to even in torchvision and here: 3 pixels give 1 and 2.
    """
    PROCESSORS[family].save_pretrained(tmp_path)
    image, resized = photograph(size), 37 if family == "dinov2" else 32
    transform = from_preprocessor(tmp_path)
    ours = pixels(transform, image)
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(image, return_tensors="pt").pixel_values[0]
    down, right = (
        int(family != "siglip" and (int(resized * side / min(size)) - 32) % 4 == 3) for side in (size[1], size[0])
    )
    close(ours[:, : 32 - down, : 32 - right], theirs[:, down:, right:])
    if not down and not right:
        tensors = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt").pixel_values[0]
        assert (ours - tensors).abs().max() <= 1.01 / 255 / min(transform.spec.std)


def test_the_suites_own():
    for size in SIZES:
        image = photograph(size)
        assert torch.equal(ImageTransform(ImageSpec(32))(image), EvalTransform(32)(image, None))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"size": {"longest_edge": 9}}, "give shortest_edge, or height and width"),
        ({"size": {"height": 9, "width": 8}, "image_mean": [0] * 3, "image_std": [1] * 3}, "square"),
        ({"size": {"shortest_edge": 32}, "do_center_crop": False}, "do_center_crop is off"),
        ({"size": {"shortest_edge": 32}, "crop_size": 40}, "crop_size 40 is larger than the resized picture, 32"),
        ({"size": 32, "do_resize": False}, "do_resize and do_rescale must be true"),
        ({"size": 32, "rescale_factor": 1.0}, "not 1/255"),
        ({"size": 32, "resample": 5}, "resample 5"),
        ({"size": 32}, "image_mean and image_std must be there"),
    ],
)
def test_what_cannot_be_done_is_an_error(tmp_path, content, words):
    save_json(content, tmp_path / "preprocessor_config.json")
    with pytest.raises(UserError, match=words):
        from_preprocessor(tmp_path)


def test_padding_is_refused():
    with pytest.raises(UserError, match="crop_mode 'border'"):
        from_timm(TIMM | {"crop_mode": "border"}, where="x")
    with pytest.raises(UserError, match="resize_mode 'longest'"):
        from_open_clip(vars(PreprocessCfg(resize_mode="longest")), where="x")


def test_the_share_gives_the_resized_side():
    """int(size / share) == resized: 224 / (224 / 256) is exact, others fall short by a bit."""
    assert crop_share(224, resized=256) == 0.875
    assert all(int(size / crop_share(size, resized=r)) == r for size in (32, 224, 336) for r in range(size, 3 * size))
