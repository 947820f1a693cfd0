"""Examples that stand in a prompt to show how to answer (in-context learning; reference, section 7, Table 8: 0, 4, 8).

They come from the training conversations, drawn for each picture by (seed, picture): all questions on a picture, and all
rotations of one question, see the same ones in the same order.
"""

from dataclasses import dataclass

import torch

from evals.multimodal.examples import InstructionSet
from evals.multimodal.feeding import Pictures, Seen
from pretrain.rng import draw_rng
from pretrain.types import UserError


@dataclass(frozen=True)
class Shot:
    """A question with its answer on a training picture."""

    picture: int
    question: str
    answer: str


class Shots:
    """Draws shots from a set of conversations with pictures.

    Args:
        taught: the conversations.
        num: shots of a prompt, 0 for none.
        seed: of the draws.

    Raises:
        UserError: fewer conversations with pictures than shots.
    """

    def __init__(self, taught: InstructionSet | None, *, num: int, seed: int) -> None:
        self.num, self.seed = num, seed
        self.taught = taught
        self._rows: list[int] = []
        if num and taught is not None:
            self._rows = [k for k, conversation in enumerate(taught.conversations) if conversation.picture is not None]
        if len(self._rows) < num:
            name = (
                "no training data"
                if taught is None
                else f"{taught.name} has {len(self._rows)} conversations with pictures"
            )
            raise UserError(f"shots={num}: {name}; take fewer shots or more data")

    def draw(self, picture: int) -> list[Shot]:
        """Shots for the prompts on a picture; each of another training picture, and of one of its turns."""
        if not self.num:
            return []
        rng = draw_rng(self.seed, "multimodal/shots", picture)
        order = rng.permutation(len(self._rows))[: self.num].tolist()
        share = rng.random(self.num).tolist()
        shots = []
        for place, at in zip(order, share, strict=True):
            conversation = self.taught.conversations[self._rows[place]]
            question, answer = conversation.turns[int(at * len(conversation.turns))]
            shots.append(Shot(conversation.picture, question, answer))
        return shots


class JoinedPictures(Pictures):
    """Pictures of two sets as one: the second's numbers follow the first's."""

    def __init__(self, first: Pictures, second: Pictures, *, num_first: int) -> None:
        assert first.num_patches == second.num_patches
        self.first, self.second, self.num_first = first, second, num_first
        self.num_patches = first.num_patches

    def see(self, numbers: list[int]) -> Seen:
        parts, unreadable = [], []
        for number in numbers:  # one by one: the order of the two sets' pictures must stay
            own = number < self.num_first
            one = self.first.see([number]) if own else self.second.see([number - self.num_first])
            unreadable += [number] * len(one.unreadable)
            if not one.unreadable:
                parts.append(one)
        tokens = [part.tokens_IND for part in parts if part.tokens_IND is not None]
        pixels = [part.image_ICHW for part in parts if part.image_ICHW is not None]
        return Seen(
            torch.cat(tokens) if tokens else None,
            torch.cat(pixels) if pixels else None,
            tuple(dict.fromkeys(unreadable)),
        )
