"""Scenes' questions as tasks and as training data: about objects, about what is written, and with lettered choices.

Pictures are drawn when they are looked at; nothing is written to the disk.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from evals.data.files import did_you_mean
from evals.data.labelled import LabelledSet
from evals.multimodal.data.question_set import QuestionSet
from evals.multimodal.data.taught import TaughtSet
from evals.multimodal.examples import Conversation, Example
from evals.multimodal.metrics.choices import in_line, rotations
from evals.results import source_hash
from pretrain.data.scene_render import render
from pretrain.data.scene_text import Question, questions
from pretrain.data.scenes import LEVELS, SPLITS, Scene, check_level_weights, draw_scene
from pretrain.data.terminal import progress_bar
from pretrain.rng import draw_rng
from pretrain.types import UserError

Kind = Literal["object", "text", "choice"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: Of scenes for questions and captions. Pre-training draws scenes with the run's own seed (0, 1, 2, ...), probes and retrieval
#: with 0, detection and grounding with 5,000,000 (`evals.detection.scene_folder`). With one of these a model would be asked
#: about the very pictures that its encoder, or another evaluation's head, was trained on; this seed no run has by chance.
QUESTION_SEED = 6_000_000
#: VQAv2 has ten answers a question, and its metric counts how many of them agree; scenes have one true answer.
NUM_ANSWERS = 10
#: What `repaired` counts of training data.
NOTHING_ASKED = "scenes without such a question"
#: The beginning of a question -> what results are broken down by; the first that fits.
_BEGINNINGS: Mapping[str, Mapping[str, str]] = {
    "object": {
        "what colour is the background": "background",
        "what colour": "colour",
        "what shape": "shape",
        "what pattern": "pattern",
        "how many": "count",
        "where is": "position",
        "is ": "yes/no",
    },
    "text": {
        "what is written": "string",
        "what does the text say": "string",
        "what is the first character": "first character",
    },
    "choice": {"what colour": "colour", "what shape": "shape"},
}
_REPOSITORY = Path(__file__).parents[3]


class ScenePictures(LabelledSet):
    """Scenes number 0 to `num` - 1 of a split. There are no classes: all labels are 0.

    Args:
        split: the scenes' own: "train", "val" or "test".
        num: how many.
        img_size: side in pixels.
        levels: weight of each level (`pretrain.data.scenes.LEVELS`).
        seed: of the scenes.
        name: of the task.

    Raises:
        UserError: an unknown split or level, or a number that is none.
    """

    classes, synthetic = ("picture",), True

    def __init__(
        self, split: str, *, num: int, img_size: int, levels: Mapping[str, float], seed: int, name: str
    ) -> None:
        if split not in SPLITS:
            near = did_you_mean(split, SPLITS)
            raise UserError(f"{name}: split={split!r} is no split of scenes{near}; there are {', '.join(SPLITS)}")
        check_level_weights(levels)
        for field, value, least in (("num", num, 1), ("img_size", img_size, 1), ("seed", seed, 0)):
            if value < least:
                raise UserError(f"{name}: {field}={value} must be at least {least}")
        self.name, self.split, self.img_size, self.levels, self.seed = name, split, img_size, dict(levels), seed
        self.label_N = np.zeros(num, dtype=np.int64)

    def scene(self, index: int) -> Scene:
        return draw_scene(self.seed, self.split, index, self.levels)

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(render(self.scene(index), self.img_size))

    def key(self, index: int) -> str:
        return self.scene(index).key

    def pictures_identity(self) -> str:
        """The same for all that is asked about them, so that features are shared."""
        # a level of weight 0 decides nothing, nor does their order
        levels = ",".join(f"{name}:{float(self.levels[name])}" for name in LEVELS if self.levels.get(name, 0) > 0)
        drawers = sorted(
            str(path.relative_to(_REPOSITORY)) for path in (_REPOSITORY / "pretrain/data").glob("scene*.py")
        )
        return (
            f"scenes seed={self.seed} split={self.split} count={len(self)} levels={levels} size={self.img_size} "
            f"code={source_hash(*drawers, 'pretrain/rng.py')}"
        )


def scene_examples(
    kind: Kind,
    *,
    split: str,
    num: int,
    img_size: int,
    levels: Mapping[str, float],
    seed: int = QUESTION_SEED,
    name: str,
) -> QuestionSet:
    """The questions of one kind about scenes; all kinds about the same scenes share their pictures' identity.

    What results are broken down by (`Example.kind`) is what is asked for: "colour", "shape", "pattern", "background", "count",
    "position" and "yes/no" of objects; "string" and "first character" of what is written; "colour" and "shape" of choices. A
    question with choices is there four times, its choices rotated, for MMBench's circular evaluation; choices stand behind it in
    one line, its answer is a small letter, as scenes write both.

    Args:
        kind: "object", "text" or "choice".
        split: the scenes' own.
        num: scenes; each has several questions about objects, one with choices, and those about strings if it has one.
        img_size: side of the pictures in pixels.
        levels: weight of each level.
        seed: of the scenes and of the wording.
        name: of the task.

    Raises:
        UserError: an unknown kind, split or level, a number that is none, or no such question about any of the scenes.
    """
    _check_kinds([kind], name)
    pictures = ScenePictures(split, num=num, img_size=img_size, levels=levels, seed=seed, name=name)
    examples: list[Example] = []
    for index, scene, asked in _asked(pictures):
        for number, question in enumerate(asked):
            if question.kind == kind:
                examples += _examples(f"{scene.key}/{number}", index, question)
    if not examples:
        raise UserError(f"{name}: {_none_asked(pictures, [kind])}")
    return QuestionSet(examples, pictures, name=name, split=split, synthetic=True)


def scene_instructions(
    *,
    split: str,
    num: int,
    img_size: int,
    levels: Mapping[str, float],
    seed: int = QUESTION_SEED,
    name: str,
    kinds: Sequence[Kind] = KINDS,
) -> TaughtSet:
    """Scenes' questions to learn from: a conversation a scene, its questions as turns that know nothing of each other.

    A question with choices is taught in each of its rotations: a single one a scene teaches no small model what letters are for.

    Args:
        split: the scenes' own.
        num: scenes; those that nothing of `kinds` is asked about are left out and counted.
        img_size: side of the pictures in pixels.
        levels: weight of each level.
        seed: of the scenes and of the wording.
        name: as its config gives it.
        kinds: of the questions.

    Raises:
        UserError: as :func:`scene_examples`.
    """
    _check_kinds(kinds, name)
    pictures = ScenePictures(split, num=num, img_size=img_size, levels=levels, seed=seed, name=name)
    conversations = []
    for index, scene, asked in _asked(pictures):
        turns = tuple(
            (example.question, example.answers[0])
            for question in asked
            if question.kind in kinds
            for example in _examples(scene.key, index, question)
        )
        if turns:
            conversations.append(Conversation(scene.key, index, turns))
    if not conversations:
        raise UserError(f"{name}: {_none_asked(pictures, kinds)}")
    repaired = {NOTHING_ASKED: num - len(conversations)}
    return TaughtSet(conversations, pictures, name=name, independent=True, repaired=repaired, synthetic=True)


def _check_kinds(kinds: Sequence[str], name: str) -> None:
    known = ", ".join(KINDS)
    if not kinds or len(set(kinds)) < len(kinds):
        raise UserError(f"{name}: kinds={list(kinds)} of scenes' questions; give one or more of {known}, each once")
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"{name}: kind={kind!r} of scenes' questions is unknown; there are {known}")


def _none_asked(pictures: ScenePictures, kinds: Sequence[str]) -> str:
    written = ", ".join(name for name, level in LEVELS.items() if level.text_probability > 0)
    levels = ", ".join(name for name, weight in pictures.levels.items() if weight > 0)
    return (
        f"none of {len(pictures)} scenes of the levels {levels} has a question of kind {', '.join(kinds)}; strings are written "
        f"in {written}"
    )


def _asked(pictures: ScenePictures) -> Iterator[tuple[int, Scene, list[Question]]]:
    """Each scene with all its questions: what is asked does not depend on which kinds are wanted."""
    with progress_bar() as bar:
        task = bar.add_task(f"ask about {pictures.split} scenes", total=len(pictures))
        for index in range(len(pictures)):
            scene = pictures.scene(index)
            rng = draw_rng(pictures.seed, f"multimodal/questions/{pictures.split}", index)
            yield index, scene, questions(scene, rng)
            bar.advance(task)


def _examples(example_id: str, picture: int, question: Question) -> list[Example]:
    """The question, or the rotations of one with choices."""
    beginnings = _BEGINNINGS[question.kind]
    kind = next(name for beginning, name in beginnings.items() if question.question.startswith(beginning))
    if question.kind != "choice":
        return [Example(example_id, picture, question.question, (question.answer,) * NUM_ANSWERS, kind)]
    bare = question.question.partition("?")[0] + "?"
    plain = Example(example_id, picture, question.question, (question.answer,), kind, question.choices)
    return rotations(plain, question=bare, joined=in_line)
