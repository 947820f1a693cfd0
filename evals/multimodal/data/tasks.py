"""Tasks as configs name them: configs/evals/vqa/NAME.yaml asks questions, configs/evals/captions/NAME.yaml wants captions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from evals.configs import config_names, find_config, read_config
from evals.data.files import existing_folder
from evals.multimodal.data.caption_sets import CaptionSource, caption_examples
from evals.multimodal.data.gqa import read_gqa
from evals.multimodal.data.jsonl import read_jsonl
from evals.multimodal.data.mmbench import read_mmbench
from evals.multimodal.data.question_set import QuestionSet
from evals.multimodal.data.scene_questions import QUESTION_SEED, scene_examples
from evals.multimodal.data.textvqa import read_textvqa
from evals.multimodal.data.vqa_v2 import read_vqa_v2
from evals.multimodal.examples import Example
from evals.multimodal.metrics.registry import metric as find_metric
from pretrain.data.scene_text import STYLES
from pretrain.data.scenes import check_level_weights
from pretrain.types import UserError

_CONFIGS = Path(__file__).parents[3] / "configs" / "evals"
#: Folders of tasks: of those with questions, of those whose answers are captions.
QUESTIONS, CAPTIONS = _CONFIGS / "vqa", _CONFIGS / "captions"
FieldsOf = Mapping[str, Sequence[str]]
#: Kind -> fields that it needs.
_NEEDED: FieldsOf = {
    "scenes": ("question_kind", "num", "levels"),
    "vqav2": ("path", "questions", "annotations", "images"),
    "gqa": ("path", "questions", "images"),
    "textvqa": ("path", "file", "images"),
    "mmbench": ("path", "file"),
    "jsonl": ("path", "file", "images"),
    "scene_captions": ("styles", "num", "levels"),
    "coco_captions": ("path", "annotations", "images"),
    "shards": ("path", "file"),
}
#: Kind -> fields that it may have; no kind takes what is only another's.
_OPTIONAL: FieldsOf = {"scenes": ("seed",), "scene_captions": ("seed",)}
#: Kinds whose pictures are drawn, and those that are captions and nothing else.
DRAWN, _CAPTIONS = ("scenes", "scene_captions"), ("scene_captions", "coco_captions", "shards")
#: Splits of scenes that tasks may ask about; what models are taught is of split "train" (`instructions.py`).
_SCORED_SCENES = ("val", "test")
#: Kind -> what `CaptionSource` calls it.
_CAPTION_SOURCES = {"scene_captions": "scenes", "coco_captions": "coco", "shards": "shards", "jsonl": "jsonl"}


@dataclass(frozen=True)
class TaskConfig:
    """One task: what is asked about which pictures, and how the answers are scored.

    Attributes:
        kind: the layout of its files, or what is drawn: "scenes" (questions about generated scenes), "vqav2" (OK-VQA has that
            layout too), "gqa", "textvqa", "mmbench", "jsonl" (this suite's own, `jsonl.py`; captions too), "scene_captions",
            "coco_captions", "shards" (WebDataset, captions).
        metric: a name of `metrics/registry.py`. MMBench's choices are rotated for "circular" alone, those of scenes always.
        split: what is scored, as rows of results tell it; of scenes, their own: "val" or "test".
        max_tokens: most tokens of an answer, the closing one included.
        prompt: put behind the question on a line of its own; all that is asked for a caption; "" for none.
        taught: training data that the task takes where no other is named (configs/evals/instruction); "" for none.
        name: as rows of results tell it; that of the file where it is not given.
        path: folder of the data, from the folder that commands are run in; of shards also one file, a brace range or a URL.
        questions: their file, relative to `path`.
        annotations: file of answers or of captions, relative to `path`.
        file: that holds all but the pictures (MMBench: these too), relative to `path`; of shards a pattern.
        images: folder of the pictures, relative to `path`.
        question_kind: scenes: which of their questions are asked.
        num: scenes: how many.
        levels: scenes: weight of each level.
        seed: scenes: of all of them; QUESTION_SEED where it is not given.
        styles: scene_captions: each gives a scene one reference caption.
    """

    kind: Literal["scenes", "vqav2", "gqa", "textvqa", "mmbench", "jsonl", "scene_captions", "coco_captions", "shards"]
    metric: str
    split: str
    max_tokens: int
    prompt: str = ""
    taught: str = ""
    name: str = ""
    path: str | None = None
    questions: str | None = None
    annotations: str | None = None
    file: str | None = None
    images: str | None = None
    question_kind: Literal["object", "text", "choice"] | None = None
    num: int | None = None
    levels: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    styles: Sequence[str] = ()

    def check(self) -> None:
        """Raise UserError for a field that is missing, of no use to this kind, or cannot be meant."""
        check_fields(self, needed=_NEEDED, optional=_OPTIONAL)
        if self.kind in DRAWN and self.split not in _SCORED_SCENES:
            why = "; models are taught on split train" if self.split == "train" else ""
            raise UserError(
                f"split={self.split!r} must be one of {', '.join(_SCORED_SCENES)} with kind {self.kind}{why}"
            )
        find_metric(self.metric)
        if self.kind in _CAPTIONS and self.metric != "captions":
            raise UserError(
                f"metric={self.metric!r} does not score captions; with kind {self.kind} it must be 'captions'"
            )
        if self.metric == "captions" and self.kind not in _CAPTION_SOURCES:
            raise UserError(f"metric='captions' does not score answers to questions, which kind {self.kind} asks")
        has_choices = self.kind in ("mmbench", "jsonl") or self.question_kind == "choice"
        if self.metric in ("choice", "circular") and not has_choices:
            asked = self.kind if self.question_kind is None else f"{self.kind}, question_kind {self.question_kind}"
            raise UserError(f"metric={self.metric!r} needs lettered choices, which kind {asked} has not")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens={self.max_tokens} must be at least 1")

    @property
    def is_drawn(self) -> bool:
        """Whether its pictures are made, at the encoder's size, and not read."""
        return self.kind in DRAWN

    def asked(self, example: Example) -> str:
        """What a model is asked: the question, and the prompt on a line below it."""
        return "\n".join(part for part in (example.question, self.prompt) if part)

    def build(
        self,
        *,
        img_size: int,
        images: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        note: Callable[[str], None] = print,
    ) -> QuestionSet:
        """Its examples and pictures; no picture is decoded.

        Args:
            img_size: side in pixels that scenes are drawn at; other pictures are as they are.
            images: folder of the pictures, instead of the config's.
            limit: take a random part of about so many examples (:meth:`QuestionSet.subset`); all where None.
            seed: of that part.
            note: takes one line about what is left out.

        Raises:
            UserError: the data is missing or damaged; `images` where pictures are not in a folder of their own; limit below 1.
        """
        folder = pictures_folder(self, images)
        if self.kind == "scenes":
            made = scene_examples(
                self.question_kind,
                split=self.split,
                num=self.num,
                img_size=img_size,
                levels=self.levels,
                seed=QUESTION_SEED if self.seed is None else self.seed,
                name=self.name,
            )
        elif self.metric == "captions":
            if self.kind in ("coco_captions", "jsonl"):
                data_folder(self, _NEEDED)
            source = caption_source(self, split=self.split, images=folder)
            made = caption_examples(source, name=self.name, img_size=img_size)
        else:
            made = self._read(folder)
        if line := made.describe_repairs():
            note(line)
        return made if limit is None else made.subset(limit, seed)

    def _read(self, images: Path | None) -> QuestionSet:
        """Questions from files."""
        root = data_folder(self, _NEEDED)
        names = {"name": self.name, "split": self.split}
        match self.kind:
            case "vqav2":
                return read_vqa_v2(root / self.questions, root / self.annotations, images, **names)
            case "gqa":
                return read_gqa(root / self.questions, images, **names)
            case "textvqa":
                return read_textvqa(root / self.file, images, **names)
            case "mmbench":
                return read_mmbench(root / self.file, circular=self.metric == "circular", **names)
        return read_jsonl(root / self.file, images, **names)


def load_task(name_or_file: str, *, path: str | None = None, folder: Path = QUESTIONS) -> TaskConfig:
    """The config of a task.

    Args:
        name_or_file: a name in `folder`, or a .yaml file.
        path: the data's place, instead of the config's.
        folder: QUESTIONS or CAPTIONS.

    Raises:
        UserError: unknown name, unknown or missing field, wrong type or value.
    """
    return load_named(TaskConfig, name_or_file, folder, path=path, field="task")


def task_names(folder: Path = QUESTIONS) -> list[str]:
    """Names that `load_task` knows in a folder."""
    return config_names(folder)


def load_named(kind: type, name_or_file: str, folder: Path, *, path: str | None, field: str) -> Any:
    """A config of a dataclass with `kind`, `path` and `check`, its data's place replaced where one is named.

    Args:
        kind: the dataclass.
        name_or_file: a name in `folder`, or a .yaml file.
        folder: of the shipped ones.
        path: the data's place, instead of the config's.
        field: what errors call such a config.

    Raises:
        UserError: as :func:`load_task`.
    """
    config, file = read_config(kind, str(find_config(name_or_file, folder, field=field)), folder)
    try:
        if path is not None:
            if config.kind in DRAWN:
                raise UserError(f"--data={path}: scenes are drawn, not read; leave it out")
            config = replace(config, path=str(path))
        config.check()
    except UserError as error:
        raise UserError(f"{field} {file.name}: {error}") from error
    return config


def check_fields(config: Any, *, needed: FieldsOf, optional: FieldsOf) -> None:
    """Raise UserError for a field that is missing, of no use to the config's kind, or of what no scene has.

    Args:
        config: with `kind`, and `num`, `levels` and `styles` where it has scenes.
        needed: kind -> fields that must be there.
        optional: kind -> fields that may be.
    """
    for name in needed[config.kind]:
        if _is_absent(getattr(config, name)):
            hint = "; name the data's folder with --data" if name == "path" else ""
            raise UserError(f"{name} is needed with kind {config.kind}{hint}")
    own = (*needed[config.kind], *optional.get(config.kind, ()))
    for name in dict.fromkeys(name for table in (needed, optional) for names in table.values() for name in names):
        if name not in own and not _is_absent(value := getattr(config, name)):
            raise UserError(f"{name}={value!r} is not used by kind {config.kind}; leave it out")
    if config.kind in DRAWN:
        check_level_weights(config.levels)
        for name, least in (("num", 1), ("seed", 0)):
            if (value := getattr(config, name)) is not None and value < least:
                raise UserError(f"{name}={value} must be at least {least}")
        for style in config.styles:
            if style not in STYLES:
                raise UserError(f"styles: {style!r} is unknown; known are {', '.join(STYLES)}")


def _is_absent(value: object) -> bool:
    return value is None or (isinstance(value, str | Mapping | Sequence) and not value)


def data_folder(config: Any, needed: FieldsOf) -> Path:
    """The folder of a config with `kind` and `path`. Raises UserError, with what should lie there, where it is not there."""
    wanted = [getattr(config, name) for name in needed[config.kind] if name != "path"]
    listed = ", ".join(name for name in wanted if name != ".")
    return existing_folder(config.path, wanted=f"the folder of {listed}; name it with --data")


def pictures_folder(config: Any, images: str | None) -> Path | None:
    """Where the pictures of a config with `kind`, `path` and `images` lie; None where not in a folder of their own.

    Args:
        config: of the data.
        images: that folder, instead of the config's.

    Raises:
        UserError: `images`, where the config has none.
    """
    if images is None:
        return None if config.images is None else Path(config.path).expanduser() / config.images
    if config.kind in DRAWN:
        raise UserError(f"--images={images}: scenes are drawn, not read; leave it out")
    if config.images is None:
        raise UserError(f"--images={images}: kind {config.kind} has no folder of pictures; leave it out")
    return Path(images).expanduser()


def caption_source(config: Any, *, split: str, images: Path | None) -> CaptionSource:
    """What `caption_sets.py` reads for a config of captions.

    Args:
        config: of a kind with captions.
        split: what the pictures are; of scenes, their own.
        images: folder of the pictures.
    """
    kind = _CAPTION_SOURCES[config.kind]
    if kind == "scenes":
        seed = QUESTION_SEED if config.seed is None else config.seed
        return CaptionSource(kind, split, num=config.num, seed=seed, levels=config.levels, styles=config.styles)
    if kind == "shards":
        return CaptionSource(kind, split, path=config.path, shards=config.file)
    # absolute, since the reader takes it relative to `path`
    place = str(images.absolute())
    annotations = config.annotations if kind == "coco" else config.file
    return CaptionSource(kind, split, path=config.path, annotations=annotations, images=place)
