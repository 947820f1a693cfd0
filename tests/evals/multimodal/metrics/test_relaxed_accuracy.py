"""ChartQA's relaxed accuracy by hand."""

import pytest

from evals.multimodal.examples import Example
from evals.multimodal.metrics.relaxed import relaxed_match, relaxed_scores
from pretrain.types import UserError


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("105", "100", True),  # 5 of 100: at the border
        ("95", "100", True),
        ("105.1", "100", False),
        ("94.9", "100", False),
        ("100", "105", True),  # relative to the answer: 5 of 105
        ("100", "95", False),  # 5 of 95 is 5.3%
        ("-100", "-104", True),
        ("100", "-100", False),
        ("5%", "0.05", True),  # a percent sign divides by 100
        ("5%", "5", False),
        ("21%", "20%", True),
        ("5 %", "5%", True),
        ("0", "0", True),  # an answer of 0: as strings
        ("0.0", "0", False),
        ("0.00001", "0", False),
        ("0%", "0%", True),
        ("2,000", "2000", False),  # no number with a comma
        ("2,000", "2,000", True),
        ("Red", "red", True),
        ("red.", "red", False),
        ("red", "red blue", False),
        ("2010 to 2012", "2010 TO 2012", True),
        ("nan", "NaN", True),  # strings here
        ("inf", "1", False),
        ("%", "%", True),
        ("", "", False),
        (" yes ", "Yes", True),
    ],
)
def test_by_hand(text, answer, right):
    assert relaxed_match(text, answer) is right


def test_the_share_of_right_texts():
    examples = [Example("1", 0, "?", ("10", "20")), Example("2", 0, "?", ("blue",)), Example("3", 0, "?", ("3",))]
    found = relaxed_scores(examples, ["20.9", "blue", ""])  # 20.9 is 4.5% off the second answer
    assert found.score_N.tolist() == [1, 1, 0]
    assert found.values == {"relaxed_accuracy": pytest.approx(200 / 3)}
    with pytest.raises(UserError, match="example '4' has no answers"):
        relaxed_scores([Example("4", 0, "?", ())], ["1"])
