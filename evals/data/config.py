"""Data sets of the evaluations as configs name them: configs/evals/datasets/NAME.yaml, one file for one data set."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from evals.data.augment import Augment
from evals.data.files import did_you_mean, read_names
from evals.data.folders import folder_set
from evals.data.imagenet import class_names, imagenet_set
from evals.data.labelled import LabelledSet
from evals.data.packed import LabelledShards, ParquetSet
from evals.data.scene_set import SceneSet, Target
from evals.data.tables import check_rows, inaturalist_set, table_set
from evals.data.torchvision_sets import torchvision_set
from pretrain.data.storage import one_line
from pretrain.types import UserError

FOLDER = Path(__file__).parents[2] / "configs" / "evals" / "datasets"
#: What `classes` may be in place of names or a file: the official list that timm ships.
IMAGENET_CLASSES = "imagenet1k"
#: Fields that only some kinds have a use for; those with an asterisk are needed.
_FIELDS = {
    "imagenet": ("path*",),
    "folders": ("path*", "classes"),
    "torchvision": ("path*", "torchvision*", "download", "partition"),
    "inaturalist": ("path*",),
    "table": ("path*", "image*", "label*", "columns", "delimiter", "train_rows", "test_rows", "classes"),
    "parquet": ("path*", "image_column", "label_column", "classes"),
    "shards": ("path*", "label_field", "classes"),
    "scenes": ("levels*", "target*", "seed", "train_start", "test_start"),
}
_OWN_FIELDS = {field.rstrip("*") for kind in _FIELDS.values() for field in kind}
Split = Literal["train", "test"]


@dataclass(frozen=True)
class DatasetConfig:
    """One data set: where it lies, what is expected there, and the protocol's settings for it.

    Attributes:
        name: as rows of results tell it.
        kind: "imagenet" (official folders, classes checked), "folders" (class folders), "torchvision", "inaturalist" (the
            competition's json), "table" (pictures and a table of them), "parquet" (Hugging Face), "shards" (WebDataset) or
            "scenes" (generated).
        train: the data set's own name of what is trained on: a folder, torchvision's split, a file or a glob in `path`.
        test: likewise for what is scored.
        num_train: expected pictures; another number is an error; None checks nothing.
        num_test: likewise.
        num_classes: expected classes, likewise.
        split_rule: which pictures are in which split, in words.
        source: where the data can be had, and how its folder must look.
        license: what its owners allow.
        path: where it lies, from the folder that commands are run in.
        classes: names of the classes in the order of their labels, a file of them in `path`, or "imagenet1k".
        metric: what the paper's table holds: "top1" for every set (reference, sections 6 and 7 name no other).
        batch_size: of the published protocol (Table A2): 1024 for ImageNet-1k, 512 for the others.
        warmup_epochs: likewise: 5 for ImageNet-1k, 0 for the others.
        synthetic: whether pictures are generated.
        augment: "published" (Table A2), or "none" where crops would cut off what the class is about.
        prompts: name of the class prompts for zero-shot classification.
        check_sizes: whether other sizes than those expected are an error.
        torchvision: name of torchvision's class.
        download: let torchvision fetch the data.
        partition: DTD's.
        image: table: path of a row's picture, with columns in braces.
        label: table: column of the class.
        columns: table: names of the columns where the file has no header.
        delimiter: table: between columns.
        train_rows: table: column -> value, list of values or {from, below}: which rows are in the training split.
        test_rows: table: likewise.
        image_column: parquet: pictures.
        label_column: parquet: labels.
        label_field: shards: "cls", or a field of the `.json`.
        levels: scenes: names of the levels, which take turns.
        target: scenes: "shape" or "shape_color".
        seed: scenes: of all of them.
        train_start: scenes: number of the first one trained on.
        test_start: scenes: number of the first one scored.
    """

    name: str
    kind: Literal["imagenet", "folders", "torchvision", "inaturalist", "table", "parquet", "shards", "scenes"]
    train: str
    test: str
    num_train: int | None
    num_test: int | None
    num_classes: int | None
    split_rule: str
    source: str
    license: str
    path: str | None = None
    classes: list[str] | str | None = None
    metric: Literal["top1"] = "top1"
    batch_size: int = 512
    warmup_epochs: int = 0
    synthetic: bool = False
    augment: Augment = "published"
    prompts: str | None = None
    check_sizes: bool = True
    torchvision: str | None = None
    download: bool = False
    partition: int = 1
    image: str | None = None
    label: str | None = None
    columns: list[str] | None = None
    delimiter: str = ","
    train_rows: dict[str, Any] | None = None
    test_rows: dict[str, Any] | None = None
    image_column: str = "image"
    label_column: str = "label"
    label_field: str = "cls"
    levels: list[str] | None = None
    target: Target | None = None
    seed: int = 0
    train_start: int = 0
    test_start: int = 0

    def check(self) -> None:
        """Raise UserError for a field that is missing, of no use to this kind, or out of range."""
        wanted = _FIELDS[self.kind]
        used = {field.rstrip("*") for field in wanted}
        for field in fields(self):
            if field.name in _OWN_FIELDS - used and getattr(self, field.name) != field.default:
                raise UserError(
                    f"{field.name}={getattr(self, field.name)!r} is not used by kind {self.kind}; leave it out"
                )
        for field in wanted:
            if field.endswith("*") and not getattr(self, field[:-1]):
                raise UserError(f"{field[:-1]} is needed with kind {self.kind}")
        for name, least in [
            ("batch_size", 1),
            ("warmup_epochs", 0),
            ("num_train", 1),
            ("num_test", 1),
            ("num_classes", 2),
        ]:
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name}={value} must be at least {least}")
        if self.kind == "scenes" and (self.num_train is None or self.num_test is None):
            raise UserError("num_train and num_test are needed with kind scenes: they say how many are drawn")
        if len(self.delimiter) != 1:
            raise UserError(f"delimiter={self.delimiter!r} must be one character")
        check_rows(self.train_rows, "train_rows")
        check_rows(self.test_rows, "test_rows")


def dataset_names() -> list[str]:
    """Names that `load_dataset_config` knows."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_dataset_config(name_or_path: str, *, path: str | None = None, allow_sizes: bool = False) -> DatasetConfig:
    """The config of a data set.

    Args:
        name_or_path: a name in configs/evals/datasets, or a .yaml file.
        path: the data's place, instead of the config's.
        allow_sizes: take the data whatever its number of pictures. By default the numbers of the config must be there, so
            that a half-copied ImageNet is no ImageNet score; with this, a subset or a made-up set in the same layout can be
            used. Classes are checked all the same.

    Raises:
        UserError: unknown name, unknown or missing field, wrong type or value.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        file = Path(name_or_path).expanduser()
    else:
        file = FOLDER / f"{name_or_path}.yaml"
        if not file.is_file():
            names = dataset_names()
            near = did_you_mean(name_or_path, names)
            raise UserError(f"dataset: {name_or_path!r} is unknown{near}; give a .yaml or one of {', '.join(names)}")
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"dataset: {file} cannot be read ({one_line(error)})") from error
    try:
        config = _from_dict(content)
        if path is not None:
            if config.kind == "scenes":
                raise UserError(f"path={path!r}: {config.name} is generated and lies nowhere; name another data set")
            config = replace(config, path=str(path))
        config = replace(config, check_sizes=config.check_sizes and not allow_sizes)
        config.check()
    except UserError as error:
        raise UserError(f"dataset {file.name}: {error}") from error
    return config


def _from_dict(content: Any) -> DatasetConfig:
    if not isinstance(content, dict):
        raise UserError(f"holds {type(content).__name__}, not fields with their values")
    known = {field.name: field for field in fields(DatasetConfig)}
    hints = get_type_hints(DatasetConfig)
    for name, value in content.items():
        if name not in known:
            raise UserError(f"field {name!r} is unknown{did_you_mean(str(name), known)}; there are {', '.join(known)}")
        if not _fits(value, hints[name]):
            raise UserError(f"{name}={value!r:.60} is wrong; it must be {_describe(hints[name])}")
    if missing := [name for name, field in known.items() if field.default is MISSING and name not in content]:
        raise UserError(f"{', '.join(missing)} must be given")
    return DatasetConfig(**content)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of YAML's is of this type."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(key, inner[0]) for key in value)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_describe(one) for one in get_args(hint))
    words = {str: "text", int: "a whole number", bool: "true or false", NoneType: "null"}
    return words.get(hint) or {list: "a list of texts", dict: "fields with values"}[get_origin(hint)]


def build_set(config: DatasetConfig, split: Split, *, img_size: int) -> LabelledSet:
    """One split of a data set; no picture is decoded.

    Args:
        config: of `load_dataset_config`.
        split: "train" or "test".
        img_size: side in pixels that scenes are rendered at; other sets give pictures as they are stored.

    Raises:
        UserError: the data is missing or not as the config says.
    """
    assert split in ("train", "test")
    try:
        built = _build(config, split, img_size)
    except UserError as error:
        place = "" if config.kind == "scenes" else "; DATA=... names another place"
        raise UserError(f"{config.name}: {error}{place}") from error
    if config.num_classes is not None and len(built.classes) != config.num_classes:
        raise UserError(f"{config.name}: {len(built.classes)} classes are there, {config.num_classes} are expected")
    expected = config.num_train if split == "train" else config.num_test
    if config.check_sizes and expected is not None and len(built) != expected:
        raise UserError(
            f"{config.name}: its {split} split has {len(built):,} pictures in {config.path!r}, {expected:,} are expected; "
            "complete it, or take it as it is (--allow_sizes=true)"
        )
    return built


def _build(config: DatasetConfig, split: Split, img_size: int) -> LabelledSet:
    common = {"name": config.name, "split": split}
    own_split = config.train if split == "train" else config.test
    root = config.path or ""
    match config.kind:
        case "imagenet":
            return imagenet_set(root, own_split=own_split, **common)
        case "folders":
            return folder_set(root, own_split=own_split, train_split=config.train, classes=_names(config), **common)
        case "torchvision":
            options = {"dataset": config.torchvision, "download": config.download, "partition": config.partition}
            return torchvision_set(root, own_split=own_split, **options, **common)
        case "inaturalist":
            return inaturalist_set(root, own_split=own_split, **common)
        case "table":
            layout = {
                "image": config.image,
                "label": config.label,
                "columns": config.columns,
                "delimiter": config.delimiter,
            }
            rows = {"train_rows": config.train_rows, "test_rows": config.test_rows}
            files = {"train": config.train, "test": config.test}
            return table_set(root, **files, **layout, **rows, classes=_names(config), **common)
        case "parquet":
            columns = {"image_column": config.image_column, "label_column": config.label_column}
            names = {"classes": _names(config), "num_classes": config.num_classes}
            return ParquetSet(root, own_split=own_split, **columns, **names, **common)
        case "shards":
            names = {"classes": _names(config), "num_classes": config.num_classes}
            return LabelledShards(root, own_split=own_split, label_field=config.label_field, **names, **common)
    start, count = (config.train_start, config.num_train) if split == "train" else (config.test_start, config.num_test)
    scenes = {"levels": config.levels, "target": config.target, "seed": config.seed, "img_size": img_size}
    return SceneSet(own_split, start=start, count=count, **scenes, **common)


def _names(config: DatasetConfig) -> Sequence[str] | None:
    """Names that the config gives, itself or in a file."""
    if config.classes == IMAGENET_CLASSES:
        return class_names()
    if isinstance(config.classes, str):
        return read_names(Path(config.path or "").expanduser() / config.classes)
    return config.classes
