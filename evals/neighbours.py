"""Classifiers without training: weighted k-nearest neighbours, and ridge regression from a few examples of each class.

Shape letters: B queries, S training pictures, E width of summaries, C classes, K neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

#: Temperature of the vote, and numbers of neighbours to choose from on held-out pictures (Wu et al. 2018; DINO, App. F.1).
TEMPERATURE = 0.07
KS = (10, 20, 100, 200)
#: Bound of the similarities that are at hand at once, 1 GiB.
_MAX_SIMILARITIES = 2**28
#: Penalties of the ridge regression, relative to the features' mean variance; chosen on held-out pictures.
PENALTIES = (1e-2, 1e-1, 1.0, 10.0, 100.0)


def knn_votes(
    query_BE: Tensor,
    train_SE: Tensor,
    label_S: Tensor,
    *,
    num_classes: int,
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
    block: int = 1024,
) -> dict[int, Tensor]:
    """Votes of the k nearest training pictures for each class, by k: float32 [B, C].

    Nearness is cosine similarity; a neighbour votes with exp(similarity / temperature). A k beyond the training set takes all
    of it.
    """
    train_SE = F.normalize(train_SE.float(), dim=1)
    most = min(max(ks), len(train_SE))
    votes: dict[int, list[Tensor]] = {k: [] for k in ks}
    block = max(1, min(block, _MAX_SIMILARITIES // len(train_SE)))
    for part_BE in F.normalize(query_BE.float(), dim=1).split(block):
        top = (part_BE @ train_SE.T).topk(most, dim=1)
        # against the nearest, so that exp stays in range
        weight_BK = ((top.values - top.values[:, :1]) / temperature).exp()
        neighbour_BK = label_S[top.indices]
        for k in ks:
            vote_BC = torch.zeros(len(part_BE), num_classes, device=part_BE.device)
            votes[k].append(vote_BC.scatter_add_(1, neighbour_BK[:, :k], weight_BK[:, :k]))
    return {k: torch.cat(parts) for k, parts in votes.items()}


@dataclass(frozen=True)
class Ridge:
    """A linear classifier in closed form.

    Attributes:
        weight_EC: on standardised features.
        mean_E: of the training features.
        scale_E: their deviation.
        bias_C: mean of the targets.
    """

    weight_EC: Tensor
    mean_E: Tensor
    scale_E: Tensor
    bias_C: Tensor

    def __call__(self, x_BE: Tensor) -> Tensor:
        """Scores [B, C]."""
        return ((x_BE.double() - self.mean_E) / self.scale_E) @ self.weight_EC + self.bias_C


def fit_ridge(x_SE: Tensor, label_S: Tensor, *, num_classes: int, penalty: float) -> Ridge:
    """Least squares onto one-hot targets with the penalty `penalty` * S * |weight|^2, on standardised features.

    Solved in the smaller of the two spaces, so that a few examples of many features cost next to nothing.
    """
    x_SE = x_SE.double()
    mean_E = x_SE.mean(0)
    scale_E = x_SE.std(0, correction=0).clamp(min=1e-6)
    x_SE = (x_SE - mean_E) / scale_E
    target_SC = F.one_hot(label_S, num_classes).double()
    bias_C = target_SC.mean(0)
    target_SC = target_SC - bias_C
    count, width = x_SE.shape
    strength = penalty * count
    if count <= width:
        gram_SS = x_SE @ x_SE.T + strength * torch.eye(count, dtype=torch.double, device=x_SE.device)
        weight_EC = x_SE.T @ torch.linalg.solve(gram_SS, target_SC)
    else:
        gram_EE = x_SE.T @ x_SE + strength * torch.eye(width, dtype=torch.double, device=x_SE.device)
        weight_EC = torch.linalg.solve(gram_EE, x_SE.T @ target_SC)
    return Ridge(weight_EC, mean_E, scale_E, bias_C)


def accuracy(score_BC: Tensor, label_B: Tensor) -> float:
    """Percent whose highest score is the right class's."""
    return 100 * float((score_BC.argmax(1) == label_B).double().mean())
