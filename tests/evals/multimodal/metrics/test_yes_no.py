"""POPE's and MME's numbers by hand; POPE's against scikit-learn's too."""

import random

import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from evals.multimodal.examples import Example
from evals.multimodal.metrics.yes_no import mme_answer, mme_scores, pope_answer, yes_no_scores
from pretrain.types import UserError


def example(answer, *, example_id="q1", kind="", group=""):
    return Example(example_id, 0, "is there a dog?", (answer,), kind=kind, group=group)


@pytest.mark.parametrize(
    ("text", "pope", "mme"),
    [
        ("yes", "yes", "yes"),
        ("No", "no", "no"),
        ("No, there is none", "no", "no"),
        ("Yes, there is no doubt", "no", "yes"),  # POPE finds the word "no" anywhere in the first sentence
        ("Yes. There is no cat", "yes", "yes"),  # but in the first only
        ("There is not a dog", "no", ""),
        ("a dog", "yes", ""),  # POPE: what does not deny is a yes
        ("NO", "yes", "no"),  # POPE knows two spellings
        ("Nothing", "yes", "no"),  # MME looks at four characters
        ("not", "no", "no"),
        ("**Yes**", "yes", ""),  # "**ye" has no "yes"
        (" yes", "yes", "yes"),
        ("", "", ""),
    ],
)
def test_what_a_text_says(text, pope, mme):
    assert pope_answer(text) == pope
    assert mme_answer(text) == mme


def test_pope_by_hand():
    """Right: yes yes yes no no. Said: yes, no, nothing, no, yes.

    Accuracy: the first and the fourth, 2 of 5. One hit of two that say yes: precision 1/2. Of three that are yes: recall 1/3.
    F1: 2 x 1 / (3 + 2). Two of five say yes.
    """
    examples = [
        example(answer, example_id=str(k), kind=kind)
        for k, (answer, kind) in enumerate(zip(["yes", "Yes", "yes", "no", "no"], ["a", "a", "b", "b", "b"]))
    ]
    found = yes_no_scores(examples, ["yes", "no", "", "No.", "a dog"])
    assert list(found.values) == ["accuracy", "precision", "recall", "f1", "yes_share"]
    assert found.values == pytest.approx(
        {"accuracy": 40, "precision": 50, "recall": 100 / 3, "f1": 40, "yes_share": 40}
    )
    assert found.score_N.tolist() == [1, 0, 0, 1, 0]
    assert 100 * found.score_U.mean() == pytest.approx(found.values["accuracy"])
    assert found.details["empty"] == 1
    # kind a: yes yes, said yes no: F1 2 / (2 + 1); kind b: yes no no, said nothing, no, yes: no hit
    assert found.details["by_kind"]["a"] == pytest.approx({"accuracy": 50, "f1": 200 / 3})
    assert found.details["by_kind"]["b"] == pytest.approx({"accuracy": 100 / 3, "f1": 0})


def test_pope_is_scikit_learns():
    rng = random.Random(0)
    right, said = ([rng.choice(["yes", "no"]) for _ in range(50)] for _ in range(2))
    found = yes_no_scores([example(answer, example_id=str(k)) for k, answer in enumerate(right)], said).values
    assert found["accuracy"] == pytest.approx(100 * accuracy_score(right, said))
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert found[name] == pytest.approx(100 * score(right, said, pos_label="yes"))


def test_nobody_says_yes():
    found = yes_no_scores([example("yes"), example("no", example_id="2")], ["no", "no"])
    assert found.values == {"accuracy": 50, "precision": 0, "recall": 0, "f1": 0, "yes_share": 0}


def mme_examples(*kinds_and_groups):
    """Two questions of each pair, the first with yes."""
    return [
        example(answer, example_id=f"{kind}/{group}/{answer}", kind=kind, group=group)
        for kind, group in kinds_and_groups
        for answer in ("yes", "no")
    ]


def test_mme_by_hand():
    """Existence: picture 1 has both right, picture 2 one: accuracy 3/4, accuracy+ 1/2, 125 points. Colour: picture 1 has none of
    two (one text is neither): 0 points. The same group in another category is another picture.
    """
    examples = mme_examples(("existence", "1"), ("existence", "2"), ("color", "1"))
    texts = ["Yes", "no", "yes.", "yes", "a dog", "yes"]
    found = mme_scores(examples, texts)
    assert found.values == {"score_points": pytest.approx(125)}
    assert found.score_N.tolist() == [1, 1, 1, 0, 0, 0]
    assert found.unit_U.tolist() == found.score_U.tolist() == []
    assert found.details["categories"]["existence"] == {"accuracy": 75, "accuracy_plus": 50, "points": 125}
    assert found.details["categories"]["color"] == {"accuracy": 0, "accuracy_plus": 0, "points": 0}
    assert found.details["other"] == 1
    # the order of the examples does not matter
    order = [5, 0, 3, 4, 2, 1]
    shuffled = mme_scores([examples[k] for k in order], [texts[k] for k in order])
    assert shuffled.values == found.values


def test_mmes_best_and_its_cognition():
    examples = mme_examples(("existence", "1"), ("OCR", "2"), ("code_reasoning", "3"))
    found = mme_scores(examples, ["yes", "no", "yes", "no", "yes", "yes"])
    # two categories of perception at 200; code: one of two, no pair
    assert found.values == {"score_points": 400, "cognition_points": 50}


def test_bad_examples():
    with pytest.raises(UserError, match=r"^example 'q1' has answers \['maybe'\]; yes or no is needed$"):
        yes_no_scores([example("maybe")], ["yes"])
    with pytest.raises(UserError, match="yes or no is needed"):
        mme_scores([Example("1", 0, "?", ("yes", "no"), kind="a", group="1")], ["yes"])
    with pytest.raises(UserError, match="example '1' has no answers"):
        yes_no_scores([Example("1", 0, "?", ())], ["yes"])
    for kind, group in (("", "1"), ("existence", "")):
        with pytest.raises(
            UserError, match=rf"^example 'q1' has kind '{kind}' and group '{group}'; metric 'mme' needs"
        ):
            mme_scores([example("yes", kind=kind, group=group)], ["yes"])
    with pytest.raises(
        UserError, match=r"^group '1' of kind 'existence' has 1 questions; metric 'mme' needs 2 a picture$"
    ):
        mme_scores(mme_examples(("existence", "1"))[:1], ["yes"])
    with pytest.raises(UserError, match=r"^kinds \['code_reasoning'\] are all of cognition"):
        mme_scores(mme_examples(("code_reasoning", "1")), ["yes", "no"])
