"""Conversations to learn from, packed: 665,000 of LLaVA's are one block of bytes, not ten million Python objects.

Shape letters: N conversations.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import overload

import numpy as np

from evals.data.labelled import LabelledSet
from evals.multimodal.examples import Conversation, InstructionSet
from pretrain.data.storage import PackedStrings, digest
from pretrain.types import UserError

#: Stands for "no picture".
_NONE = -1


class PackedConversations(Sequence[Conversation]):
    """Conversations by number, each made anew when it is asked for; loaders' workers share what they are made from.

    Args:
        conversations: gone through once.
        name: of the set, for errors.

    Attributes:
        picture_N: int64, the number of each one's picture; -1 where it is text alone.

    Raises:
        UserError: two have one id; one has no turn, a turn without answer, or without question where there is no picture either.
    """

    def __init__(self, conversations: Iterable[Conversation], *, name: str) -> None:
        pictures = array("q")
        self._texts = PackedStrings(_packed(conversations, pictures, name))
        self.picture_N = np.array(pictures, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...

    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...

    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        conversation_id, *texts = json.loads(self._texts[index])
        picture = int(self.picture_N[index])
        turns = tuple(zip(texts[::2], texts[1::2], strict=True))
        return Conversation(conversation_id, None if picture == _NONE else picture, turns)

    def digest(self) -> str:
        """A short name for all that they hold."""
        return digest(self.picture_N, *self._texts.parts())


def _packed(conversations: Iterable[Conversation], pictures: array, name: str) -> Iterator[str]:
    """A line for each; their pictures' numbers go to `pictures`."""
    seen: set[str] = set()
    for conversation in conversations:
        where = f"{name}: conversation {conversation.conversation_id!r}"
        if conversation.conversation_id in seen:
            raise UserError(f"{where} is there twice; each needs an id of its own")
        seen.add(conversation.conversation_id)
        if not conversation.turns:
            raise UserError(f"{where} has no turn; give one or more, or leave it out")
        for number, (question, answer) in enumerate(conversation.turns, start=1):
            if not answer.strip():
                raise UserError(
                    f"{where}: turn {number} has no answer, so that there is nothing to learn; leave it out"
                )
            # a picture alone may ask for its caption
            if not question.strip() and conversation.picture is None:
                raise UserError(f"{where}: turn {number} has neither question nor picture; leave it out")
        pictures.append(_NONE if conversation.picture is None else conversation.picture)
        # ASCII, so that no text there is can fail to be packed
        yield json.dumps([conversation.conversation_id, *chain.from_iterable(conversation.turns)])


class TaughtSet(InstructionSet):
    """Conversations and their pictures.

    Args:
        conversations: in the order of the file; packed here, where they are not yet.
        pictures: by number.
        name: as its config gives it.
        independent: whether the turns of a conversation know nothing of each other.
        repaired: kind of fault -> how many conversations or turns were left out or mended for it.
        synthetic: whether its pictures are generated.

    Raises:
        UserError: there is no conversation; see :class:`PackedConversations`.
    """

    conversations: PackedConversations

    def __init__(
        self,
        conversations: Iterable[Conversation],
        pictures: LabelledSet,
        *,
        name: str,
        independent: bool,
        repaired: Mapping[str, int] | None = None,
        synthetic: bool = False,
    ) -> None:
        packed = isinstance(conversations, PackedConversations)
        self.conversations = conversations if packed else PackedConversations(conversations, name=name)
        self.pictures, self.name, self.independent, self.synthetic = pictures, name, independent, synthetic
        self.repaired = {kind: count for kind, count in (repaired or {}).items() if count}
        self._identity: str | None = None
        if not len(self.conversations):
            raise UserError(f"{name}: there is no conversation; give a set of one or more")
        assert self.conversations.picture_N.min() >= _NONE
        assert self.conversations.picture_N.max() < len(pictures)

    def identity(self) -> str:
        """What decides conversations, pictures and their order; the same on any machine."""
        if self._identity is None:
            turns = "independent" if self.independent else "in turn"
            conversations = self.conversations.digest()
            self._identity = f"{self.pictures.pictures_identity()} conversations={conversations} {turns}"
        return self._identity

    def describe_repairs(self) -> str:
        """One line; "" where nothing was left out or mended."""
        counts = ", ".join(f"{kind}: {count:,}" for kind, count in self.repaired.items())
        return f"{self.name}: left out or mended: {counts}" if counts else ""
