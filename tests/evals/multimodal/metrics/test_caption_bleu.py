"""BLEU by hand and against numbers of the official code."""

import json
import math
from pathlib import Path

import pytest

from evals.multimodal.metrics.bleu import corpus_bleu
from evals.multimodal.metrics.ptb import ptb_tokens

OFFICIAL = json.loads((Path(__file__).parent / "official_caption_scores.json").read_text())


def split(*captions: str) -> list[list[str]]:
    return [caption.split() for caption in captions]


def test_a_corpus_by_hand():
    # Right of all: 1-grams 2 + 3 of 2 + 4, 2-grams 1 + 2 of 1 + 3, 3-grams 0 + 1 of 0 + 2, 4-grams 0 of 1.
    # Lengths 2 + 4 against 3 + 3: no penalty, though the first alone is too short.
    scores = corpus_bleu(split("a dog", "a cat sits here"), [split("a dog runs"), split("a cat sits")])
    wanted = (5 / 6, (5 / 6 * 3 / 4) ** (1 / 2), (5 / 6 * 3 / 4 * 1 / 2) ** (1 / 3), 0)
    assert scores == pytest.approx(wanted, abs=1e-6)


def test_brevity_and_clipping_by_hand():
    # "the the" against "the cat sits": 1 of 2 (clipped), length 2 against 3: exp(1 - 3 / 2)
    assert corpus_bleu(split("the the"), [split("the cat sits")])[0] == pytest.approx(math.exp(-0.5) / 2, abs=1e-6)


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_lengths_as_close_the_shorter_counts(turned):
    # 3 words against 4 and 2: the penalty is that of 2, none. With 4 it were exp(1 - 4 / 3).
    references = split("a dog runs fast", "a dog")
    assert corpus_bleu(split("a dog runs"), [references[::-1] if turned else references])[0] == pytest.approx(1)


def test_official_numbers():
    candidates = [ptb_tokens(caption) for caption in OFFICIAL["candidates"]]
    references = [[ptb_tokens(caption) for caption in captions] for captions in OFFICIAL["references"]]
    assert corpus_bleu(candidates, references) == pytest.approx(OFFICIAL["bleu"], abs=1e-6)


def test_captions_without_a_word_have_zero():
    assert corpus_bleu([[]], [split("a dog")]) == (0, 0, 0, 0)


def test_a_picture_without_references_is_refused():
    with pytest.raises(ValueError, match="picture 0 has no reference"):
        corpus_bleu(split("a"), [[]])
