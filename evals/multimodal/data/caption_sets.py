"""Pictures with captions, as a task and as training data: scenes, WebDataset shards, COCO, JSONL (NoCaps, TextCaps)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from evals.data.files import did_you_mean
from evals.data.loading import MAX_FAULT_SHARE, MIN_COUNTED
from evals.multimodal.data.jsonl import read_jsonl
from evals.multimodal.data.question_set import NO_ANSWERS, NO_PICTURE, QuestionSet
from evals.multimodal.data.scene_questions import QUESTION_SEED, ScenePictures
from evals.multimodal.data.taught import TaughtSet
from evals.multimodal.examples import Conversation, Example
from evals.text.retrieval_sets import RetrievalConfig, RetrievalSet, build_retrieval_set
from pretrain.data.scene_text import STYLES, caption
from pretrain.rng import draw_rng
from pretrain.types import UserError

Kind = Literal["scenes", "shards", "coco", "jsonl"]
#: Fields that a kind needs.
_NEEDED: Mapping[str, Sequence[str]] = {
    "scenes": ("num", "levels", "styles"),
    "shards": ("path",),
    "coco": ("path", "annotations", "images"),
    "jsonl": ("path", "annotations"),
}
#: What `repaired` counts of JSONL: captions of white space, which are left out of their picture's.
BLANK = "blank caption among others"


@dataclass(frozen=True)
class CaptionSource:
    """Where captioned pictures come from.

    Attributes:
        kind: "scenes", "shards", "coco" or "jsonl".
        split: what the pictures are, for the rows of results; of scenes, their own split.
        num: scenes that are drawn; of files, a random part of so many pictures, all where None.
        seed: of the scenes and their wording; of files, of the part that is taken.
        path: folder; with "shards" also a file, glob, brace range or URL.
        shards: with "shards": which files of the folder.
        annotations: with "coco" the captions, with "jsonl" the file (see `evals.multimodal.data.jsonl`), relative to `path`.
        images: folder of the pictures, relative to `path`; with "jsonl" that of `annotations` where None.
        levels: with "scenes": weight of each level.
        styles: with "scenes": each gives a scene one caption; of "full", "alt" and "short".
    """

    kind: Kind
    split: str = "test"
    num: int | None = None
    seed: int = QUESTION_SEED
    path: str | None = None
    shards: str = "*.tar"
    annotations: str | None = None
    images: str | None = None
    levels: Mapping[str, float] = field(default_factory=dict)
    styles: Sequence[str] = ()

    def check(self, name: str) -> None:
        """Raise UserError for what cannot be meant; `name` is that of the task."""
        if self.kind not in get_args(Kind):
            near = did_you_mean(self.kind, get_args(Kind))
            raise UserError(f"{name}: kind={self.kind!r} is unknown{near}; there are {', '.join(get_args(Kind))}")
        for needed in _NEEDED[self.kind]:
            if not getattr(self, needed):
                raise UserError(
                    f"{name}: {needed}={getattr(self, needed)!r}; kind {self.kind} needs the field {needed!r}"
                )
        if self.num is not None and self.num < 1:
            raise UserError(f"{name}: num={self.num} must be at least 1")
        for style in self.styles:
            if style not in STYLES:
                near = did_you_mean(style, STYLES)
                raise UserError(f"{name}: style {style!r} of captions is unknown{near}; there are {', '.join(STYLES)}")


def caption_examples(source: CaptionSource, *, name: str, img_size: int) -> QuestionSet:
    """Pictures to be captioned: the question is "", the answers are the references.

    Args:
        source: of the pictures.
        name: of the task.
        img_size: side of drawn scenes in pixels.

    Raises:
        UserError: a source that cannot be meant or read; more than 5% of its pictures are missing (of 20 at least); a JSONL line
            with a question.
    """
    source.check(name)
    if source.kind == "scenes":
        return _scenes(source, name=name, img_size=img_size)
    return _jsonl(source, name=name) if source.kind == "jsonl" else _captioned(source, name=name, img_size=img_size)


def caption_instructions(source: CaptionSource, *, prompt: str, name: str, img_size: int) -> TaughtSet:
    """Captions to learn: a conversation a picture, each of its captions a turn that knows nothing of the others.

    Args:
        source: of the pictures.
        prompt: what is asked in each turn; may be empty.
        name: as its config gives it.
        img_size: side of drawn scenes in pixels.

    Raises:
        UserError: as :func:`caption_examples`.
    """
    captioned = caption_examples(source, name=name, img_size=img_size)
    conversations = (
        Conversation(example.example_id, example.picture, tuple((prompt, answer) for answer in example.answers))
        for example in captioned.examples
    )
    return TaughtSet(
        conversations,
        captioned.pictures,
        name=name,
        independent=True,
        repaired=captioned.repaired,
        synthetic=captioned.synthetic,
    )


def _scenes(source: CaptionSource, *, name: str, img_size: int) -> QuestionSet:
    pictures = ScenePictures(
        source.split, num=source.num, img_size=img_size, levels=source.levels, seed=source.seed, name=name
    )
    examples = []
    for index in range(len(pictures)):
        scene = pictures.scene(index)
        captions = tuple(
            caption(scene, {style: 1.0}, draw_rng(source.seed, f"multimodal/captions/{source.split}/{style}", index))
            for style in source.styles
        )
        examples.append(Example(scene.key, index, "", captions))
    return QuestionSet(examples, pictures, name=name, split=source.split, synthetic=True)


def _captioned(source: CaptionSource, *, name: str, img_size: int) -> QuestionSet:
    """Shards and COCO, as retrieval reads them."""
    config = RetrievalConfig(
        name=name,
        kind=source.kind,
        split=source.split,
        path=source.path,
        shards=source.shards,
        annotations=source.annotations,
        images=source.images,
    )
    pictures = build_retrieval_set(config, img_size=img_size, num=source.num, seed=source.seed)
    _check_faults(pictures, name)
    repaired = Counter(
        {"bad_caption": NO_ANSWERS, "missing": NO_PICTURE}.get(fault.kind, f"picture: {fault.kind}")
        for fault in pictures.faults
    )
    examples = [
        Example(key, index, "", tuple(captions))
        for index, (key, captions) in enumerate(zip(pictures.keys, pictures.captions, strict=True))
    ]
    return QuestionSet(examples, pictures, name=name, split=source.split, repaired=repaired)


def _check_faults(pictures: RetrievalSet, name: str) -> None:
    faults = [fault for fault in pictures.faults if fault.kind != "bad_caption"]  # a picture may have no caption
    total = len(pictures) + len(faults)
    if len(faults) > MAX_FAULT_SHARE * max(MIN_COUNTED, total):
        raise UserError(
            f"{name} {pictures.split}: {len(faults):,} of {total:,} pictures cannot be read, more than "
            f"{100 * MAX_FAULT_SHARE:g}%; the first is {faults[0].key} ({faults[0].kind}: {faults[0].detail})"
        )


def _jsonl(source: CaptionSource, *, name: str) -> QuestionSet:
    folder = Path(source.path).expanduser()
    images = None if source.images is None else folder / source.images
    found = read_jsonl(folder / source.annotations, images, name=name, split=source.split)
    examples, repaired = [], Counter(found.repaired)
    for example in found.examples:
        if example.question:
            raise UserError(
                f"{name} {source.split}: id {example.example_id!r} has the question {example.question!r:.40}; lines with "
                "captions have none, only answers"
            )
        captions = tuple(answer for answer in example.answers if answer.strip())
        repaired[BLANK] += len(captions) < len(example.answers)
        examples.append(replace(example, answers=captions))
    whole = QuestionSet(examples, found.pictures, name=name, split=source.split, repaired=repaired)
    return whole if source.num is None else whole.subset(source.num, source.seed)
