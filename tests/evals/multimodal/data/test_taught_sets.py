"""Conversations that are packed come back as they were, and sets name what they hold."""

import pickle

import numpy as np
import pytest

from evals.data.labelled import LabelledSet
from evals.multimodal.data.taught import PackedConversations, TaughtSet
from evals.multimodal.examples import Conversation
from pretrain.types import UserError


class Blank(LabelledSet):
    classes, split = ("picture",), "train"

    def __init__(self, count, *, identity="blank"):
        self.name, self.label_N, self._identity = "blank", np.zeros(count, dtype=np.int64), identity

    def load(self, index):
        raise NotImplementedError

    def key(self, index):
        return str(index)

    def pictures_identity(self):
        return self._identity


CONVERSATIONS = (
    Conversation("a", 1, (("what?", "a cup"), ("where?", 'on\na "table"'))),
    Conversation("b", None, (("wie geht's? ü \u4f60\u597d \U0001f600", "\tgut "),)),
    Conversation("c", 0, (("", "a caption"),)),
    Conversation("7", 1, (("again?", "yes"),)),
)


def taught(conversations=CONVERSATIONS, pictures=None, **options):
    options = {"name": "made", "independent": True} | options
    return TaughtSet(conversations, pictures or Blank(2), **options)


def error_of(*conversations) -> str:
    with pytest.raises(UserError) as caught:
        taught(conversations)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_conversations_come_back_as_they_were():
    made = taught(iter(CONVERSATIONS))
    assert len(made) == len(made.conversations) == 4
    assert tuple(made.conversations) == CONVERSATIONS
    assert made.conversations[1] == CONVERSATIONS[1]
    assert made.conversations[-1] == CONVERSATIONS[3]
    assert made.conversations[1:3] == list(CONVERSATIONS[1:3])
    assert tuple(pickle.loads(pickle.dumps(made.conversations))) == CONVERSATIONS
    with pytest.raises(IndexError):
        made.conversations[4]


def test_a_set_takes_conversations_that_are_packed():
    packed = PackedConversations(CONVERSATIONS, name="made")
    assert packed.picture_N.tolist() == [1, -1, 0, 1]
    made = taught(packed)
    assert made.conversations is packed
    assert made.identity() == taught().identity()


def test_half_a_character_is_packed_too():
    half = Conversation("a", 0, (("\ud83d", "\udc80 yes"),))
    assert taught([half]).conversations[0] == half


def test_the_identity_is_of_everything_but_names():
    same = taught(name="other", repaired={"x": 1}, synthetic=True)
    assert same.identity() == taught().identity()
    first, second, *rest = CONVERSATIONS
    moved = Conversation("a", 0, first.turns)
    swapped = Conversation("a", 1, first.turns[::-1])
    # the same texts, divided in another way
    joined = Conversation("a", 1, (("what?", "a cup where?"),))
    others = [
        taught([second, first, *rest]),
        taught([moved, second, *rest]),
        taught([swapped, second, *rest]),
        taught([joined, second, *rest]),
        taught(CONVERSATIONS[:3]),
        taught(independent=False),
        taught(pictures=Blank(2, identity="other")),
    ]
    assert len({one.identity() for one in [taught(), *others]}) == 8


def test_what_is_left_out_is_told():
    made = taught(repaired={"picture missing": 1200, "empty turn": 3, "nothing": 0})
    assert dict(made.repaired) == {"picture missing": 1200, "empty turn": 3}
    assert made.describe_repairs() == "made: left out or mended: picture missing: 1,200, empty turn: 3"
    assert taught().describe_repairs() == ""
    assert (made.name, made.independent, made.synthetic, len(made.pictures)) == ("made", True, False, 2)


def test_wrong_conversations():
    a = CONVERSATIONS[0]
    assert error_of() == "made: there is no conversation; give a set of one or more"
    assert error_of(a, Conversation("b", 0, a.turns), a) == (
        "made: conversation 'a' is there twice; each needs an id of its own"
    )
    assert "conversation 'x' has no turn" in error_of(Conversation("x", 0, ()))
    assert "conversation 'x': turn 2 has no answer" in error_of(Conversation("x", 0, (("a?", "b"), ("c?", " \n"))))
    assert "turn 1 has neither question nor picture" in error_of(Conversation("x", None, ((" ", "b"),)))


def test_a_picture_that_is_not_there_is_our_own_mistake():
    with pytest.raises(AssertionError):
        taught([Conversation("a", 2, (("a?", "b"),))])
