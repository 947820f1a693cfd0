"""caption_scores: all metrics of captions in one, against numbers of the official code."""

import json
from pathlib import Path

import numpy as np
import pytest

from evals.multimodal.examples import Example
from evals.multimodal.metrics.captions import caption_scores
from pretrain.types import UserError

OFFICIAL = json.loads((Path(__file__).parent / "official_caption_scores.json").read_text())
EXAMPLES = [Example(f"coco-{n}", n, "", tuple(captions)) for n, captions in enumerate(OFFICIAL["references"])]


def test_official_numbers():
    scores = caption_scores(EXAMPLES, OFFICIAL["candidates"])
    names = ["cider_d", "bleu_4", "bleu_1", "bleu_2", "bleu_3", "rouge_l", "distinct", "repetition", "length_words"]
    assert list(scores.values) == names
    bleu = OFFICIAL["bleu"]
    wanted = [np.mean(OFFICIAL["cider_d"]), bleu[3], *bleu[:3], np.mean(OFFICIAL["rouge_l"])]
    assert [scores.values[name] for name in names[:6]] == pytest.approx([100 * value for value in wanted], abs=1e-4)
    assert scores.values["distinct"] == 100
    # "a man" four times and "rides a bike" are 11 words with 8 4-grams: "a man a man" stands 3 times, "man a man a" 2 times, so
    # that 3 repeat. Three others have 4-grams that do not, "a cat" has none: (3/8 + 0 + 0 + 0) / 4
    assert scores.values["repetition"] == pytest.approx(100 * 3 / 8 / 4)
    assert scores.values["length_words"] == pytest.approx((7 + 7 + 2 + 11 + 8) / 5)


def test_units_are_the_examples_and_their_mean_is_the_metric():
    scores = caption_scores(EXAMPLES, OFFICIAL["candidates"])
    assert scores.unit_U.tolist() == [0, 1, 2, 3, 4]
    assert scores.unit_U.dtype == np.int64
    np.testing.assert_allclose(scores.score_U, OFFICIAL["cider_d"], atol=1e-9)
    np.testing.assert_allclose(scores.score_N, np.array(OFFICIAL["cider_d"]) / 10, atol=1e-9)
    assert 100 * scores.score_U.mean() == scores.values["cider_d"]


def test_a_blank_caption_is_scored_and_counted():
    scores = caption_scores(EXAMPLES, ["", *OFFICIAL["candidates"][1:]])
    assert scores.score_U[0] == 0
    assert scores.details["blank"] == 1


@pytest.mark.parametrize("answers", [(), ("", " . ")])
def test_an_example_without_references_is_named(answers):
    with pytest.raises(UserError, match="example 'coco-7' has no reference caption"):
        caption_scores([*EXAMPLES, Example("coco-7", 7, "", answers)], [*OFFICIAL["candidates"], "a dog"])


def test_other_numbers_of_captions_are_refused():
    with pytest.raises(ValueError, match="4 captions to 5 examples"):
        caption_scores(EXAMPLES, OFFICIAL["candidates"][:4])
    with pytest.raises(ValueError, match="0 captions to 0 examples"):
        caption_scores([], [])
