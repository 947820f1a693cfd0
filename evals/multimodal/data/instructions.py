"""Training data as configs name it: configs/evals/instruction/NAME.yaml."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from evals.configs import config_names
from evals.multimodal.data.caption_sets import caption_instructions
from evals.multimodal.data.llava import read_llava
from evals.multimodal.data.scene_questions import QUESTION_SEED, scene_instructions
from evals.multimodal.data.tasks import (
    DRAWN,
    QUESTIONS,
    FieldsOf,
    caption_source,
    check_fields,
    data_folder,
    load_named,
    pictures_folder,
)
from evals.multimodal.data.taught import TaughtSet
from pretrain.types import UserError

FOLDER = QUESTIONS.with_name("instruction")
#: Of scenes, and the name of what is read: no task asks about scenes of this split.
_SPLIT = "train"
#: Kind -> fields that it needs.
_NEEDED: FieldsOf = {
    "scenes": ("kinds", "num", "levels"),
    "llava": ("path", "file", "images"),
    "scene_captions": ("styles", "num", "levels"),
    "coco_captions": ("path", "annotations", "images"),
    "shards": ("path", "file"),
}
#: Kind -> fields that it may have.
_OPTIONAL: FieldsOf = {
    "scenes": ("seed",),
    "scene_captions": ("seed", "prompt"),
    "coco_captions": ("prompt",),
    "shards": ("prompt",),
}


@dataclass(frozen=True)
class InstructionConfig:
    """Conversations that a model is taught.

    Attributes:
        kind: "scenes" (questions about generated scenes), "llava" (LLaVA's JSON), or captions: "scene_captions", "coco_captions",
            "shards" (WebDataset). Scenes are of their split "train".
        name: that of the file where it is not given.
        path: folder of the data, from the folder that commands are run in; of shards also one file, a brace range or a URL.
        file: the conversations, relative to `path`; of shards a pattern.
        annotations: file of captions, relative to `path`.
        images: folder of the pictures, relative to `path`.
        num: scenes: how many.
        levels: scenes: weight of each level.
        seed: scenes: of all of them; QUESTION_SEED where it is not given.
        kinds: scenes: of the questions.
        styles: scene_captions: each gives a scene one caption.
        prompt: captions: what is asked for each; that of the task that they are to serve.
    """

    kind: Literal["scenes", "llava", "scene_captions", "coco_captions", "shards"]
    name: str = ""
    path: str | None = None
    file: str | None = None
    annotations: str | None = None
    images: str | None = None
    num: int | None = None
    levels: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    kinds: Sequence[Literal["object", "text", "choice"]] = ()
    styles: Sequence[str] = ()
    prompt: str = ""

    @property
    def is_drawn(self) -> bool:
        """Whether its pictures are made, at the encoder's size, and not read."""
        return self.kind in DRAWN

    def check(self) -> None:
        """Raise UserError for a field that is missing, of no use to this kind, or cannot be meant."""
        check_fields(self, needed=_NEEDED, optional=_OPTIONAL)

    def build(self, *, img_size: int, images: str | None = None, note: Callable[[str], None] = print) -> TaughtSet:
        """Its conversations and pictures; no picture is decoded.

        Args:
            img_size: side in pixels that scenes are drawn at; other pictures are as they are.
            images: folder of the pictures, instead of the config's.
            note: takes one line about what is left out.

        Raises:
            UserError: the data is missing or damaged; `images` where pictures are not in a folder of their own.
        """
        try:
            made = self._read(img_size, images)
        except UserError as error:  # the readers are the tasks' too
            told = str(error).replace("--data", "--taught_data").replace("--images", "--taught_images")
            raise UserError(told) from error
        if line := made.describe_repairs():
            note(line)
        return made

    def _read(self, img_size: int, images: str | None) -> TaughtSet:
        folder = pictures_folder(self, images)
        if self.kind == "scenes":
            made = scene_instructions(
                split=_SPLIT,
                num=self.num,
                img_size=img_size,
                levels=self.levels,
                seed=QUESTION_SEED if self.seed is None else self.seed,
                name=self.name,
                kinds=self.kinds,
            )
        elif self.kind == "llava":
            made = read_llava(data_folder(self, _NEEDED) / self.file, folder, name=self.name)
        else:
            if self.kind == "coco_captions":
                data_folder(self, _NEEDED)
            source = caption_source(self, split=_SPLIT, images=folder)
            made = caption_instructions(source, prompt=self.prompt, name=self.name, img_size=img_size)
        return made


def load_instructions(name_or_file: str, *, path: str | None = None) -> InstructionConfig:
    """The config of training data.

    Args:
        name_or_file: a name in configs/evals/instruction, or a .yaml file.
        path: the data's place, instead of the config's.

    Raises:
        UserError: unknown name, unknown or missing field, wrong type or value.
    """
    return load_named(InstructionConfig, name_or_file, FOLDER, path=path, field="instructions")


def instruction_names() -> list[str]:
    """Names that `load_instructions` knows."""
    return config_names(FOLDER)
