"""What a page of features shows, as numbers: principal components as colours, attention as maps, nearest neighbours.

Shape letters: B pictures shown, N patches, R/C rows and columns of the grid of patches (R * C = N), P class and register
tokens, T = P + N, D width, H heads, M pictures of the gallery, E width of the summary, Q queries, K neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional as F

from pretrain.types import UserError

#: A probe's attention: tokens [B, T, D], class and register tokens first, to weights [B, H, T] that add up to 1 over T.
Attention = Callable[[Tensor], Tensor]
#: Percentiles of a component that become 0 and 1.
_LOW, _HIGH = 1.0, 99.0


@dataclass(frozen=True)
class PatchColours:
    """Patches as colours: red, green and blue are the first three principal components.

    Attributes:
        rgb_BRC3: 0..1; 0 on the background.
        variance_3: share of the patches' variance that each component has.
        foreground_BRC: True on patches that were taken for foreground; all True where none was asked for.
    """

    rgb_BRC3: np.ndarray
    variance_3: np.ndarray
    foreground_BRC: np.ndarray


def _components(patches_ND: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Projections on the first `count` components and their shares of the variance, with zeros where there are fewer.

    scikit-learn fixes each component's sign: its largest entry is positive.
    """
    found = min(count, *patches_ND.shape)
    pca = PCA(n_components=found, svd_solver="full")
    projected, shares = np.zeros((len(patches_ND), count)), np.zeros(count)
    if found and np.ptp(patches_ND, axis=0).max() > 0:  # equal patches have no components
        projected[:, :found] = pca.fit_transform(patches_ND)
        shares[:found] = pca.explained_variance_ratio_
    return projected, shares


def _to_unit(values_N: np.ndarray) -> np.ndarray:
    """Between two percentiles to 0..1, cut off outside; a half where all are equal."""
    low, high = np.percentile(values_N, [_LOW, _HIGH])
    return np.clip((values_N - low) / (high - low), 0, 1) if high > low else np.full_like(values_N, 0.5)


def _foreground(first_BRC: np.ndarray) -> np.ndarray:
    """One side of the first component's mean: the one that has the smaller share of the patches along the pictures' edges.

    A component's sign does not say which side the objects are on; that objects stand in the middle more often than at the
    edge does.
    """
    edge_RC = np.ones(first_BRC.shape[1:], bool)
    edge_RC[1:-1, 1:-1] = False
    above = first_BRC > 0
    return above if above[:, edge_RC].mean() <= 0.5 else ~above


def patch_colours(tokens_BND: Tensor, *, grid: tuple[int, int], foreground: bool = False) -> PatchColours:
    """Colours of the patches of several pictures, from the components of all their patches together.

    Equal colours mean similar features, also from picture to picture; the colours themselves mean nothing, and those of
    two calls cannot be compared.

    Args:
        tokens_BND: patch tokens.
        grid: R, C.
        foreground: leave out one side of the first component as background, and find the colours within the other.

    Raises:
        UserError: N is not R * C.
    """
    rows, columns = grid
    batch, num_patches, width = tokens_BND.shape
    if num_patches != rows * columns:
        raise UserError(f"{num_patches} patch tokens do not fill a grid of {rows} x {columns}")
    patches_ND = tokens_BND.detach().double().cpu().numpy().reshape(-1, width)
    kept_N = np.ones(len(patches_ND), bool)
    if foreground:
        first_N1, _ = _components(patches_ND, 1)
        side_N = _foreground(first_N1.reshape(batch, rows, columns)).reshape(-1)
        kept_N = side_N if side_N.any() else kept_N
    projected_N3, variance_3 = _components(patches_ND[kept_N], 3)
    rgb_N3 = np.zeros((len(patches_ND), 3))
    rgb_N3[kept_N] = np.stack([_to_unit(column_N) for column_N in projected_N3.T], axis=1)
    shape = (batch, rows, columns)
    return PatchColours(rgb_N3.reshape(*shape, 3), variance_3, kept_N.reshape(shape))


@dataclass(frozen=True)
class AttentionMaps:
    """Where a probe's query looks.

    Attributes:
        weight_BHRC: weights on the patches, row by row.
        prefix_share_B: weight on class and register tokens, mean over heads; with the patches' it adds up to 1.
    """

    weight_BHRC: np.ndarray
    prefix_share_B: np.ndarray

    @property
    def mean_BRC(self) -> np.ndarray:
        """Mean over heads."""
        return self.weight_BHRC.mean(1)


