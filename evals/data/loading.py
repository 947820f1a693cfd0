"""Batches of a labelled set, in a given order; pictures that cannot be read are left out, counted and bounded.

Shape letters: B batch, C channels, H/W pixels, N pictures.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from evals.data.augment import AugmentTransform
from evals.data.labelled import BadSample, LabelledSet
from evals.transforms import ImageTransform
from pretrain.types import Fault, UserError

#: Largest share of unreadable pictures; the share is taken of at least so many.
MAX_FAULT_SHARE, MIN_COUNTED = 0.05, 20


@dataclass
class SetBatch:
    """Pictures that could be read.

    Attributes:
        image_BCHW: uint8.
        index_B: int64, their numbers in the set.
        label_B: int64, their classes.
        faults: the pictures of this batch that could not be read, with their numbers in the set.
    """

    image_BCHW: Tensor
    index_B: Tensor
    label_B: Tensor
    faults: list[tuple[int, Fault]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.index_B)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self,
            image_BCHW=function(self.image_BCHW),
            index_B=function(self.index_B),
            label_B=function(self.label_B),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(Tensor.pin_memory)


@dataclass(frozen=True)
class _Item:
    index: int
    label: int
    image_CHW: Tensor | None
    fault: Fault | None = None


class TransformedSet(Dataset):
    """Item `index`: the set's picture through the transform, or what is wrong with it.

    Args:
        dataset: the set.
        transform: to uint8 [3, H, W]; one that draws is told the epoch and the picture's number in the set.
        epoch: of the draws.
    """

    def __init__(
        self, dataset: LabelledSet, transform: ImageTransform | AugmentTransform, *, epoch: int | None = None
    ) -> None:
        if isinstance(transform, AugmentTransform) and epoch is None:
            raise ValueError("an AugmentTransform needs the epoch")
        self.dataset, self.transform, self.epoch = dataset, transform, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> _Item:
        label = int(self.dataset.label_N[index])
        try:
            image = self.dataset.load(index)
        except BadSample as bad:
            return _Item(index, label, None, bad.fault)
        if isinstance(self.transform, AugmentTransform):
            return _Item(index, label, self.transform(image, epoch=self.epoch, index=index))
        return _Item(index, label, self.transform(image))


def collate(items: Sequence[_Item]) -> SetBatch:
    """Readable pictures as one batch, in order; it may be empty. The rest are its faults."""
    kept = [item for item in items if item.image_CHW is not None]
    # torch's own stacks a worker's pictures right into shared memory: no copy on the way to the training process
    image_BCHW = (
        default_collate([item.image_CHW for item in kept]) if kept else torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
    )
    return SetBatch(
        image_BCHW=image_BCHW,
        index_B=torch.tensor([item.index for item in kept], dtype=torch.long),
        label_B=torch.tensor([item.label for item in kept], dtype=torch.long),
        faults=[(item.index, item.fault) for item in items if item.fault is not None],
    )


class SetLoader:
    """Batches in the order of `index_N`, once; see :func:`set_loader`.

    Attributes:
        faults: the pictures that could not be read, with their numbers in the set, as far as the loader has come.
    """

    def __init__(self, loader: DataLoader, *, dataset: LabelledSet, max_fault_share: float) -> None:
        self._loader, self._dataset, self._max_fault_share = loader, dataset, max_fault_share
        self.faults: list[tuple[int, Fault]] = []

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[SetBatch]:
        self.faults = []
        bound = self._max_fault_share * max(MIN_COUNTED, len(self._dataset))
        for batch in self._loader:
            self.faults += batch.faults
            if len(self.faults) > bound:
                fault, name = self.faults[0][1], f"{self._dataset.name} {self._dataset.split}"
                raise UserError(
                    f"{name}: {len(self.faults):,} of {len(self._dataset):,} pictures cannot be read, more than "
                    f"{100 * self._max_fault_share:g}%; the first is {fault.key} ({fault.kind}: {fault.detail})"
                )
            yield batch


def set_loader(
    dataset: LabelledSet,
    transform: ImageTransform | AugmentTransform,
    *,
    batch_size: int,
    index_N: np.ndarray | Sequence[int] | None = None,
    num_workers: int = 0,
    epoch: int | None = None,
    pin_memory: bool = False,
    drop_last: bool = False,
    max_fault_share: float = MAX_FAULT_SHARE,
) -> SetLoader:
    """Batches of pictures in a given order; nothing replaces an unreadable one, so that its batch is smaller.

    Args:
        dataset: the set.
        transform: to uint8 [3, H, W].
        batch_size: pictures of a batch.
        index_N: which, in which order; all of them in order where None.
        num_workers: processes, each with one thread; 0 reads in this one.
        epoch: what an AugmentTransform's draws depend on beside its seed and the picture's number.
        pin_memory: for a faster way to a GPU.
        drop_last: leave out a last batch that is not full.
        max_fault_share: unreadable pictures over those of the set (over 20 where it has fewer) that are too many.

    Raises:
        UserError: from the iteration, where more pictures cannot be read.
    """
    order = list(range(len(dataset))) if index_N is None else np.asarray(index_N).tolist()
    loader = DataLoader(
        TransformedSet(dataset, transform, epoch=epoch),
        batch_size=batch_size,
        sampler=order,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        drop_last=drop_last,
        worker_init_fn=one_thread,
        prefetch_factor=4 if num_workers else None,
    )
    return SetLoader(loader, dataset=dataset, max_fault_share=max_fault_share)


def one_thread(worker: int) -> None:
    """A loader's worker shares the machine with the training process and with the other workers."""
    torch.set_num_threads(1)
