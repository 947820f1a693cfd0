"""GQA's accuracy by hand."""

import pytest

from evals.multimodal.examples import Example
from evals.multimodal.metrics.exact import gqa_scores
from pretrain.types import UserError


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        ("Yes.", ["yes"], 1),
        (" traffic light ", ["traffic light"], 1),
        ("traffic lights", ["traffic light"], 0),
        ("the table", ["table"], 0),  # articles stay
        ("two", ["2"], 0),  # so do number words
        ("left...", ["left"], 1),
        ("yes, it is", ["yes"], 0),
        ("blue", ["red", "Blue"], 1),
        ("", ["."], 0),
        ("", ["yes"], 0),
    ],
)
def test_by_hand(text, answers, right):
    assert gqa_scores([Example("1", 0, "?", tuple(answers))], [text]).score_N.tolist() == [right]


def test_the_share_of_right_texts():
    examples = [Example(str(k), 0, "?", ("yes",)) for k in range(4)]
    found = gqa_scores(examples, ["yes", "Yes.", "no", ""])
    assert found.values == {"accuracy": 50}
    assert found.unit_U.tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="example '9' has no answers"):
        gqa_scores([Example("9", 0, "?", ())], ["yes"])
