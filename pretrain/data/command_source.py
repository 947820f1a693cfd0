"""Flags by which a command names a source: the fields of `SourceConfig`."""

import argparse
import os
from pathlib import Path
from typing import Any

from pretrain.data.remote import is_remote
from pretrain.data.samples import Source
from pretrain.data.scene_text import STYLES
from pretrain.data.scenes import LEVELS, SPLITS
from pretrain.data.source_config import KINDS, SourceConfig, StorageConfig
from pretrain.data.storage import digest
from pretrain.types import UserError


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("source", "as data.train in a config")
    group.add_argument("--from", dest="kind", choices=KINDS, required=True, help="kind of the source")
    group.add_argument(
        "--path", nargs="+", default=None, help="file, folder, glob, brace range or URL, as the kind takes"
    )
    group.add_argument("--images", default=None, help="coco, table: folder of the pictures")
    group.add_argument("--image-column", default="image", help="table, parquet: column of pictures (default: image)")
    group.add_argument("--caption-column", default="caption", help="table, parquet: of captions (default: caption)")
    group.add_argument("--caption-field", default=None, help="shards: the .json's field of the caption")
    group.add_argument(
        "--captions",
        nargs="+",
        metavar="NAME[=WEIGHT]",
        default=None,
        help=f"fields or columns of several kinds of caption; scenes: styles ({', '.join(STYLES)})",
    )
    group.add_argument(
        "--levels", nargs="+", metavar="NAME[=WEIGHT]", default=None, help=f"scenes: levels ({', '.join(LEVELS)})"
    )
    group.add_argument("--num", type=int, default=None, help="scenes: how many")
    group.add_argument("--img-size", type=int, default=None, help="scenes: side in pixels (default: 224)")
    group.add_argument("--split", choices=SPLITS, default=None, help="scenes: which split (default: train)")
    group.add_argument("--seed", type=int, default=None, help="scenes: which scenes (default: 0)")
    group.add_argument("--index-cache", type=Path, default=None, help="shards: folder of their indices")


def weights(values: list[str] | None, *, flag: str) -> dict[str, float] | None:
    """`["a=2", "b"]` as {"a": 2.0, "b": 1.0}. Raises UserError for a weight that is no number, or a name given twice."""
    if values is None:
        return None
    found: dict[str, float] = {}
    for value in values:
        name, _, weight = value.partition("=")
        try:
            number = float(weight or 1)
        except ValueError as error:
            raise UserError(f"{flag} {value}: {weight!r} is no number; give NAME=WEIGHT, e.g. {name}=0.5") from error
        if name in found:
            raise UserError(f"{flag}: {name!r} is given twice; give each name once")
        found[name] = number
    return found


def _config(options: argparse.Namespace) -> SourceConfig:
    path = options.path[0] if options.path and len(options.path) == 1 else options.path
    config = SourceConfig(
        kind=options.kind,
        path=path,
        images=options.images,
        image_column=options.image_column,
        caption_column=options.caption_column,
        caption_field=options.caption_field,
        levels=weights(options.levels, flag="--levels"),
        captions=weights(options.captions, flag="--captions"),
        num_scenes=options.num,
    )
    config.check(None)
    for flag in ("img_size", "split", "seed"):
        if config.kind != "scenes" and getattr(options, flag) is not None:
            raise UserError(f"--{flag.replace('_', '-')} is not used by --from {config.kind}: leave it out")
    if config.kind == "scenes" and (config.num_scenes or 0) < 1:
        raise UserError("--num is needed with --from scenes: how many to draw, at least 1")
    return config


def _absolute(path: str) -> str:
    return path if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def build_source(options: argparse.Namespace) -> tuple[Source, dict[str, Any]]:
    """The source that the flags name, and what tells it from others: plain values, the same in another working folder.

    Raises:
        UserError: a flag is missing, is not used by this kind, or names something that cannot be read.
    """
    config = _config(options)
    scenes = config.kind == "scenes"
    drawn = {
        "img_size": options.img_size if options.img_size is not None else 224,
        "split": options.split or "train",
        "seed": options.seed or 0,
    }
    source = config.build(None, **drawn, storage=StorageConfig(options.index_cache))
    default = SourceConfig()
    about = {key: value for key, value in vars(config).items() if value != getattr(default, key)}
    for key in ("path", "images"):
        if key in about:
            about[key] = [_absolute(path) for path in ([about[key]] if isinstance(about[key], str) else about[key])]
    names = digest(source.identity().encode())
    return source, {"kind": config.kind, **about, **(drawn if scenes else {}), "samples": len(source), "files": names}
