"""ROUGE-L (Lin 2004) as coco-caption computes it: of the longest common subsequences with each reference, the best precision and
the best recall, be they of different references, in an F measure with beta 1.2 (recall counts more).

torchmetrics has another F measure (beta 1, the best reference as a whole) and its own tokens, so that its numbers do not compare.
"""

from collections.abc import Sequence

import numpy as np

from evals.multimodal.metrics.cider import Tokens, check_pictures

BETA = 1.2


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """ROUGE-L of each picture, 0 to 1: float64 [number of pictures]. A candidate without a token has 0
    (in coco-caption 1 against a reference that has none either).

    Args:
        candidates: one caption of each picture, as `ptb_tokens` gives them.
        references: one or more captions of each.

    Raises:
        ValueError: other numbers of candidates than of pictures, or a picture without references.
    """
    check_pictures(candidates, references)
    return np.array(
        [_score(candidate, captions) for candidate, captions in zip(candidates, references)], dtype=np.float64
    )


def _score(candidate: Tokens, captions: Sequence[Tokens]) -> float:
    common = [common_subsequence(candidate, caption) for caption in captions]
    if not any(common):
        return 0.0
    precision = max(common) / len(candidate)
    recall = max(length / len(caption) for length, caption in zip(common, captions) if caption)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common_subsequence(first: Tokens, second: Tokens) -> int:
    """How many tokens the longest sequence has that stands in both in this order, with gaps allowed."""
    row = [0] * (len(second) + 1)
    for token in first:
        above = row
        row = [0]
        for place, other in enumerate(second):
            row.append(above[place] + 1 if token == other else max(row[place], above[place + 1]))
    return row[-1]
