"""Each library's description of how pictures enter a model, as an `ImageTransform`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.encoders.specs import read_object
from evals.transforms import ImageTransform, crop_share
from pretrain.types import ImageSpec, UserError

#: PIL's numbers of its filters, as `preprocessor_config.json` has them.
_PIL_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_FILTERS = tuple(_PIL_FILTERS.values())
_BYTE = 1 / 255


def square(where: str, size: int | Sequence[int]) -> int:
    """The side of square pictures; UserError where they are not square."""
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(f"{where}: pictures of {height} x {width}; evaluations take square ones")
    return int(height)


def _filter(where: str, name: str) -> Any:
    if name not in _FILTERS:
        raise UserError(f"{where}: interpolation {name!r} is not known; {', '.join(_FILTERS)} are")
    return name


def from_timm(config: Mapping[str, Any], *, where: str) -> ImageTransform:
    """From what `timm.data.resolve_model_data_config` gives.

    Raises:
        UserError: pictures that are not square, or that are padded ("border").
    """
    modes = {"center": "crop", "squash": "squash"}
    if config["crop_mode"] not in modes:
        raise UserError(f"{where}: crop_mode {config['crop_mode']!r} is not known; {', '.join(modes)} are")
    spec = ImageSpec(square(where, config["input_size"][-2:]), tuple(config["mean"]), tuple(config["std"]))
    interpolation = _filter(where, config["interpolation"])
    return ImageTransform(spec, config["crop_pct"], interpolation, modes[config["crop_mode"]])


def from_open_clip(config: Mapping[str, Any], *, where: str) -> ImageTransform:
    """From a model's `visual.preprocess_cfg`.

    Raises:
        UserError: pictures that are not square, or that are padded ("longest").
    """
    modes = {"shortest": "crop", "squash": "squash"}
    if config["resize_mode"] not in modes:
        raise UserError(f"{where}: resize_mode {config['resize_mode']!r} is not known; {', '.join(modes)} are")
    spec = ImageSpec(square(where, config["size"]), tuple(config["mean"]), tuple(config["std"]))
    # what is not "bilinear" is bicubic there
    interpolation = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    return ImageTransform(spec, interpolation=interpolation, mode=modes[config["resize_mode"]])


def from_preprocessor(folder: Path) -> ImageTransform | None:
    """From Hugging Face's `preprocessor_config.json`; None where the folder has none.

    Raises:
        UserError: the file describes what an `ImageTransform` cannot do, or lacks a size.
    """
    path = folder / "preprocessor_config.json"
    about = read_object(path)
    if not about:
        return None
    if not about.get("do_resize", True) or not about.get("do_rescale", True):
        raise UserError(f"{path}: do_resize and do_rescale must be true")
    if abs(about.get("rescale_factor", _BYTE) - _BYTE) > 1e-6:
        raise UserError(f"{path}: rescale_factor is {about['rescale_factor']}, not 1/255")
    resample = about.get("resample", 3)
    if resample not in _PIL_FILTERS:
        raise UserError(f"{path}: resample {resample!r} is none of PIL's {_PIL_FILTERS}")
    size, mode = _resized(path, about)
    crop = size
    if about.get("do_center_crop", "crop_size" in about):
        given = about.get("crop_size", size)
        crop = square(str(path), (given["height"], given["width"]) if isinstance(given, Mapping) else given)
    elif mode == "crop":
        raise UserError(
            f"{path}: size has a shortest_edge only and do_center_crop is off; evaluations take square pictures"
        )
    if crop > size:
        raise UserError(f"{path}: crop_size {crop} is larger than the resized picture, {size}")
    mean, std = (0.0,) * 3, (1.0,) * 3
    if about.get("do_normalize", True):
        try:
            mean, std = tuple(about["image_mean"]), tuple(about["image_std"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: image_mean and image_std must be there, three numbers each") from error
    return ImageTransform(ImageSpec(crop, mean, std), crop_share(crop, resized=size), _PIL_FILTERS[resample], mode)


def _resized(path: Path, about: Mapping[str, Any]) -> tuple[int, Any]:
    """Side in pixels after resizing, and the mode: "crop" where the short side has it, "squash" where both have."""
    size = about.get("size")
    if isinstance(size, int):  # as old files have it: of the short side where a crop follows
        return size, "crop" if about.get("do_center_crop", "crop_size" in about) else "squash"
    if isinstance(size, Mapping) and isinstance(size.get("shortest_edge"), int):
        return size["shortest_edge"], "crop"
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return square(str(path), (size["height"], size["width"])), "squash"
    raise UserError(f"{path}: size is {size!r}; give shortest_edge, or height and width")
