"""VQA soft accuracy: the ten-answer rule, what is normalised when, and the leave-one-out rule restated by brute force."""

import random
from itertools import combinations

import pytest

from evals.multimodal.examples import Example
from evals.multimodal.metrics.vqa import soft_accuracy, textvqa_scores, vqa_scores
from pretrain.types import UserError


def example(*answers, example_id="q1"):
    return Example(example_id, 0, "what?", answers)


def score(scores, text, answers):
    return scores([example(*answers)], [text]).values


@pytest.mark.parametrize(
    ("matches", "wanted"),
    [
        (0, 0),
        (1, 30),  # nine subsets with one match, one with none: 9 x 1/3 / 10
        (2, 60),  # 8 x 2/3 + 2 x 1/3 = 6
        (3, 90),  # 7 x 1 + 3 x 2/3 = 9
        (4, 100),
        (10, 100),
    ],
)
@pytest.mark.parametrize("scores", [vqa_scores, textvqa_scores])
def test_the_ten_answer_rule(scores, matches, wanted):
    answers = ["red"] * matches + [f"colour{k}" for k in range(10 - matches)]
    assert next(iter(score(scores, "red", answers).values())) == pytest.approx(wanted)


@pytest.mark.parametrize(("num", "wanted"), [(2, 100 / 3), (3, 200 / 3), (4, 100)])
def test_fewer_answers_follow_the_same_rule(num, wanted):
    """All n agree with the text: each subset has n - 1 matches."""
    assert score(vqa_scores, "red", ["red"] * num)["vqa_accuracy"] == pytest.approx(wanted)
    assert score(textvqa_scores, "red", ["red"] * num)["textvqa_accuracy"] == pytest.approx(wanted)


def test_ok_vqas_five_answers_given_twice():
    """Two of ten: 0.6, as each answer is there twice."""
    answers = [answer for answer in ("pony", "horse", "mare", "foal", "donkey") for _ in range(2)]
    assert score(vqa_scores, "Horse", answers)["vqa_accuracy"] == pytest.approx(60)


def test_the_rule_is_that_of_all_subsets():
    """Every subset of all answers but one, listed by itertools, on random answers of few words."""
    rng = random.Random(0)
    seen = set()
    for _ in range(400):
        answers = [rng.choice("abc") for _ in range(rng.randint(2, 12))]
        subsets = list(combinations(answers, len(answers) - 1))
        wanted = sum(min(1, sum(answer == "a" for answer in subset) / 3) for subset in subsets) / len(subsets)
        assert soft_accuracy("a", answers) == pytest.approx(wanted)
        seen.add(round(wanted, 3))
    assert len(seen) > 15


@pytest.mark.parametrize(
    ("text", "answers", "wanted"),
    [
        ("Two", ["2"] * 4 + ["3"] * 6, 100),  # number words and capitals, answers differ
        ("the 2,000 dogs.", ["2000 dogs"] * 3 + ["2000 dog"] * 7, 90),
        (
            "dont walk",
            ["don't walk"] * 2 + ["a don't walk"] * 2 + ["stop"] * 6,
            100,
        ),  # the article of an answer goes too
        ("yes", ["yes"] * 10, 100),
        ("Yes", ["yes"] * 10, 0),  # all the same: nothing is normalised
        ("2", ["two"] * 10, 0),
        ("two", ["two"] * 10, 100),
        ("yes\n", [" yes\t"] * 10, 100),  # but line breaks, tabs and outer spaces always are
        ("Yes", ["yes"] * 9 + ["Yes"], 100),  # not all the same as they stand
    ],
)
def test_texts_are_normalised_where_answers_differ(text, answers, wanted):
    assert score(vqa_scores, text, answers)["vqa_accuracy"] == pytest.approx(wanted)


def test_what_unanimous_answers_cost_is_shown():
    """First: right either way. Second: "Yes" against ten times "yes", lost. Third: wrong. Fourth: 4 matches after normalising.

    Official: 1 + 0 + 0 + 1 of 4; always normalised: 1 + 1 + 0 + 1.
    """
    examples = [
        example(*["yes"] * 10, example_id="1"),
        example(*["yes"] * 10, example_id="2"),
        example(*["yes"] * 10, example_id="3"),
        example(*["two"] * 4, *["3"] * 6, example_id="4"),
    ]
    found = vqa_scores(examples, ["yes", "Yes", "no", "2"])
    assert found.values == {"vqa_accuracy": 50}
    assert found.score_N.tolist() == [1, 0, 0, 1]
    assert found.details == {"always_normalised": 75, "lost_unnormalised": 1}


def test_textvqa_always_normalises():
    assert score(textvqa_scores, "Yes", ["yes"] * 10)["textvqa_accuracy"] == 100
    assert score(textvqa_scores, "2", ["two"] * 10)["textvqa_accuracy"] == 100
    # "red,blue" is "redblue" for TextVQA, "red blue" for VQAv2
    answers = ["redblue"] * 4 + ["red"] * 6
    assert score(textvqa_scores, "red,blue", answers)["textvqa_accuracy"] == 100
    assert score(vqa_scores, "red,blue", answers)["vqa_accuracy"] == 0


@pytest.mark.parametrize("scores", [vqa_scores, textvqa_scores])
def test_an_empty_text_is_wrong(scores):
    """Also where answers normalise to nothing: "the" is an article."""
    found = scores([example("", "", "", "", "the")], [" "])
    assert found.score_N.tolist() == [0]


@pytest.mark.parametrize(("scores", "name"), [(vqa_scores, "vqa"), (textvqa_scores, "textvqa")])
def test_examples_without_enough_answers(scores, name):
    with pytest.raises(UserError, match="example 'q2' has no answers"):
        scores([example("a", "b"), example(example_id="q2")], ["a", "a"])
    with pytest.raises(
        UserError, match=rf"^example 'q2' has 1 answer; metric '{name}' leaves one out and needs 2 or more$"
    ):
        scores([example("a", "b"), example("a", example_id="q2")], ["a", "a"])
