"""Parts of a training set that keep its classes: a held-out part, and a few pictures of each class."""

import numpy as np

from pretrain.rng import draw_rng
from pretrain.types import UserError


def hold_out(label_N: np.ndarray, *, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a training set in two parts with the same mix of classes: (fit, held), each sorted.

    A class of n >= 2 gives `share` of its pictures, rounded at random so that the total is right on average, but at least
    one and at most n - 1; a class of one picture stays in fit, so that the held part is empty where no class has two. Which
    pictures of a class are held out is a function of (seed, label, n) alone.

    Args:
        label_N: int64, a class of each picture.
        share: of the pictures that are held out, above 0 and below 1.
        seed: of the choice.

    Raises:
        UserError: `share` is out of range.
    """
    if not 0 < share < 1:
        raise UserError(f"hold_out share={share} must lie between 0 and 1")
    label_N = np.asarray(label_N)
    held: list[np.ndarray] = []
    for label, index_M in _by_class(label_N):
        if len(index_M) < 2:
            continue
        rng = draw_rng(seed, "hold_out", label)
        count = int(np.floor(share * len(index_M) + rng.random()))
        held.append(rng.permutation(index_M)[: min(max(count, 1), len(index_M) - 1)])
    held_N = np.sort(np.concatenate(held)) if held else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(label_N)), held_N, assume_unique=True), held_N


def few_shot_indices(label_N: np.ndarray, *, shots: int, seed: int) -> np.ndarray:
    """Indices of `shots` pictures of each class that occurs, sorted by class; fewer shots are a part of more.

    Args:
        label_N: int64, a class of each picture.
        shots: pictures of each class.
        seed: of the choice.

    Raises:
        UserError: `shots` is below 1, or a class has fewer pictures.
    """
    if shots < 1:
        raise UserError(f"shots={shots} must be at least 1")
    chosen: list[np.ndarray] = []
    for label, index_M in _by_class(np.asarray(label_N)):
        if len(index_M) < shots:
            raise UserError(f"shots={shots}: class {label} has {len(index_M)} pictures; give at most that many")
        chosen.append(draw_rng(seed, "few_shot", label).permutation(index_M)[:shots])
    return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)


def _by_class(label_N: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each class that occurs with the indices of its pictures."""
    order_N = np.argsort(label_N, kind="stable")
    labels, starts = np.unique(label_N[order_N], return_index=True)
    return list(zip(labels.tolist(), np.split(order_N, starts[1:]), strict=True)) if len(labels) else []