def attention_maps(attention: Attention, tokens_BTD: Tensor, *, grid: tuple[int, int]) -> AttentionMaps:
    """Run a probe's attention on the tokens of some pictures and lay it out as maps.

    Args:
        attention: of the fitted probe.
        tokens_BTD: class and register tokens, then patch tokens.
        grid: R, C.

    Raises:
        UserError: weights that are not [B, H, T], or fewer tokens than the grid has patches.
    """
    rows, columns = grid
    batch, total, _ = tokens_BTD.shape
    if total < rows * columns:
        raise UserError(f"{total} tokens do not fill a grid of {rows} x {columns}")
    with torch.no_grad():
        weight_BHT = attention(tokens_BTD).float().cpu()
    if weight_BHT.ndim != 3 or (len(weight_BHT), weight_BHT.shape[-1]) != (batch, total):
        shape = tuple(weight_BHT.shape)
        raise UserError(f"the probe's attention has the shape {shape}; it must be [{batch}, heads, {total}]")
    num_prefix = total - rows * columns
    maps = weight_BHT[..., num_prefix:].unflatten(-1, (rows, columns))
    return AttentionMaps(maps.numpy(), weight_BHT[..., :num_prefix].sum(-1).mean(1).numpy())


@dataclass(frozen=True)
class Neighbours:
    """The nearest other pictures of some queries, nearest first.

    Attributes:
        index_QK: rows of the gallery.
        cosine_QK: cosine similarity, -1..1.
    """

    index_QK: np.ndarray
    cosine_QK: np.ndarray


def nearest(summary_ME: Tensor, *, query_Q: np.ndarray, k: int, block: int = 1024) -> Neighbours:
    """The `k` nearest others of gallery pictures `query_Q`, by cosine similarity of their summaries.

    Args:
        summary_ME: summaries of the gallery, not normalised.
        query_Q: rows of it; none is its own neighbour.
        k: how many.
        block: queries that are compared at once.

    Raises:
        UserError: the gallery has no `k` others.
    """
    if not 1 <= k < len(summary_ME):
        raise UserError(f"{k} neighbours cannot be found among {len(summary_ME)} pictures: give at least {k + 1}")
    unit_ME = F.normalize(summary_ME.float(), dim=-1)
    index, cosine = [], []
    for query_b in torch.as_tensor(query_Q).split(block):
        similarity_bM = unit_ME[query_b] @ unit_ME.T
        similarity_bM[torch.arange(len(query_b)), query_b] = -torch.inf
        best = similarity_bM.topk(k, dim=1)
        index.append(best.indices)
        cosine.append(best.values)
    return Neighbours(torch.cat(index).numpy(), torch.cat(cosine).numpy())


@dataclass(frozen=True)
class Agreement:
    """How often neighbours have the query's class, every picture of the gallery being a query once.

    Attributes:
        same: share of the `k` nearest others, mean over pictures.
        chance: the same for others drawn at random.
        k: neighbours of each.
        n: pictures.
    """

    same: float
    chance: float
    k: int
    n: int


def class_agreement(summary_ME: Tensor, label_M: np.ndarray, *, k: int) -> Agreement:
    """Share of same-class neighbours among the `k` nearest, beside chance."""
    label_M = np.asarray(label_M)
    count = len(label_M)
    found = nearest(summary_ME, query_Q=np.arange(count), k=k)
    same = float((label_M[found.index_QK] == label_M[:, None]).mean())
    sizes = np.unique(label_M, return_counts=True)[1]
    return Agreement(same, float((sizes * (sizes - 1)).sum() / (count * (count - 1))), k, count)


def spread_over_classes(label_M: np.ndarray | None, *, num: int, count: int) -> np.ndarray:
    """`num` of `count` pictures: the first of each class in turn, then the second, ...; without classes the first ones."""
    if label_M is None:
        return np.arange(min(num, count))
    label_M = np.asarray(label_M)
    turn_M = np.zeros(count, np.int64)
    for label in np.unique(label_M):
        turn_M[label_M == label] = np.arange((label_M == label).sum())
    return np.lexsort((label_M, turn_M))[:num]
