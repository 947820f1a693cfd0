"""Conversations as sequences of tokens with places for pictures, what of them is learned, and who sees whom.

Shape letters: B sequences, S tokens, I pictures, N patches of a picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from evals.multimodal.language import Language
from evals.multimodal.templates import PICTURE
from pretrain.types import UserError

#: Stands for a whole picture in a sequence that is not spread out yet.
PICTURE_ID = -1


@dataclass(frozen=True)
class Encoded:
    """A sequence before its pictures are spread out.

    Attributes:
        ids: token ids; PICTURE_ID where a picture stands.
        target: whether a token is learned: answers and what closes them.
        segment: 0 for what all turns share; turns that know nothing of each other have numbers of their own.
    """

    ids: np.ndarray
    target: np.ndarray
    segment: np.ndarray

    def length(self, num_patches: int) -> int:
        """Tokens once each picture takes N places."""
        return len(self.ids) + int((self.ids == PICTURE_ID).sum()) * (num_patches - 1)


class _Builder:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.target: list[bool] = []
        self.segment: list[int] = []

    def add(self, ids: Sequence[int], *, target: bool = False, segment: int = 0) -> None:
        self.ids += ids
        self.target += [target] * len(ids)
        self.segment += [segment] * len(ids)

    def build(self) -> Encoded:
        return Encoded(np.array(self.ids, np.int64), np.array(self.target, bool), np.array(self.segment, np.int64))


def encode_conversation(
    language: Language,
    turns: Sequence[tuple[str, str]],
    *,
    with_picture: bool,
    independent: bool,
    room: int | None = None,
) -> Encoded | None:
    """A conversation to learn from.

    Args:
        language: its tokenizer and template.
        turns: questions with their answers.
        with_picture: whether a picture stands in front of the first question.
        independent: each turn sees the picture and itself, and stands where the first one would stand.
        room: most tokens, a picture counted as one; later turns that do not fit are left out.

    Returns:
        None where not even the first turn fits.
    """
    made = _Builder()
    made.add(language.opening)
    if with_picture:
        made.add([PICTURE_ID])
        made.add(language.after_picture)
    for number, (question, answer) in enumerate(turns):
        segment = number + 1 if independent else 0
        asked = [*([] if number == 0 or independent else language.next_turn), *language.question(question)]
        asked += language.to_answer
        if independent and not asked:
            raise UserError(
                "an answer that follows no question cannot be one of several independent turns: give the set a prompt, or "
                "choose a template that writes something in front of an answer"
            )
        answered = language.answer(answer)
        if room is not None and len(made.ids) + len(asked) + len(answered) > room:
            return made.build() if number else None
        made.add(asked, segment=segment)
        made.add(answered, target=True, segment=segment)
    return made.build()


def encode_prompt(
    language: Language, question: str, *, with_picture: bool, shots: Sequence[tuple[str, str]] = ()
) -> tuple[Encoded, str]:
    """What a model is asked, behind `shots` that show it how: (question, answer), each with a picture of its own in front.

    Returns:
        The sequence, and the prompt as text with "<image>" where pictures stand.
    """
    made, template = _Builder(), language.template
    made.add(language.opening)
    text = template.opening
    for number, (asked, answered) in enumerate([*shots, (question, None)]):
        if number:
            made.add(language.next_turn)
            text += template.next_turn
        if with_picture:
            made.add([PICTURE_ID, *language.after_picture])
            text += PICTURE + template.after_picture
        made.add([*language.question(asked), *language.to_answer])
        text += (template.question.format(asked) if asked else "") + template.to_answer
        if answered is not None:
            made.add(language.answer(answered))
            text += template.answer.format(answered) + (template.end or "")
    return made.build(), text


@dataclass
class SequenceBatch:
    """Sequences with places for pictures.

    Attributes:
        ids_BS: int64; any id where a picture or nothing stands.
        slot_BS: bool, where patches of pictures stand; the n-th True is the n-th patch of the batch's pictures in order.
        target_BS: bool, tokens that are learned.
        valid_BS: bool, where anything stands.
        segment_BS: int64, as `Encoded.segment`.
        position_BS: int64; an independent turn's count from the end of what all share.
        tokens_IND: float, features of the pictures in order; None where `image_ICHW` holds their pixels, or there are none.
        image_ICHW: uint8.
        number_B: int64, conversations' or examples' numbers in their set.
        unreadable: pictures' numbers that could not be read; their sequences are not in the batch.
    """

    ids_BS: Tensor
    slot_BS: Tensor
    target_BS: Tensor
    valid_BS: Tensor
    segment_BS: Tensor
    position_BS: Tensor
    tokens_IND: Tensor | None
    image_ICHW: Tensor | None
    number_B: Tensor
    unreadable: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.number_B)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: function(v) for n, v in moved.items() if isinstance(v, Tensor)})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(Tensor.pin_memory)


def collate(
    encoded: Sequence[Encoded],
    *,
    num_patches: int,
    filler_id: int,
    number_B: np.ndarray,
    tokens_IND: Tensor | None = None,
    image_ICHW: Tensor | None = None,
    unreadable: Sequence[int] = (),
    pad_left: bool = False,
) -> SequenceBatch:
    """Spread pictures out and pad to the longest; on the left for generation, which goes on at the right end."""
    spread = [_spread(one, num_patches) for one in encoded]
    longest = max((len(one["ids"]) for one in spread), default=0)
    arrays = {name: np.zeros((len(spread), longest), dtype) for name, dtype in _COLUMNS.items()}
    arrays["ids"][:] = filler_id
    for row, one in enumerate(spread):
        length = len(one["ids"])
        place = slice(longest - length, longest) if pad_left else slice(0, length)
        for name, values in one.items():
            arrays[name][row, place] = values
        arrays["valid"][row, place] = True
    columns = {f"{name}_BS": torch.from_numpy(array) for name, array in arrays.items()}
    number_B = torch.from_numpy(np.asarray(number_B, dtype=np.int64))
    return SequenceBatch(
        **columns, tokens_IND=tokens_IND, image_ICHW=image_ICHW, number_B=number_B, unreadable=tuple(unreadable)
    )


_COLUMNS = {"ids": np.int64, "slot": bool, "target": bool, "valid": bool, "segment": np.int64, "position": np.int64}


def _spread(one: Encoded, num_patches: int) -> dict[str, np.ndarray]:
    is_picture = one.ids == PICTURE_ID
    repeats = np.where(is_picture, num_patches, 1)
    slot = np.repeat(is_picture, repeats)
    segment = np.repeat(one.segment, repeats)
    position = np.arange(len(segment))
    shared = int((segment == 0).sum())  # what all share stands in front
    for number in np.unique(segment[segment > 0]):
        own = segment == number
        position[own] = shared + np.arange(own.sum())
    return {
        "ids": np.where(slot, 0, np.repeat(one.ids, repeats)),
        "slot": slot,
        "target": np.repeat(one.target, repeats),
        "segment": segment,
        "position": position,
    }


def attend_mask(batch: SequenceBatch) -> Tensor | None:
    """Who sees whom where turns are independent: bool [B, 1, S, S], True may attend; None where causal attention is all.

    A token sees those in front of it that all share, and those of its own turn. One that is no token sees itself, since a row
    without any is no number.
    """
    segment_BS = batch.segment_BS
    if not bool((segment_BS > 0).any()):
        return None
    length = segment_BS.shape[1]
    causal_SS = torch.ones(length, length, dtype=torch.bool, device=segment_BS.device).tril()
    seen_BSS = (segment_BS[:, None, :] == 0) | (segment_BS[:, None, :] == segment_BS[:, :, None])
    seen_BSS = seen_BSS & causal_SS & batch.valid_BS[:, None, :]
    itself_SS = torch.eye(length, dtype=torch.bool, device=segment_BS.device)
    return (seen_BSS | itself_SS)[:, None]


def check_fits(needed: int, context_length: int | None, *, about: str, max_tokens: int) -> None:
    """Raises UserError where a prompt with its answer is longer than a model takes."""
    if context_length is not None and needed + max_tokens > context_length:
        raise UserError(
            f"{about}: its prompt of {needed:,} tokens and an answer of up to {max_tokens} (generation.max_tokens) exceed the "
            f"language model's context of {context_length:,}; take fewer shots or patches, or another model"
        )
