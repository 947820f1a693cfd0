"""What metrics of answers share: how a text is normalised before it is compared, and how scores of examples become `Scores`.

The normalisation is that of the VQA evaluation (Antol et al. 2015; GT-Vision-Lab/VQA, vqaEval.py) and its variant of TextVQA
(facebookresearch/mmf, m4c_evaluators.py). The word lists are theirs, slips included: changed, numbers would not compare.

Shape letters: N examples.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from evals.multimodal.examples import Example, Scores
from pretrain.types import UserError

ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
#: Neither apostrophe nor colon; the full stop has a rule of its own.
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
    how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
    oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
"""
#: A word that lacks one of its apostrophes -> the word. The official table has these, two entries that change nothing, and four
#: with a capital I, which never meet a lower-cased word. Its entry for "somebody'd" is the wrong way round.
CONTRACTIONS = {
    word[: at.start()] + word[at.end() :]: word for word in _CONTRACTED.split() for at in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
#: The official pattern also means to spare a full stop behind a digit, but is mistyped and does not. (It also stops after 32.)
_FULL_STOP = re.compile(r"\.(?!\d)")


def one_line(text: str) -> str:
    """Line breaks and tabs become spaces; none at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def without_punctuation(text: str) -> str:
    """Each mark becomes a space, or vanishes where the text has one beside a space, or a comma between digits ("2,000")."""
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    found = text
    for mark in PUNCTUATION:
        vanishes = in_number or f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if vanishes else " ")
    return _FULL_STOP.sub("", found)


def without_articles(text: str) -> str:
    """Lower case, number words as digits ("none" is 0), no articles, apostrophes put back, single spaces."""
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_normalised(text: str) -> str:
    """As VQAv2's evaluation compares texts: line breaks, punctuation, then numbers, articles and contractions."""
    return without_articles(without_punctuation(one_line(text)))


def textvqa_normalised(text: str) -> str:
    """As TextVQA's evaluation compares texts: commas and question marks vanish first, and "'s" becomes a word of its own."""
    words = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return vqa_normalised(words)


def check_answers(examples: Sequence[Example], texts: Sequence[str]) -> None:
    """UserError for no examples or one without answers; ValueError unless there is one text for each."""
    if len(examples) != len(texts):
        raise ValueError(f"{len(texts)} texts do not answer {len(examples)} examples")
    if not examples:
        raise UserError("examples: 0 are to be scored; 1 or more are needed")
    for example in examples:
        if not example.answers:
            raise UserError(f"example {example.example_id!r} has no answers; leave it out before scoring")


def mean_scores(name: str, score_N: Sequence[float], details: Mapping[str, object] | None = None) -> Scores:
    """Scores of a metric that is 100 * the mean over all examples. score_N: 0 to 1."""
    score_N = np.asarray(score_N, dtype=np.float64)
    return Scores(
        values={name: 100 * float(score_N.mean())},
        score_N=score_N,
        unit_U=np.arange(len(score_N), dtype=np.int64),
        score_U=score_N,
        details=details or {},
    )
