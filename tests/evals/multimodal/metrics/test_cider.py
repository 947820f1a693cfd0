"""CIDEr-D by hand and against numbers of the official code."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from evals.multimodal.metrics.cider import cider_d, document_frequencies, ngrams
from evals.multimodal.metrics.ptb import ptb_tokens

OFFICIAL = json.loads((Path(__file__).parent / "official_caption_scores.json").read_text())


def split(*captions: str) -> list[list[str]]:
    return [caption.split() for caption in captions]


def test_two_pictures_by_hand():
    # "a" is in references of both pictures: weight log(2/2) = 0. dog, cat, bird and each 2-gram are in one: log 2.
    # Picture 1, "a dog" against "a dog": cosine 1 for n = 1 and 2, no 3- and 4-grams: (1 + 1 + 0 + 0) / 4 * 10 = 5;
    # against "a bird" nothing but "a" is right: 0. The mean of the two references is 2.5.
    # Picture 2, "a dog" against "a cat": 0.
    scores = cider_d(split("a dog", "a dog"), [split("a dog", "a bird"), split("a cat")])
    np.testing.assert_allclose(scores, [2.5, 0], atol=1e-12)


def test_clipping_and_length_by_hand():
    # All weights are log 2 = w. Picture 1, "dog dog" against "dog", n = 1: vectors 2w and w, clipped min(2w, w) * w / (2w * w)
    # = 1/2 (the cosine is 1); n = 2: the reference has none. Lengths count 2-grams, 1 and 0: exp(-1 / (2 * 36)).
    # Picture 2, "cat" against "cat": 1 for n = 1 only.
    scores = cider_d(split("dog dog", "cat"), [split("dog"), split("cat")])
    np.testing.assert_allclose(scores, [10 * 0.5 / 4 * math.exp(-1 / 72), 10 / 4], atol=1e-12)


def test_a_word_that_no_reference_has_weighs_as_much_as_one_that_one_picture_has():
    # Picture 1, "dog zebra" against "dog": n = 1: w * w / (sqrt(2) w * w) = 1 / sqrt(2); n = 2: 0.
    scores = cider_d(split("dog zebra", "cat"), [split("dog"), split("cat")])
    assert scores[0] == pytest.approx(10 / math.sqrt(2) / 4 * math.exp(-1 / 72))


def test_perfect_captions_have_ten():
    captions = split("a dog runs on grass", "two men play some tennis", "the red car stands there")
    np.testing.assert_allclose(cider_d(captions, [[caption] for caption in captions]), 10)


def test_edge_cases_have_zero():
    assert cider_d(split("a dog runs on grass"), [split("a dog runs on grass")]).tolist() == [0]  # log(1 picture) = 0
    assert cider_d([[], ["cat"]], [split("dog"), split("cat")]).tolist() == [0, 2.5]
    assert cider_d([], []).shape == (0,)


def test_official_numbers():
    candidates = [ptb_tokens(caption) for caption in OFFICIAL["candidates"]]
    references = [[ptb_tokens(caption) for caption in captions] for captions in OFFICIAL["references"]]
    np.testing.assert_allclose(cider_d(candidates, references), OFFICIAL["cider_d"], rtol=0, atol=1e-9)


def test_ngrams_and_their_documents():
    assert ngrams(["a", "b", "a", "b"], 2) == {("a", "b"): 2, ("b", "a"): 1}
    found = document_frequencies([split("a b", "a"), split("a a")])
    assert (found[("a",)], found[("b",)], found[("a", "a")], found[("a", "b")]) == (2, 1, 1, 1)


def test_bad_input():
    with pytest.raises(ValueError, match="1 candidates to the references of 2 pictures"):
        cider_d(split("a"), [split("a"), split("b")])
    with pytest.raises(ValueError, match="picture 1 has no reference"):
        cider_d(split("a", "b"), [split("a"), []])
