"""Intervals of percentages.

Shape letters: N things that were scored, P pictures, S resamples.
"""

import math
from dataclasses import dataclass

import numpy as np

from pretrain.rng import draw_rng

#: Two-sided 95% of the normal distribution.
Z95 = 1.959963984540054
NUM_RESAMPLES = 2000
_COVERED = (2.5, 97.5)
#: Numbers held at once: 64 MB.
_MAX_CELLS = 8_000_000


def wilson(share: float, n: int) -> tuple[float, float]:
    """95% interval of a share in percent that was counted on `n` independent samples (Wilson 1927).

    Args:
        share: 0..100.
        n: at least 1.
    """
    p, z2 = share / 100, Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    # at 0 and 100 one end is the share itself, but for rounding
    return min(share, max(0.0, 100 * (middle - half))), max(share, min(100.0, 100 * (middle + half)))


@dataclass(frozen=True)
class Estimate:
    """A number in percent (or percentage points) and its 95% interval over pictures."""

    value: float
    interval: tuple[float, float]


def picture_interval(
    value_N: np.ndarray, image_id_N: np.ndarray, *, seed: int = 0, num: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """95% interval in percent of the mean, where pictures are drawn anew with all that is about them.

    Args:
        value_N: of each thing that was scored (a sentence, a question): right or not, or a share; for a paired difference, the
            difference of two models.
        image_id_N: its picture.
        seed: of the draws; the interval is a function of it and of the arguments only.
        num: S.
    """
    _, place_N = np.unique(image_id_N, return_inverse=True)
    num_pictures = int(place_N.max()) + 1
    total_P = np.bincount(place_N, weights=np.asarray(value_N, dtype=np.float64), minlength=num_pictures)
    count_P = np.bincount(place_N, minlength=num_pictures)
    rng = draw_rng(seed, "grounding/resample", 0)
    means = []
    step = max(1, _MAX_CELLS // num_pictures)
    for start in range(0, num, step):
        drawn_SP = rng.multinomial(num_pictures, np.full(num_pictures, 1 / num_pictures), min(step, num - start))
        means.append((drawn_SP @ total_P) / (drawn_SP @ count_P))
    low, high = np.percentile(100 * np.concatenate(means), _COVERED)
    return float(low), float(high)
