"""Distinct captions, repetition and the most frequent caption, by hand."""

import pytest

from evals.multimodal.metrics.variety import distinct_share, most_frequent_caption, repetition_rate
from pretrain.types import UserError


def test_captions_that_differ_in_case_or_white_space_are_the_same():
    assert distinct_share(["A dog", "a  dog", "a cat", "a dog."]) == 75


def test_distinct_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no captions"):
        distinct_share([])


def test_repetition_by_hand():
    # "a b" four times has the 4-grams abab baba abab baba abab: 3 of 5 stood there before. The second caption repeats no 4-gram,
    # though words of it; the third is too short to count: (3/5 + 0) / 2.
    captions = [["a", "b"] * 4, ["a", "b", "c", "a", "b"], ["a", "a", "a"]]
    assert repetition_rate(captions) == pytest.approx(30)
    assert repetition_rate([["a"] * 3]) == 0


def test_a_repetition_in_another_caption_does_not_count():
    assert repetition_rate([["a", "b", "c", "d"], ["a", "b", "c", "d"]]) == 0


def test_the_most_frequent_caption_is_counted_after_cleaning():
    assert most_frequent_caption(["a cat", "The  Dog", "a cat sits", "the dog", ".", ".", "."]) == "the dog"


def test_of_equally_frequent_captions_the_most_typical_is_taken():
    # Captions that have each n-gram: a 3, dog 2, cat 1, sits 1, "a dog" 2, "a cat" 1, the rest 1.
    # "a dog": (3 + 2 + 2) / 2 = 3.5; "a cat": (3 + 1 + 1) / 2 = 2.5; "a dog sits": (3 + 2 + 1 + 2 + 1 + 1) / 3 = 3.33
    captions = ["a cat", "a dog sits", "a dog"]
    assert most_frequent_caption(captions) == most_frequent_caption(captions[::-1]) == "a dog"


def test_of_equally_typical_captions_the_first_by_the_alphabet_is_taken():
    assert most_frequent_caption(["b b", "c c", "a a"]) == "a a"


def test_no_caption_with_a_word():
    with pytest.raises(UserError, match="training captions: none has a word in it"):
        most_frequent_caption(["", " . "])
