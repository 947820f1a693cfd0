"""Normalisation of texts against cases worked out by hand from the VQA evaluation's rules."""

import numpy as np
import pytest

from evals.multimodal.examples import Example
from evals.multimodal.metrics.answer_text import (
    CONTRACTIONS,
    check_answers,
    mean_scores,
    one_line,
    textvqa_normalised,
    vqa_normalised,
    without_articles,
    without_punctuation,
)
from pretrain.types import UserError


def example(*answers, example_id="q1"):
    return Example(example_id, 0, "what?", answers)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2,000", "2000"),  # a comma between digits vanishes
        ("2,000 red/blue", "2000 redblue"),  # and takes every other mark with it, here the slash
        ("red/blue", "red blue"),  # no space beside it: a space
        ("red, blue", "red blue"),  # a space beside it: nothing
        ("red,blue and a, b", "redblue and a b"),  # one comma with a space is enough for all commas
        ("t-shirt (red)!", "t shirt red  "),  # only "(" has a space beside it; the other three become one each
        ("3.5", "3.5"),  # a full stop before a digit stays
        (".5", ".5"),
        ("5.", "5"),
        ("St. John.", "St John"),
        ("12:30", "12:30"),  # colons stay
        ("it's", "it's"),  # apostrophes too
        ("what?!", "what  "),
    ],
)
def test_punctuation(text, wanted):
    assert without_punctuation(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Man", "man"),
        ("an apple and a pear", "apple and pear"),
        ("two", "2"),
        ("None", "0"),
        ("ten or eleven", "10 or eleven"),  # the list ends at ten
        ("someone", "someone"),  # whole words only
        ("a", ""),
        ("dont", "don't"),
        ("Youre", "you're"),
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),  # both apostrophes missing: not in the table
        ("somebody'd", "somebodyd"),  # the table's slip
        ("Im", "im"),  # the table has a capital I here, the word no longer
        ("shed", "shed"),  # a word of its own, not in the table
    ],
)
def test_numbers_articles_and_contractions(text, wanted):
    assert without_articles(text) == wanted


def test_entries_of_the_table():
    """114: the official 120 without "let's" and "she's" (which stand for themselves), "Id've", "I'dve", "Im" and "Ive"."""
    assert len(CONTRACTIONS) == 114
    shown = {"oclock": "o'clock", "maam": "ma'am", "twas": "'twas", "'ows'at": "'ow's'at", "y'allll": "y'all'll"}
    assert {key: CONTRACTIONS[key] for key in shown} == shown
    assert not {"lets", "shes", "were", "well", "id", "ill", "wed", "shell"} & set(CONTRACTIONS)


@pytest.mark.parametrize(
    ("text", "vqa", "textvqa"),
    [
        (" The two\ndogs.\t", "2 dogs", "2 dogs"),
        ("red,blue", "red blue", "redblue"),  # TextVQA removes commas first
        ("1,000-2", "10002", "1000 2"),  # so that this one no longer takes the hyphen with it
        ("why?because", "why because", "whybecause"),  # question marks as well
        ("men's shoes", "men's shoes", "men 's shoes"),  # and splits "'s" off
        ("Let's go", "let's go", "let 's go"),
        ("dont", "don't", "don't"),
        ("coca-cola", "coca cola", "coca cola"),
    ],
)
def test_the_two_normalisations(text, vqa, textvqa):
    assert vqa_normalised(text) == vqa
    assert textvqa_normalised(text) == textvqa


def test_one_line():
    assert one_line("\n a\tb\nc ") == "a b c"


def test_examples_that_cannot_be_scored():
    check_answers([example("a")], [""])
    with pytest.raises(UserError, match=r"^example 'q2' has no answers; leave it out before scoring$"):
        check_answers([example("a"), example(example_id="q2")], ["a", "a"])
    with pytest.raises(UserError, match=r"^examples: 0 are to be scored"):
        check_answers([], [])
    with pytest.raises(ValueError, match="1 texts do not answer 2 examples"):
        check_answers([example("a"), example("b", example_id="q2")], ["a"])


def test_scores_that_are_a_mean():
    found = mean_scores("accuracy", [1, 0, 0.5, 1])
    assert found.values == {"accuracy": 62.5}
    assert found.unit_U.tolist() == [0, 1, 2, 3]
    assert found.unit_U.dtype == np.int64
    assert found.score_U.tolist() == found.score_N.tolist() == [1, 0, 0.5, 1]
    assert found.details == {}
