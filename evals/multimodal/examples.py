"""What multimodal tasks ask, what models are taught, and what they answer: the types that readers, models and metrics share.

A picture is a number in a `LabelledSet` (its classes mean nothing here), so that features are cached as for any other evaluation.

Shape letters: N examples, U units that a task's own metric is a mean of.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evals.data.labelled import LabelledSet
from pretrain.types import UserError

#: Letters of choices, in their order.
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Example:
    """One question about one picture, or one picture to be captioned.

    Attributes:
        example_id: single in its set.
        picture: its picture's number in the set's pictures.
        question: as the data set words it, with its lettered choices behind it where it has them; "" for a caption.
        answers: what is right: VQAv2's ten answers, one answer, the letter of a choice (of either case),
            reference captions.
        kind: what results are broken down by ("object", "yes/no", a category); "" for none.
        choices: what the letters stand for, in order; () without choices.
        group: examples of one group count together: rotations of one question's choices, MME's two questions on a picture. ""
            where each counts by itself.
    """

    example_id: str
    picture: int
    question: str
    answers: tuple[str, ...]
    kind: str = ""
    choices: tuple[str, ...] = ()
    group: str = ""


class ExampleSet(ABC):
    """One split of a task.

    Attributes:
        name: of the task, as its config gives it.
        split: what is scored.
        synthetic: whether its pictures are generated.
        examples: in the order of the file.
        pictures: by number.
        repaired: kind of fault -> how many examples were left out or mended for it; shown, never silent.
    """

    name: str
    split: str
    synthetic: bool
    examples: Sequence[Example]
    pictures: LabelledSet
    repaired: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.examples)

    @abstractmethod
    def identity(self) -> str:
        """What decides examples, pictures and their order; the same on any machine."""


@dataclass(frozen=True)
class Conversation:
    """What a model is taught on one picture.

    Attributes:
        conversation_id: single in its set.
        picture: its picture's number in the set's pictures; None for text alone.
        turns: (what is asked, what is to be answered), without placeholders for the picture.
    """

    conversation_id: str
    picture: int | None
    turns: tuple[tuple[str, str], ...]


class InstructionSet(ABC):
    """Conversations to train on.

    Attributes:
        name: as its config gives it.
        synthetic: whether its pictures are generated.
        independent: whether the turns of a conversation know nothing of each other: each sees the picture and itself (scenes'
            questions). Otherwise a turn sees those before it, as LLaVA has it.
        conversations: in the order of the file.
        pictures: by number.
        repaired: kind of fault -> how many conversations or turns were left out for it.
    """

    name: str
    synthetic: bool
    independent: bool
    conversations: Sequence[Conversation]
    pictures: LabelledSet
    repaired: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.conversations)

    @abstractmethod
    def identity(self) -> str:
        """What decides conversations, pictures and their order; the same on any machine."""


@dataclass(frozen=True)
class Answer:
    """What a model said, as it is kept in a run's answers_SPLIT.jsonl; a task is scored again from these alone.

    Attributes:
        example_id: of the example.
        text: generated, without special tokens, stripped of white space at its ends.
        prompt: the whole text that the model was given, "<image>" where its picture stood.
    """

    example_id: str
    text: str
    prompt: str


@dataclass(frozen=True)
class Scores:
    """What a metric makes of a set's answers.

    Attributes:
        values: metric -> value over the whole set, in percent unless its name has a unit (CIDEr-D as papers print it: a mean of
            0.949 is 94.9, most is 1000); the first is the task's own.
        score_N: of each example that was answered, 0 (wrong) to 1 (right), the caption's own CIDEr-D / 10 for captions.
        unit_U: int64: the example that stands for each unit that the first of `values` is a mean of (all examples, or the first
            of each group); empty where it is no mean.
        score_U: float64, the units' scores, of captions 0 to 10: 100 * mean is the first of `values`.
        details: what else is worth keeping, plain data.
    """

    values: Mapping[str, float]
    score_N: np.ndarray
    unit_U: np.ndarray
    score_U: np.ndarray
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Generation:
    """How an answer or a caption is generated.

    Attributes:
        max_tokens: most tokens that are made, the closing one included.
        num_beams: 1 takes the most likely token each time (or samples); more keep as many beginnings.
        length_penalty: a finished beam's log likelihood is divided by its length ** this (0 leaves it), as transformers has it.
        temperature: 0 takes the most likely token; above, tokens are sampled (one beam only).
        top_k: sample among the k most likely tokens; None among all.
        seed: of the sampling.
    """

    max_tokens: int = 16
    num_beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise UserError for numbers that cannot be meant."""
        for name in ("max_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise UserError(f"generation.{name}={getattr(self, name)} must be at least 1")
        if self.temperature < 0:
            raise UserError(f"generation.temperature={self.temperature} must not be negative")
        if self.temperature > 0 and self.num_beams > 1:
            raise UserError(
                f"generation.temperature={self.temperature} samples, which beams do not: set generation.num_beams=1"
            )
        if self.top_k is not None and (self.top_k < 1 or self.temperature == 0):
            raise UserError(f"generation.top_k={self.top_k} needs to be 1 or more, and generation.temperature above 0")
