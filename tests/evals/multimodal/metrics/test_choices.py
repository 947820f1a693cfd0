"""Reading letters, accuracy of choices, rotations and the circular rule, by hand."""

import random
from dataclasses import replace

import pytest

from evals.multimodal.examples import Example
from evals.multimodal.metrics.choices import (
    choice_scores,
    circular_scores,
    in_line,
    on_lines,
    read_letter,
    rotations,
)
from pretrain.types import UserError

CHOICES = ("blue", "red", "dark green", "vitamin C")


def example(answer="B", choices=CHOICES, *, example_id="q1", group=""):
    return Example(example_id, 0, "what colour?", (answer,), choices=choices, group=group)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(B)", "B"),
        (" b)\n", "B"),
        ("**B**", "B"),
        ("B. red", "B"),
        ("b. red.", "B"),
        ("(b) red", "B"),
        ("B: red", "B"),
        ("B.red", "B"),
        ("D. Vitamin C", "D"),  # the C of the choice's words is no second letter
        ("B. blue", "B"),  # the letter was asked for
        ("B. because of the roof", "B"),
        ("The answer is B", "B"),
        ("The answer is (b).", "B"),
        ("the correct answer is: B because it glows", "B"),
        ("Answer: b", "B"),
        ("I would say option C.", "C"),
        ("red", "B"),
        ("Dark  Green.", "C"),
        ("vitamin c", "D"),
        ("it is red", "B"),
        ("The answer is red", "B"),
        ("the answer is a red ring", "B"),  # an article, not the letter A
        ("a red ring", "B"),
        ("A", "A"),
        ("", None),
        ("?", None),
        ("E", None),  # there are four
        ("E. yellow", None),
        ("yellow", None),
        ("A, B", None),
        ("A and B", None),
        ("AB", None),
        ("A. blue B. red C. dark green D. vitamin C", None),  # the list again
        ("The answer is A. The answer is B.", None),
        ("red or blue", None),
        ("reddish", None),  # whole words
        ("i am bored", None),
        ("the bird", None),
    ],
)
def test_what_a_text_names(text, wanted):
    assert read_letter(text, CHOICES) == wanted


def test_choices_of_one_name():
    assert read_letter("none", ("none", "none", "red")) is None
    assert read_letter("b. none", ("none", "none", "red")) == "B"


def test_choices_that_are_letters():
    assert read_letter("x", ("w", "x", "y")) == "B"  # there is no choice X
    assert read_letter("b", ("b", "a", "x")) == "B"  # the letter was asked for


def test_accuracy_and_what_cannot_be_read():
    """Right: B, small b (scenes write it so), and one of two answers; wrong: A; unread: two texts."""
    examples = [
        example(example_id="1"),
        example("b", example_id="2"),
        replace(example(example_id="3"), answers=("C", "D")),
        example(example_id="4"),
        example(example_id="5"),
        example(example_id="6"),
    ]
    found = choice_scores(examples, ["red", "B.", "d", "A", "", "A or B"])
    assert found.score_N.tolist() == [1, 1, 1, 0, 0, 0]
    assert found.values == {"accuracy": 50}
    assert found.details == {"no_letter": 2}


def test_rotations_by_hand():
    made = rotations(replace(example("B", ("x", "y", "z")), kind="colour"), question="which?")
    assert [(e.example_id, e.question, e.answers, e.choices) for e in made] == [
        ("q1#0", "which?\nA. x\nB. y\nC. z", ("B",), ("x", "y", "z")),
        ("q1#1", "which?\nA. y\nB. z\nC. x", ("A",), ("y", "z", "x")),
        ("q1#2", "which?\nA. z\nB. x\nC. y", ("C",), ("z", "x", "y")),
    ]
    assert {(e.group, e.kind, e.picture) for e in made} == {("q1", "colour", 0)}


