"""Shots: which examples stand in a prompt, and that their pictures come with them in order."""

from collections import Counter

import pytest
import torch

from evals.multimodal.examples import Conversation
from evals.multimodal.feeding import Pictures, Seen
from evals.multimodal.shots import JoinedPictures, Shots
from pretrain.types import UserError


class Taught:
    name = "taught"

    def __init__(self, num):
        turns = (("a?", "1"), ("b?", "2"), ("c?", "3"))
        self.conversations = [Conversation(str(k), None if k % 5 == 4 else k, turns) for k in range(num)]


class Numbered(Pictures):
    """Picture n is a token of value `first` + n; those of `bad` cannot be read."""

    num_patches = 1

    def __init__(self, first, bad=()):
        self.first, self.bad = first, bad

    def see(self, numbers):
        good = [n for n in numbers if n not in self.bad]
        tokens = torch.tensor([float(self.first + n) for n in good]).view(-1, 1, 1) if good else None
        return Seen(tokens, None, tuple(n for n in numbers if n in self.bad))


def test_shots_are_of_different_pictures_and_a_function_of_the_picture():
    shots = Shots(Taught(20), num=4, seed=0)
    drawn = [shots.draw(picture) for picture in range(30)]
    assert all(len({shot.picture for shot in one}) == 4 for one in drawn)
    assert [shots.draw(picture) for picture in range(30)] == drawn
    assert len({tuple(shot.picture for shot in one) for one in drawn}) > 20
    assert Shots(Taught(20), num=4, seed=1).draw(0) != drawn[0]


def test_every_turn_is_drawn_and_text_alone_is_not():
    shots = Shots(Taught(20), num=4, seed=0)
    drawn = [shot for picture in range(100) for shot in shots.draw(picture)]
    assert all(shot.picture % 5 != 4 for shot in drawn)
    counts = Counter(shot.question for shot in drawn)
    assert set(counts) == {"a?", "b?", "c?"}
    assert min(counts.values()) > 90
    assert all({"a?": "1", "b?": "2", "c?": "3"}[shot.question] == shot.answer for shot in drawn)


def test_no_shots_need_no_data():
    assert Shots(None, num=0, seed=0).draw(3) == []


def test_more_shots_than_there_are_is_an_error():
    with pytest.raises(UserError, match="shots=5: taught has 4 conversations with pictures; take fewer shots"):
        Shots(Taught(5), num=5, seed=0)
    with pytest.raises(UserError, match="shots=5: no training data"):
        Shots(None, num=5, seed=0)


def test_pictures_of_two_sets_come_in_the_order_they_are_asked_for():
    joined = JoinedPictures(Numbered(0), Numbered(100), num_first=10)
    assert joined.see([13, 2, 10, 2]).tokens_IND.flatten().tolist() == [103, 2, 100, 2]


def test_unreadable_pictures_of_either_set_are_named_by_their_joined_number():
    joined = JoinedPictures(Numbered(0, bad=(2,)), Numbered(100, bad=(3,)), num_first=10)
    seen = joined.see([13, 2, 1, 13])
    assert seen.unreadable == (13, 2)
    assert seen.tokens_IND.flatten().tolist() == [1]
