"""CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726, section 5 and "CIDEr-D"), as coco-caption computes it.

For n = 1..4, captions are vectors of n-gram counts times log(number of pictures / pictures that have the n-gram in a reference).
A candidate's score is the cosine to a reference, with its weights clipped at the reference's and a Gaussian penalty (sigma 6) on
the difference of lengths; the mean over references and n, times 10. So 10 is most; papers print 100 times the mean over pictures.

Two things to know of the official code, kept here: weights come from the references that are scored (of one picture alone every
score is 0, and scores of subsets do not compare), and it counts 2-grams where it means length (one word less, 0 at least).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

MAX_N = 4
SIGMA = 6.0

Tokens = Sequence[str]
Ngrams = Counter[tuple[str, ...]]
#: The weights of one length n, and their norm.
_Vector = tuple[dict[tuple[str, ...], float], float]


def ngrams(tokens: Tokens, n: int) -> Ngrams:
    """How often each n-gram is there."""
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def document_frequencies(documents: Sequence[Sequence[Tokens]]) -> Ngrams:
    """In how many documents (each of one or more captions) each n-gram of 1 to 4 words is."""
    found: Ngrams = Counter()
    for captions in documents:
        found.update({ngram for tokens in captions for n in range(1, MAX_N + 1) for ngram in ngrams(tokens, n)})
    return found


def cider_d(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """CIDEr-D of each picture, 0 to 10: float64 [number of pictures].

    Args:
        candidates: one caption of each picture, as `ptb_tokens` gives them.
        references: one or more captions of each.

    Raises:
        ValueError: other numbers of candidates than of pictures, or a picture without references.
    """
    check_pictures(candidates, references)
    frequencies = document_frequencies(references)
    log_pictures = math.log(max(1, len(references)))
    scores = np.zeros(len(candidates))
    for number, (candidate, captions) in enumerate(zip(candidates, references)):
        vectors = _vectors(candidate, frequencies, log_pictures)
        for caption in captions:
            others = _vectors(caption, frequencies, log_pictures)
            difference = max(0, len(candidate) - 1) - max(0, len(caption) - 1)
            penalty = math.exp(-(difference**2) / (2 * SIGMA**2))
            scores[number] += penalty * sum(map(_similarity, vectors, others)) / MAX_N
        scores[number] *= 10 / len(captions)
    return scores


def check_pictures(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    """Raise ValueError for other numbers of candidates than of pictures, or for a picture without references."""
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates to the references of {len(references)} pictures")
    if empty := [number for number, captions in enumerate(references) if not captions]:
        raise ValueError(f"picture {empty[0]} has no reference")


def _vectors(tokens: Tokens, frequencies: Mapping[tuple[str, ...], int], log_pictures: float) -> list[_Vector]:
    vectors = []
    for n in range(1, MAX_N + 1):
        counts = ngrams(tokens, n)
        # what no reference has is as rare as what one picture has
        weights = {g: count * (log_pictures - math.log(max(1, frequencies.get(g, 0)))) for g, count in counts.items()}
        vectors.append((weights, math.sqrt(sum(weight**2 for weight in weights.values()))))
    return vectors


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    (weights, norm), (others, other_norm) = candidate, reference
    if not norm or not other_norm:
        return 0.0
    product = sum(min(weight, others[ngram]) * others[ngram] for ngram, weight in weights.items() if ngram in others)
    return product / (norm * other_norm)