def test_rotations_of_scenes():
    """Small letters on one line, ten answers."""
    scene = replace(example("a", ("star", "ring")), answers=("a",) * 10)
    made = rotations(scene, question="what shape?", joined=in_line)
    assert [e.question for e in made] == ["what shape? a. star b. ring", "what shape? a. ring b. star"]
    assert [set(e.answers) for e in made] == [{"a"}, {"b"}]
    assert len(made[1].answers) == 10
    assert on_lines("what?", ("star",)) == "what?\nA. star"


def test_an_oracle_is_right_and_a_stubborn_letter_is_not():
    """An oracle that names the right words scores 100. One that always says A is right in exactly one rotation of each group:
    circular 0; vanilla the share of questions whose answer is A."""
    rng = random.Random(0)
    examples = []
    for k in range(12):
        choices = tuple(f"thing{n}" for n in range(rng.randint(2, 5)))
        letter = "ABCDE"[rng.randrange(len(choices))] if k else "A"
        examples += rotations(example(letter, choices, example_id=f"q{k}"), question="?")
    oracle = [e.choices["ABCDE".index(e.answers[0])] for e in examples]
    assert circular_scores(examples, oracle).values == {"circular": 100, "vanilla": 100}
    stubborn = circular_scores(examples, ["A"] * len(examples))
    firsts = [e for e in examples if e.example_id.endswith("#0")]
    share = sum(e.answers == ("A",) for e in firsts) / 12
    assert 0 < share < 1
    assert stubborn.values == {"circular": 0, "vanilla": pytest.approx(100 * share)}
    assert stubborn.score_N.sum() == 12


def test_one_wrong_rotation_is_a_wrong_question():
    """Two questions of three choices: the first right each time, the second wrong in its last rotation (a text that cannot be
    read). Circular 1 of 2; vanilla 2 of 2; 5 of 6 examples are right. Groups may be mixed."""
    first = rotations(example("A", ("x", "y", "z"), example_id="q1"), question="?")
    second = rotations(example("B", ("x", "y", "z"), example_id="q2"), question="?")
    examples = [first[0], second[0], second[1], first[1], second[2], first[2]]
    found = circular_scores(examples, ["x", "y", "y", "x", "dunno", "x"])
    assert found.values == {"circular": 50, "vanilla": 100}
    assert found.score_N.tolist() == [1, 1, 1, 1, 0, 1]
    assert found.unit_U.tolist() == [0, 1]
    assert found.score_U.tolist() == [1, 0]
    assert found.details == {"no_letter": 1}


def test_bad_examples():
    with pytest.raises(UserError, match=r"^example 'q1' has 0 choices; metric 'choice' needs 1 to 26$"):
        choice_scores([example(choices=())], ["B"])
    with pytest.raises(UserError, match=r"^example 'q1' has 0 choices; metric 'circular' needs 1 to 26$"):
        rotations(replace(example(choices=()), answers=()), question="?")
    for answer in ("E", "red", ""):
        with pytest.raises(
            UserError, match=rf"^example 'q1' has answer '{answer}'; with 4 choices a letter from A to D"
        ):
            choice_scores([example(answer)], ["B"])
    with pytest.raises(UserError, match="example 'q1' has no answers"):
        choice_scores([replace(example(), answers=())], ["B"])
    with pytest.raises(UserError, match=r"^example 'q1' has no group; metric 'circular' needs"):
        circular_scores([example()], ["B"])


def test_groups_must_be_whole():
    made = rotations(example("A", ("x", "y", "z"), example_id="q1"), question="?")
    with pytest.raises(UserError, match=r"^group 'q1' has 2 examples; its 3 choices have 3 rotations$"):
        circular_scores(made[:2], ["x", "x"])
    twice = [made[0], made[1], replace(made[1], example_id="again")]
    with pytest.raises(UserError, match=r"^group 'q1' is not one question"):
        circular_scores(twice, ["x"] * 3)
    with pytest.raises(UserError, match=r"^group 'q1' is not one question"):  # another answer in the last
        circular_scores([*made[:2], replace(made[2], answers=("A",))], ["x"] * 3)
