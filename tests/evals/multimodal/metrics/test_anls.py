"""ANLS by hand, edit distance against torchmetrics'."""

import random

import pytest
from torchmetrics.functional.text import edit_distance as torchmetrics_distance

from evals.multimodal.examples import Example
from evals.multimodal.metrics.anls import anls_scores, edit_distance, similarity
from pretrain.types import UserError


def example(*answers, example_id="q1"):
    return Example(example_id, 0, "what?", answers)


def test_edit_distance_is_torchmetrics():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    rng = random.Random(0)
    for _ in range(60):
        first, second = ("".join(rng.choices("abcd", k=rng.randint(1, 9))) for _ in range(2))
        assert edit_distance(first, second) == int(torchmetrics_distance(first, second, reduction="sum"))


@pytest.mark.parametrize(
    ("text", "answers", "wanted"),
    [
        ("Denver Broncos", ["denver broncos"], 1),  # capitals do not matter
        (" denver \n broncos", ["denver broncos"], 1),  # nor does white space: distance 0
        ("12/15/89", ["12/15/88"], 7 / 8),  # one of eight
        ("abcd", ["abxy"], 0.5),  # two of four: exactly at the threshold, kept by the competition's evaluator
        ("abcde", ["abxyz"], 0),  # three of five: similarity 0.4
        ("abcdefg", ["abcdxyz"], 4 / 7),  # three of seven
        ("abcd", ["zzzz", "abce", "abxy"], 0.75),  # the best answer counts
        ("", ["a"], 0),
        ("", [""], 0),  # an empty text is wrong, whatever the answer
    ],
)
def test_by_hand(text, answers, wanted):
    assert anls_scores([example(*answers)], [text]).score_N[0] == pytest.approx(wanted)


def test_lengths_are_those_before_white_space_is_collapsed():
    """ "a  b" and "a bc": one insertion; the longer string has four characters either way."""
    assert similarity("a  b", "a bc") == pytest.approx(3 / 4)
    assert similarity("a     b", "a bc") == pytest.approx(6 / 7)


def test_the_mean_and_what_equation_1_gives():
    """1, 0.5 (at the threshold), 0.75, 0.4 -> 0: mean 2.25 / 4. Equation 1 has 0 for the second: 1.75 / 4."""
    examples = [example(answer, example_id=str(k)) for k, answer in enumerate(["abcd", "abxy", "abce", "abxyz"])]
    found = anls_scores(examples, ["abcd", "abcd", "abcd", "abcde"])
    assert found.values == {"anls": pytest.approx(56.25)}
    assert found.details == {"at_threshold": 1, "anls_by_equation_1": pytest.approx(43.75)}
    assert 100 * found.score_U.mean() == found.values["anls"]


def test_no_answers():
    with pytest.raises(UserError, match="example 'q1' has no answers"):
        anls_scores([example()], ["a"])
