"""What a probe is fed with: rows of cached features, or augmented pictures; the order is a function of (seed, epoch).

Shape letters: B batch, S pictures of the set.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from evals.data.augment import AugmentTransform
from evals.data.labelled import BadSample, LabelledSet
from evals.data.loading import one_thread
from evals.features import CachedFeatures
from evals.probe.scored import ProbeBatch
from pretrain.data.transforms import Transform
from pretrain.rng import draw_rng
from pretrain.types import Fault


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), shuffled anew in every epoch; without `seed` in order, as evaluation wants it.

    Args:
        index_S: the pictures to go through.
        batch_size: B; in a shuffled epoch the rest that fills no batch is left out, other pictures each time.
        seed: of the order.
    """

    def __init__(self, index_S: np.ndarray, *, batch_size: int, seed: int | None = None) -> None:
        self.index_S, self.batch_size, self.seed, self.epoch = np.asarray(index_S), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning in front of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        total, size = len(self.index_S), self.batch_size
        return max(1, total // size) if self.seed is not None else -(-total // size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order_S = self.index_S
        if self.seed is not None:
            order_S = order_S[draw_rng(self.seed, "probe/order", self.epoch).permutation(len(order_S))]
        for number in range(len(self)):
            part = order_S[number * self.batch_size : (number + 1) * self.batch_size]
            yield [(self.epoch, int(index)) for index in part]


class CachedRows(Dataset[ProbeBatch]):
    """Batches of cached features; `summaries` reads the one vector a picture instead of its tokens."""

    def __init__(self, features: CachedFeatures, *, summaries: bool) -> None:
        self.features, self.summaries = features, summaries

    def __getitem__(self, batch: Sequence[tuple[int, int]]) -> ProbeBatch:
        index_B = np.array([index for _, index in batch])
        rows = self.features.summaries(index_B) if self.summaries else self.features.tokens(index_B)
        label_B = torch.from_numpy(self.features.label_S[index_B]).long()
        return ProbeBatch(rows, None, label_B, torch.from_numpy(index_B))


class Pictures(Dataset[ProbeBatch]):
    """Batches of pictures, read anew each time; a batch goes without its unreadable ones, and names them.

    Args:
        dataset: the pictures.
        transform: with an AugmentTransform each (epoch, picture) has its own draws.
    """

    def __init__(self, dataset: LabelledSet, transform: AugmentTransform | Transform) -> None:
        self.dataset, self.transform = dataset, transform
        self.label_S = np.asarray(dataset.label_N)

    def _picture(self, epoch: int, index: int) -> torch.Tensor | Fault:
        try:
            image = self.dataset.load(index)
        except BadSample as bad:
            return bad.fault
        if isinstance(self.transform, AugmentTransform):
            return self.transform(image, epoch=epoch, index=index)
        return self.transform(image)

    def __getitem__(self, batch: Sequence[tuple[int, int]]) -> ProbeBatch:
        pictures = [(index, self._picture(epoch, index)) for epoch, index in batch]
        good = [(index, picture) for index, picture in pictures if not isinstance(picture, Fault)]
        index_B = np.array([index for index, _ in good], dtype=np.int64)
        image_BCHW = torch.stack([picture for _, picture in good]) if good else None
        label_B = torch.from_numpy(self.label_S[index_B]).long()
        faults = [picture for _, picture in pictures if isinstance(picture, Fault)]
        return ProbeBatch(None, image_BCHW, label_B, torch.from_numpy(index_B), faults)


def batch_loader(
    rows: Dataset[ProbeBatch], index_S: np.ndarray, *, batch_size: int, seed: int | None = None, num_workers: int = 0
) -> DataLoader[ProbeBatch]:
    """A loader of whole batches: shuffled where `seed` is given."""
    return DataLoader(
        rows,
        sampler=EpochBatches(index_S, batch_size=batch_size, seed=seed),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=one_thread,
        persistent_workers=False,  # workers learn of a new epoch through the sampler's items
        pin_memory=torch.cuda.is_available(),
    )
