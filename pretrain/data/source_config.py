"""Sources as a config names them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretrain.data.parquet import ParquetSource
from pretrain.data.remote import ShardCopies
from pretrain.data.scene_source import SceneSource
from pretrain.data.shard_index import default_cache
from pretrain.data.shards import ShardSource
from pretrain.data.sources import CocoCaptionSource, FolderSource, Source, TableSource
from pretrain.types import UserError

#: Fields that a kind of source has a use for, beside `kind` and `weight`; those with an asterisk are needed.
_FIELDS = {
    "scenes": ("levels*", "captions*", "num_scenes"),
    "shards": ("path*", "caption_field", "captions"),
    "parquet": ("path*", "image_column", "caption_column", "captions", "class_names"),
    "coco": ("path*", "images*"),
    "table": ("path*", "images", "image_column", "caption_column", "captions"),
    "folder": ("path*",),
}
KINDS = tuple(_FIELDS)
#: Fields whose flag has another name.
_FLAGS = {"num_scenes": "--num"}


@dataclass(frozen=True)
class StorageConfig:
    """Where files about the data are kept.

    Attributes:
        index_cache: folder of the shards' indices; :func:`default_cache` where None.
        copies_gib: bound of the folder that remote shards are copied to, in GiB.
    """

    index_cache: Path | None = None
    copies_gib: float = 64.0

    def copies(self) -> ShardCopies:
        return ShardCopies((self.index_cache or default_cache()) / "copies", max_gib=self.copies_gib)


@dataclass(frozen=True)
class SourceConfig:
    """Where pictures and captions come from.

    Attributes:
        kind: "scenes" (generated), "shards" (WebDataset tars), "parquet" (Hugging Face's layout), "coco" (captions json and
            pictures), "table" (CSV, TSV or JSONL of paths and captions) or "folder" (pictures without captions).
        path: shards and parquet: folder, glob, brace range, URL or list; coco: the captions json; table: the file; folder:
            the folder.
        images: coco and table: folder of the pictures.
        image_column: table and parquet: column of picture paths or pictures.
        caption_column: table and parquet: column of captions.
        caption_field: shards: field of the `.json` that holds the caption or captions.
        levels: scenes: weight of each level.
        captions: scenes: weight of each caption style ("short", "full", "alt"); shards, parquet and table: weight of each
            kind of caption, by the field or column that holds it, in place of `caption_field` or `caption_column`.
        class_names: parquet: file of class names, one a line, that captions are made of by the rows' labels.
        num_scenes: scenes: how many different ones; never the same twice where not given.
        weight: in a mixture: the source's share of the samples, in proportion.
    """

    kind: Literal["scenes", "shards", "parquet", "coco", "table", "folder"] = "scenes"
    path: str | list[str] | None = None
    images: str | None = None
    image_column: str = "image"
    caption_column: str = "caption"
    caption_field: str | None = None
    levels: dict[str, float] | None = None
    captions: dict[str, float] | None = None
    class_names: str | None = None
    num_scenes: int | None = None
    weight: float = 1.0

    def check(self, name: str | None) -> None:
        """Raise UserError for a missing field, and for one that this kind has no use for.

        Args:
            name: the source's place in the config, or None where its fields were given as flags of a command.
        """

        def called(field: str) -> str:
            return f"data.{name}.{field}" if name else _FLAGS.get(field, f"--{field.replace('_', '-')}")

        kind = f"kind={self.kind}" if name else f"--from {self.kind}"
        fields = _FIELDS[self.kind]
        used = {field.rstrip("*") for field in fields}
        default = SourceConfig()
        for key in vars(self):
            if key not in used | {"kind", "weight"} and getattr(self, key) != getattr(default, key):
                raise UserError(f"{called(key)}={getattr(self, key)!r} is not used by {kind}: leave it out")
        for field in fields:
            if field.endswith("*") and not getattr(self, field[:-1]):
                raise UserError(f"{called(field[:-1])} is needed with {kind}")
        if self.kind not in ("shards", "parquet") and isinstance(self.path, list):
            raise UserError(f"{called('path')} must be one path with {kind}, not a list")
        if self.class_names is not None and self.captions is not None:
            raise UserError(f"give {called('class_names')} or {called('captions')}, not both")
        if self.captions is not None and self.kind != "scenes":
            self._check_caption_kinds(called)

    def _check_caption_kinds(self, called: Callable[[str], str]) -> None:
        for other in ("caption_field", "caption_column"):
            if getattr(self, other) != getattr(SourceConfig(), other):
                raise UserError(f"give {called(other)} or {called('captions')} (weights of several fields), not both")
        if not self.captions or not all(0 < weight < float("inf") for weight in self.captions.values()):
            raise UserError(
                f"{called('captions')}={self.captions}: give each field of captions a weight above 0, or leave it out"
            )

    def build(
        self, name: str | None, *, seed: int, split: str, img_size: int, storage: StorageConfig | None = None
    ) -> Source:
        """The source itself; UserError where a path or field is wrong. `name` is as in :meth:`check`."""
        self.check(name)
        storage = storage or StorageConfig()
        match self.kind:
            case "scenes":
                return SceneSource(
                    seed=seed,
                    split=split,
                    img_size=img_size,
                    num_scenes=self.num_scenes or 2**40,
                    levels=self.levels,
                    captions=self.captions,
                )
            case "shards":
                return ShardSource(
                    self.path,
                    caption_field=self.caption_field,
                    caption_weights=self.captions,
                    index_cache=storage.index_cache,
                    copies=storage.copies(),
                )
            case "parquet":
                return ParquetSource(
                    self.path,
                    image_column=self.image_column,
                    caption_column=self.caption_column,
                    caption_weights=self.captions,
                    class_names=self.class_names,
                )
            case "coco":
                return CocoCaptionSource(self.path, self.images)
            case "table":
                return TableSource(
                    self.path,
                    images=self.images,
                    image_column=self.image_column,
                    caption_column=self.caption_column,
                    caption_weights=self.captions,
                )
        return FolderSource(self.path)


def training_configs(train: SourceConfig | None, mixture: Mapping[str, SourceConfig] | None) -> dict[str, SourceConfig]:
    """The training sources by name, "" for the only one.

    Raises:
        UserError: not exactly one of `train` and `mixture`, a mixture of nothing, or a name that is not one word.
    """
    if (train is None) == (mixture is None):
        raise UserError(
            "data: give exactly one of data.train (one source) and data.mixture (several, each with its weight)"
        )
    if train is not None:
        if train.weight != 1.0:
            raise UserError(f"data.train.weight={train.weight}: one source alone has no weight; see data.mixture")
        return {"": train}
    if not mixture:
        raise UserError("data.mixture is empty: name at least one source")
    for name in mixture:
        if not name.replace("_", "").replace("-", "").isalnum():
            raise UserError(f"data.mixture: a source is named {name!r}; give letters, digits, - and _")
    return dict(mixture)


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of photographs (published: reference, section 4). Scenes are never cropped or flipped.

    Attributes:
        scale: share of the picture's area that a crop keeps.
        ratio: aspect ratios of a crop.
        flip: probability of a mirror image.
        reduced_decoding: decode a JPEG at a half, a quarter or an eighth where every crop keeps `img_size` pixels all the same.
    """

    scale: tuple[float, float] = (0.4, 1.0)
    ratio: tuple[float, float] = (0.75, 1.33)
    flip: float = 0.5
    reduced_decoding: bool = True
