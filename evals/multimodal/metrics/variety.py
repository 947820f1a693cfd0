"""How varied captions are, and the one caption that knows no picture: the baseline that any captioner has to be above."""

from collections import Counter
from collections.abc import Iterable, Sequence

from evals.multimodal.metrics.cider import MAX_N, Tokens, document_frequencies, ngrams
from evals.multimodal.metrics.ptb import ptb_tokens
from pretrain.data.tokenizers import clean_caption
from pretrain.types import UserError

#: Words of a phrase that counts as repeated.
REPEATED_N = 4


def distinct_share(captions: Sequence[str]) -> float:
    """Different captions among all, in percent; those that differ in case or white space only are the same.

    Raises:
        ValueError: no captions.
    """
    if not captions:
        raise ValueError("no captions")
    return 100 * len(set(map(clean_caption, captions))) / len(captions)


def repetition_rate(captions: Sequence[Tokens]) -> float:
    """How much captions repeat themselves, in percent.

    Of a caption: the share of its 4-grams that are equal to one that stands before them in the same caption. The mean is over the
    captions of at least four tokens (shorter ones have no 4-gram); 0 where there is none.
    """
    shares = []
    for tokens in captions:
        counts = ngrams(tokens, REPEATED_N)
        if counts:
            shares.append(1 - len(counts) / counts.total())
    return 100 * sum(shares) / len(shares) if shares else 0.0


def most_frequent_caption(training_captions: Iterable[str]) -> str:
    """The most frequent of all captions, cleaned (`clean_caption`); those without a token do not count.

    Human captions are mostly all different. Of those that are as frequent, the most typical one is taken: in how many training
    captions each of its 1- to 4-grams is, summed and divided by its length in tokens; of equal ones the first by the alphabet.

    Raises:
        UserError: there is no caption with a token.
    """
    counts = Counter(map(clean_caption, training_captions))
    tokens = {caption: ptb_tokens(caption) for caption in counts}
    tokens = {caption: words for caption, words in tokens.items() if words}
    if not tokens:
        raise UserError("training captions: none has a word in it; the most frequent caption needs at least one")
    most = max(counts[caption] for caption in tokens)
    candidates = sorted(caption for caption in tokens if counts[caption] == most)
    if len(candidates) == 1:
        return candidates[0]
    frequencies = document_frequencies([[words] for caption, words in tokens.items() for _ in range(counts[caption])])

    def typical(caption: str) -> float:
        words = tokens[caption]
        found = {ngram for n in range(1, MAX_N + 1) for ngram in ngrams(words, n)}
        return sum(frequencies[ngram] for ngram in found) / len(words)

    return max(candidates, key=typical)  # the first of equal ones
