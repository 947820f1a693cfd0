"""Metrics of matching pictures and texts: recall among many right answers, zero-shot accuracy, chance.

Ties are broken by expectation: a query scores the share of the orders of equally similar candidates that put a right one among
the first k. So a constant similarity scores exactly chance, however its rows happen to lie.

Shape letters: Q queries, G candidates of the gallery, C classes, B pictures.
"""

from collections.abc import Sequence

import numpy as np

#: Right candidates of each query: a list of indices each, or a bool matrix [Q, G].
Relevant = Sequence[Sequence[int]] | np.ndarray


def relevance_matrix(relevant: Relevant, *, num_candidates: int) -> np.ndarray:
    """The bool matrix [Q, G] of a correspondence list; a bool matrix as it is.

    Raises:
        ValueError: an index outside the gallery, a matrix of another shape or type, or a query without a right candidate.
    """
    if isinstance(relevant, np.ndarray):
        if relevant.dtype != bool or relevant.ndim != 2 or relevant.shape[1] != num_candidates:
            raise ValueError(f"relevant: {relevant.dtype} {relevant.shape} is no bool matrix [Q, {num_candidates}]")
        matrix_QG = relevant
    else:
        matrix_QG = np.zeros((len(relevant), num_candidates), dtype=bool)
        for query, candidates in enumerate(relevant):
            for candidate in candidates:
                if not 0 <= candidate < num_candidates:
                    raise ValueError(f"relevant[{query}]: {candidate} is outside of the {num_candidates} candidates")
                matrix_QG[query, candidate] = True
    if len(without := np.flatnonzero(~matrix_QG.any(1))):
        raise ValueError(f"relevant[{without[0]}] is empty: a query without a right candidate has no recall")
    return matrix_QG


def _share_of_orders(ahead_Q: np.ndarray, wrong_Q: np.ndarray, right_Q: np.ndarray, k: int) -> np.ndarray:
    """Share of the orders in which one of `right` is among the first k, `ahead` wrong ones first, then all ties shuffled."""
    missed_Q = np.ones(len(ahead_Q))
    places_Q = k - ahead_Q  # places left for the tied candidates
    for drawn in range(k):  # none of the first places is a right one: wrong / (wrong + right), then one wrong less, ...
        left_Q = wrong_Q - drawn
        share_Q = np.clip(left_Q, 0, None) / np.maximum(left_Q + right_Q, 1)
        missed_Q = np.where(drawn < places_Q, missed_Q * share_Q, missed_Q)
    return 1.0 - missed_Q


def hits_at_k(similarity_QG: np.ndarray, relevant: Relevant, ks: Sequence[int]) -> dict[int, np.ndarray]:
    """For each k and query: 1 where a right candidate is among the k most similar, 0 where none is, a share under ties.

    Args:
        similarity_QG: any real numbers, higher is more similar; -inf is allowed.
        relevant: right candidates of each query, one or more.
        ks: depths, 1 or more; beyond the gallery all queries hit.

    Returns:
        k -> float64 [Q].

    Raises:
        ValueError: NaN in the similarities, shapes that do not fit, k below 1, or as :func:`relevance_matrix`.
    """
    similarity_QG = np.asarray(similarity_QG)
    if similarity_QG.ndim != 2:
        raise ValueError(f"similarity: shape {similarity_QG.shape} is not [queries, candidates]")
    relevant_QG = relevance_matrix(relevant, num_candidates=similarity_QG.shape[1])
    if len(relevant_QG) != len(similarity_QG):
        raise ValueError(f"relevant has {len(relevant_QG)} queries, similarity {len(similarity_QG)}")
    if np.isnan(similarity_QG).any():
        raise ValueError("similarity holds NaN, which has no rank")
    if min(ks, default=1) < 1:
        raise ValueError(f"ks={list(ks)}: each must be at least 1")
    if not len(similarity_QG):
        return {k: np.zeros(0) for k in ks}
    best_Q1 = np.where(relevant_QG, similarity_QG, -np.inf).max(1, keepdims=True)
    ahead_Q = (similarity_QG > best_Q1).sum(1)  # all of them wrong: none of the right ones is above the best
    tied_QG = similarity_QG == best_Q1
    right_Q = (tied_QG & relevant_QG).sum(1)
    return {k: _share_of_orders(ahead_Q, tied_QG.sum(1) - right_Q, right_Q, k) for k in ks}


def recall_at_k(similarity_QG: np.ndarray, relevant: Relevant, ks: Sequence[int]) -> dict[int, float]:
    """Mean of :func:`hits_at_k` over the queries, 0..1.

    Pictures as queries, captions as candidates: a picture is hit if any of its captions is among the k most similar. Captions as
    queries: hit if the picture (any picture that the caption belongs to) is.
    """
    return {k: float(hit_Q.mean()) for k, hit_Q in hits_at_k(similarity_QG, relevant, ks).items()}


def chance_at_k(relevant: Relevant, ks: Sequence[int], *, num_candidates: int) -> dict[int, float]:
    """Expected recall of a random order: 1 - C(G - r, k) / C(G, k) for a query with r right candidates, averaged."""
    right_Q = relevance_matrix(relevant, num_candidates=num_candidates).sum(1)
    ahead_Q = np.zeros_like(right_Q)
    return {k: float(_share_of_orders(ahead_Q, num_candidates - right_Q, right_Q, k).mean()) for k in ks}


def class_hits(score_BC: np.ndarray, label_B: np.ndarray, ks: Sequence[int]) -> dict[int, np.ndarray]:
    """k -> float64 [B]: whether the class is among the k best scores; a share under ties."""
    return hits_at_k(score_BC, [[int(label)] for label in label_B], ks)


def mean_per_class(hit_B: np.ndarray, label_B: np.ndarray) -> float:
    """Mean over the classes that occur of the mean over their pictures, 0..1."""
    return float(np.mean([hit_B[label_B == label].mean() for label in np.unique(label_B)]))
