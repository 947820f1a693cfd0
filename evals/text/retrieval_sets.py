"""Pictures with all their captions, for retrieval: scenes, WebDataset shards, COCO captions (configs/evals/retrieval)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from evals.configs import find_config, read_yaml
from evals.data.labelled import LabelledSet
from evals.scenes import EVAL_SEED
from pretrain.data.samples import FileSource
from pretrain.data.scene_render import render
from pretrain.data.scene_text import STYLES, caption
from pretrain.data.scenes import Scene, check_level_weights, draw_scene
from pretrain.data.shards import ShardSource
from pretrain.data.sources import CocoCaptionSource
from pretrain.data.storage import BadSample, digest
from pretrain.data.tokenizers import clean_caption
from pretrain.rng import draw_rng
from pretrain.types import Fault, UserError

RETRIEVAL = Path(__file__).parents[2] / "configs" / "evals" / "retrieval"
Kind = Literal["scenes", "shards", "coco"]


@dataclass(frozen=True)
class RetrievalConfig:
    """A data set of pictures with captions.

    Attributes:
        name: of the file.
        kind: "scenes", "shards" or "coco".
        split: what the pictures are, for the rows of results; of scenes, their own split.
        num: pictures that are taken where no other number is asked for; all where None.
        path: folder, with "shards" also a file, glob, brace range or URL; as a user names it with --data.
        shards: with "shards": which files of the folder.
        annotations: with "coco": the captions, relative to `path`.
        images: with "coco": the folder of pictures, relative to `path`.
        levels: with "scenes": weight of each level.
        styles: with "scenes": each gives a scene one caption.
    """

    name: str
    kind: Kind
    split: str
    num: int | None = None
    path: str | None = None
    shards: str = "*.tar"
    annotations: str | None = None
    images: str | None = None
    levels: Mapping[str, float] = field(default_factory=dict)
    styles: Sequence[str] = ()


class RetrievalSet(LabelledSet):
    """Pictures by index, captions as written. There are no classes: all labels are 0.

    Args:
        config: name and split.
        keys: names of the pictures.
        captions: one or more of each picture.
        load: picture by index; raises BadSample.
        faults: of pictures that are left out because they have no usable caption.
    """

    classes = ("picture",)

    def __init__(
        self,
        config: RetrievalConfig,
        *,
        keys: list[str],
        captions: list[list[str]],
        load: Callable[[int], Image.Image],
        faults: list[Fault],
    ) -> None:
        self.name, self.split, self.synthetic = config.name, config.split, config.kind == "scenes"
        self.keys, self.captions, self.faults, self._load = keys, captions, faults, load
        self.label_N = np.zeros(len(keys), dtype=np.int64)

    def load(self, index: int) -> Image.Image:
        return self._load(index)

    def key(self, index: int) -> str:
        return self.keys[index]

    def pictures_identity(self) -> str:
        """Names, and the captions that are to be matched with them."""
        return f"retrieval {digest(chr(0).join(self.keys).encode(), repr(self.captions).encode())}"

    def texts(self) -> tuple[list[str], list[list[int]]]:
        """The different captions, in order, and for each picture the indices of its own.

        Captions that are the same once cleaned (case, white space) are one text, which is right for every picture that has it.
        """
        index: dict[str, int] = {}
        texts: list[str] = []
        own = []
        for captions in self.captions:
            numbers = []
            for text in captions:
                cleaned = clean_caption(text)
                if cleaned not in index:
                    index[cleaned] = len(texts)
                    texts.append(text)
                numbers.append(index[cleaned])
            own.append(sorted(set(numbers)))
        return texts, own


def load_retrieval_config(name: str, data: str | None = None) -> RetrievalConfig:
    """The config of that name in `configs/evals/retrieval`, or in a .yaml file; `data` in place of its path.

    Raises:
        UserError: an unknown name or field, or a value that cannot be meant.
    """
    path = find_config(name, RETRIEVAL, field="--retrieval")
    content = read_yaml(path, [f.name for f in fields(RetrievalConfig) if f.name != "name"])
    for wanted in ("kind", "split"):
        if not isinstance(content.get(wanted), str):
            raise UserError(f"{path}: field {wanted!r} must be there, as a word")
    if content["kind"] not in get_args(Kind):
        raise UserError(f"{path}: kind: {content['kind']!r} is unknown; known are {', '.join(get_args(Kind))}")
    config = RetrievalConfig(name=path.stem, **content)
    if config.kind == "scenes":
        if data is not None:
            raise UserError(f"--data={data}: scenes are drawn, not read; leave it out or choose another --retrieval")
        check_level_weights(config.levels)
        if not config.styles or (unknown := set(config.styles) - set(STYLES)):
            wrong = sorted(unknown) if config.styles else "none"
            raise UserError(f"{path}: styles: {wrong} given; give one or more of {', '.join(STYLES)}")
        return config
    wanted_fields = ("path", "annotations", "images") if config.kind == "coco" else ("path",)
    config = config if data is None else replace(config, path=data)
    for wanted in wanted_fields:
        if not getattr(config, wanted):
            raise UserError(f"{path}: kind {config.kind} needs the field {wanted!r}")
    return config


def build_retrieval_set(config: RetrievalConfig, *, img_size: int, num: int | None, seed: int) -> RetrievalSet:
    """The pictures that are to be matched.

    Args:
        config: of the data set.
        img_size: side of drawn scenes in pixels.
        num: how many; all of the config's where None. From files a random part, of scenes the seed's own.
        seed: of that choice.

    Raises:
        UserError: files that are not there, or no captioned picture among them.
    """
    num = config.num if num is None else num
    if config.kind == "scenes":
        return _scenes(config, img_size=img_size, num=num or 200, seed=seed)
    return _from_source(config, _source(config), num=num, seed=seed)


def _scenes(config: RetrievalConfig, *, img_size: int, num: int, seed: int) -> RetrievalSet:
    """Scenes number seed * num and on of the split, so that other seeds have other scenes."""
    scenes = [draw_scene(EVAL_SEED, config.split, seed * num + index, config.levels) for index in range(num)]

    def worded(scene: Scene) -> list[str]:
        return [
            caption(scene, {style: 1.0}, draw_rng(EVAL_SEED, f"retrieval/{scene.split}/{style}", scene.index))
            for style in config.styles
        ]

    return RetrievalSet(
        config,
        keys=[scene.key for scene in scenes],
        captions=[worded(scene) for scene in scenes],
        load=lambda index: Image.fromarray(render(scenes[index], img_size)),
        faults=[],
    )


def _source(config: RetrievalConfig) -> FileSource:
    if config.kind == "shards":
        folder = Path(config.path).expanduser()
        return ShardSource(str(folder / config.shards) if folder.is_dir() else config.path)
    folder = Path(config.path).expanduser()
    if not folder.is_dir():
        raise UserError(f"--data: {config.path!r} is no folder with {config.annotations} and {config.images}")
    return CocoCaptionSource(folder / config.annotations, folder / config.images)


def _from_source(config: RetrievalConfig, source: FileSource, *, num: int | None, seed: int) -> RetrievalSet:
    order = range(len(source))
    if num is not None and num < len(source):
        order = sorted(draw_rng(seed, "retrieval", 0).permutation(len(source))[:num].tolist())
    index_N, captions, keys, faults = [], [], [], list(source.faults)
    for index in order:
        try:
            sample = source.read(index)
            if not sample.captions.texts:
                raise BadSample(Fault("bad_caption", sample.name, "no caption"))
        except BadSample as bad:
            faults.append(bad.fault)
            continue
        index_N.append(index)
        keys.append(sample.name)
        captions.append(sample.captions.texts)
    if not index_N:
        raise UserError(
            f"--retrieval={config.name}: {config.path!r} has no picture with a caption; the first: {faults[0].detail}"
        )
    return RetrievalSet(
        config,
        keys=keys,
        captions=captions,
        load=lambda index: source.load(index_N[index]).image,
        faults=faults,
    )
