"""ROUGE-L by hand and against numbers of the official code."""

import json
from pathlib import Path

import numpy as np
import pytest

from evals.multimodal.metrics.ptb import ptb_tokens
from evals.multimodal.metrics.rouge import common_subsequence, rouge_l

OFFICIAL = json.loads((Path(__file__).parent / "official_caption_scores.json").read_text())


def split(*captions: str) -> list[list[str]]:
    return [caption.split() for caption in captions]


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [
        ("a b c", "a c", 2),
        ("a b c", "c b a", 1),
        ("a b a b", "b a b a", 3),
        ("a", "b", 0),
        ("", "a", 0),
        ("a x b y c", "a b c", 3),
    ],
)
def test_common_subsequence(first, second, length):
    assert common_subsequence(first.split(), second.split()) == length
    assert common_subsequence(second.split(), first.split()) == length


def test_one_reference_by_hand():
    # All 3 words stand in order in the 5 of the reference: precision 1, recall 3/5, beta^2 = 1.44.
    wanted = 2.44 * 1 * 0.6 / (0.6 + 1.44 * 1)
    assert rouge_l(split("a dog runs"), [split("a big dog runs here")]) == pytest.approx([wanted])


def test_precision_and_recall_may_be_of_different_references():
    # precision 1 from the first, recall 1 from the second
    assert rouge_l(split("a dog runs"), [split("a big dog runs here", "dog")]) == pytest.approx([1])


def test_official_numbers():
    candidates = [ptb_tokens(caption) for caption in OFFICIAL["candidates"]]
    references = [[ptb_tokens(caption) for caption in captions] for captions in OFFICIAL["references"]]
    np.testing.assert_allclose(rouge_l(candidates, references), OFFICIAL["rouge_l"], rtol=0, atol=1e-9)


def test_nothing_in_common_has_zero():
    assert rouge_l([[], ["cat"]], [[["a"], []], split("a dog")]).tolist() == [0, 0]


def test_a_picture_without_references_is_refused():
    with pytest.raises(ValueError, match="picture 0 has no reference"):
        rouge_l(split("a"), [[]])
