"""Intervals of percentages."""

import math

#: Two-sided 95% of the normal distribution.
Z95 = 1.959963984540054


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
