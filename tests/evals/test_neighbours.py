import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.neighbors import KNeighborsClassifier

from evals.neighbours import accuracy, fit_ridge, knn_votes


def test_votes_by_hand():
    """Training pictures at 0, 90, 180 degrees and one at 0 again, of classes 0, 1, 1, 1; the query at 0 degrees.

    Similarities are 1, 0, -1, 1; with temperature 1 and against the nearest the weights are 1, e^-1, e^-2, 1. The nearest two
    are the first and the last: a vote of 1 for class 0 and 1 for class 1. Of three, class 1 has 1 + e^-1; of all, e^-2 more.
    """
    train = torch.tensor([[2.0, 0], [0, 3], [-1, 0], [5, 0]])
    label = torch.tensor([0, 1, 1, 1])
    votes = knn_votes(torch.tensor([[7.0, 0]]), train, label, num_classes=2, ks=(2, 3, 9), temperature=1.0)
    one, two = np.exp(-1), np.exp(-2)
    assert votes[2].tolist()[0] == pytest.approx([1, 1])
    assert votes[3].tolist()[0] == pytest.approx([1, 1 + one])
    assert votes[9].tolist()[0] == pytest.approx([1, 1 + one + two])


@pytest.mark.parametrize("block", [7, 1024])
def test_knn_equals_sklearn(block):
    rng = np.random.default_rng(0)
    train, query = rng.normal(size=(200, 6)), rng.normal(size=(50, 6))
    label = rng.integers(0, 4, 200)
    votes = knn_votes(
        torch.tensor(query), torch.tensor(train), torch.tensor(label), num_classes=4, ks=(5, 20), block=block
    )
    for k, vote in votes.items():
        reference = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
        )
        probability = reference.fit(train, label).predict_proba(query)
        assert torch.allclose(vote / vote.sum(1, keepdim=True), torch.tensor(probability).float(), atol=1e-4)


@pytest.mark.parametrize("count", [8, 40], ids=["fewer pictures than features", "more"])
def test_ridge_equals_sklearn(count):
    rng = np.random.default_rng(1)
    x, label = rng.normal(size=(count, 12)) * 3 + 1, rng.integers(0, 3, count)
    ours = fit_ridge(torch.tensor(x), torch.tensor(label), num_classes=3, penalty=0.3)
    standard = (x - x.mean(0)) / x.std(0)
    reference = SklearnRidge(alpha=0.3 * count).fit(standard, np.eye(3)[label])
    assert np.allclose(ours(torch.tensor(x)), reference.predict(standard), atol=1e-8)


def test_ridge_with_a_constant_feature():
    x = torch.tensor([[1.0, 5], [2, 5], [-1, 5], [-2, 5]])
    scores = fit_ridge(x, torch.tensor([1, 1, 0, 0]), num_classes=2, penalty=0.1)(x)
    assert torch.isfinite(scores).all()
    assert accuracy(scores, torch.tensor([1, 1, 0, 0])) == 100
