"""Recall and zero-shot accuracy against torchmetrics, scikit-learn and a plain restatement that counts orders."""

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torchmetrics.functional.retrieval import retrieval_hit_rate

from evals.text.metrics import class_hits, hits_at_k, mean_per_class, recall_at_k


def random_case(seed, *, queries=23, candidates=31):
    rng = np.random.default_rng(seed)
    similarity = rng.normal(size=(queries, candidates)).astype(np.float32)
    relevant = rng.random((queries, candidates)) < 0.1
    relevant[np.arange(queries), rng.integers(0, candidates, queries)] = True
    return similarity, relevant


@pytest.mark.parametrize("seed", range(3))
def test_recall_is_torchmetrics_hit_rate(seed):
    similarity, relevant = random_case(seed)
    recall = recall_at_k(similarity, relevant, (1, 5, 10))
    for k, value in recall.items():
        rates = [
            float(retrieval_hit_rate(torch.from_numpy(row), torch.from_numpy(right), top_k=k))
            for row, right in zip(similarity, relevant, strict=True)
        ]
        assert value == pytest.approx(np.mean(rates), abs=1e-7)


@pytest.mark.parametrize("seed", range(20))
def test_ties_are_the_mean_over_all_orders(seed):
    """Restatement: list every order that sorts by similarity, and count those with a right one among the first k."""
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, 3, (1, 6)).astype(float)  # many ties
    relevant = rng.random((1, 6)) < 0.4
    relevant[0, rng.integers(6)] = True
    orders = [o for o in permutations(range(6)) if (np.diff(similarity[0, list(o)]) <= 0).all()]
    for k, hit in hits_at_k(similarity, relevant, (1, 2, 3, 6, 9)).items():
        assert hit[0] == pytest.approx(np.mean([relevant[0, list(o[:k])].any() for o in orders]))


def test_classification_is_scikit_learns():
    rng = np.random.default_rng(0)
    score, label = rng.normal(size=(200, 7)), rng.integers(0, 6, 200)  # class 6 never occurs
    hits = class_hits(score, label, (1, 5))
    for k in (1, 5):
        assert hits[k].mean() == pytest.approx(top_k_accuracy_score(label, score, k=k, labels=range(7)))
    predicted = score.argmax(1)
    kept = predicted < 6  # scikit-learn warns about predicted classes that never occur
    assert mean_per_class(hits[1][kept], label[kept]) == pytest.approx(
        balanced_accuracy_score(label[kept], predicted[kept])
    )
