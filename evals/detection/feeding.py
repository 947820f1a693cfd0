"""What detectors are fed with: batches of samples, their order a function of (seed, epoch), and a bound on what is unreadable.

Shape letters: B batch, C channels, S side of the canvas.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evals.data.labelled import BadSample
from evals.data.loading import MAX_FAULT_SHARE, MIN_COUNTED, one_thread
from evals.detection.canvas import CanvasTransform
from evals.detection.coco_set import CocoSet
from evals.detection.samples import Objects, Sample
from evals.probe.feeding import EpochBatches
from pretrain.types import Fault, UserError

#: While a part is gone through, the share of unreadable pictures is taken of at least so many.
_MIN_SEEN = 1000


@dataclass(frozen=True)
class DetectionBatch:
    """Samples of one canvas size.

    Attributes:
        samples: pictures that could be read, in order; there may be none.
        faults: pictures of this batch that could not.
    """

    samples: list[Sample]
    faults: list[Fault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def image_BCSS(self) -> Tensor:
        """uint8, the canvases as one tensor; a batch without samples has none."""
        return torch.stack([sample.image_CSS for sample in self.samples])

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, samples=[_map_sample(sample, function) for sample in self.samples])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(Tensor.pin_memory)

    def __reduce__(self) -> tuple[Callable[..., "DetectionBatch"], tuple[Any, ...]]:
        """Between processes, five tensors a batch travel, not five a sample: each takes an open file."""
        return _unpack, (*_pack(self.samples), self.faults)


def _map_sample(sample: Sample, function: Callable[[Tensor], Tensor]) -> Sample:
    objects = sample.objects
    moved = Objects(
        box_N4=function(objects.box_N4),
        label_N=function(objects.label_N),
        mask_NHW=objects.mask_NHW,  # mmdet takes masks as arrays: on the way to a GPU they would turn round
        crowd_M4=function(objects.crowd_M4),
    )
    return replace(sample, image_CSS=function(sample.image_CSS), objects=moved)


def _pack(samples: Sequence[Sample]) -> tuple[list[Tensor | None], list[tuple[Any, ...]]]:
    """Each field of all samples in one tensor, and what is no tensor: number of objects, of crowds, id, sizes."""
    if not samples:
        return [], []
    objects = [sample.objects for sample in samples]
    has_masks = objects[0].mask_NHW is not None
    tensors = [
        torch.stack([sample.image_CSS for sample in samples]),
        torch.cat([o.box_N4 for o in objects]),
        torch.cat([o.label_N for o in objects]),
        torch.cat([o.mask_NHW for o in objects]) if has_masks else None,
        torch.cat([o.crowd_M4 for o in objects]),
    ]
    rest = [(len(s.objects), len(s.objects.crowd_M4), s.image_id, s.content_hw, s.original_hw) for s in samples]
    return tensors, rest


def _unpack(tensors: Sequence[Tensor | None], rest: Sequence[tuple[Any, ...]], faults: list[Fault]) -> DetectionBatch:
    """The batch that :func:`_pack` took apart; its tensors share what was packed."""
    if not rest:
        return DetectionBatch([], faults)
    image_BCSS, box, label, mask, crowd = tensors
    object_ends = pairwise(accumulate((entry[0] for entry in rest), initial=0))
    crowd_ends = pairwise(accumulate((entry[1] for entry in rest), initial=0))
    samples = []
    for image_CSS, (_, _, image_id, content_hw, original_hw), (a, b), (c, d) in zip(
        image_BCSS, rest, object_ends, crowd_ends, strict=True
    ):
        objects = Objects(box[a:b], label[a:b], None if mask is None else mask[a:b], crowd[c:d])
        samples.append(Sample(image_CSS, objects, image_id, content_hw, original_hw))
    return DetectionBatch(samples, faults)


class DetectionSamples(Dataset[DetectionBatch]):
    """Batches of (epoch, index), read anew each time; a batch goes without its unreadable pictures, and names them."""

    def __init__(self, dataset: CocoSet, transform: CanvasTransform) -> None:
        self.dataset, self.transform = dataset, transform
        self.image_ids = dataset.image_ids

    def _sample(self, epoch: int, index: int) -> Sample | Fault:
        try:
            image, objects = self.dataset.load(index)
        except BadSample as bad:
            return bad.fault
        return self.transform(image, objects, image_id=int(self.image_ids[index]), epoch=epoch, index=index)

    def __getitem__(self, batch: Sequence[tuple[int, int]]) -> DetectionBatch:
        found = [self._sample(epoch, index) for epoch, index in batch]
        return DetectionBatch(
            [sample for sample in found if isinstance(sample, Sample)],
            [fault for fault in found if isinstance(fault, Fault)],
        )


def detection_loader(
    dataset: CocoSet,
    index_S: np.ndarray | Sequence[int],
    transform: CanvasTransform,
    *,
    batch_size: int,
    seed: int | None = None,
    num_workers: int = 0,
) -> DataLoader[DetectionBatch]:
    """A loader of batches of samples.

    Args:
        dataset: the pictures.
        index_S: numbers of those to go through.
        transform: puts them on the canvas.
        batch_size: B; a shuffled epoch leaves out the rest that fills no batch.
        seed: of the order, which is another one in every epoch (Lightning calls `sampler.set_epoch`); None keeps that of
            `index_S`, as evaluation wants it.
        num_workers: processes that read, each with one thread; 0 reads in this one. No draw depends on them.
    """
    return DataLoader(
        DetectionSamples(dataset, transform),
        sampler=EpochBatches(np.asarray(index_S), batch_size=batch_size, seed=seed),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=one_thread,
        persistent_workers=False,  # workers learn of a new epoch through the sampler's items
        pin_memory=torch.cuda.is_available(),
    )


class FaultCount:
    """Counts what cannot be read in a pass through a part of the data, and stops where it is too much (5%).

    Every pass is bounded for itself: a bad test set must not hide behind many epochs of good training pictures.

    Args:
        name: of what is gone through, for the error, e.g. "coco2017 train".

    Attributes:
        num_read: pictures of this pass that were read.
        faults: those of this pass that were not.
        unreadable: names of all that could not be read, earlier passes included.
    """

    def __init__(self, name: str) -> None:
        self.name, self.num_read = name, 0
        self.faults: list[Fault] = []
        self.unreadable: set[str] = set()

    def begin(self) -> None:
        """A new pass."""
        self.num_read, self.faults = 0, []

    def usable(self, batch: DetectionBatch) -> bool:
        """Count a batch; False where nothing is left of it.

        Raises:
            UserError: more than 5% of what was seen, or of 1,000 pictures where it is less, could not be read.
        """
        self.num_read += len(batch)
        self.faults += batch.faults
        self.unreadable |= {fault.key for fault in batch.faults}
        self._check(at_least=_MIN_SEEN)
        return len(batch) > 0

    def end(self) -> None:
        """The pass is over. Raises UserError where more than 5% of its pictures, or of 20, could not be read."""
        self._check(at_least=MIN_COUNTED)

    def _check(self, *, at_least: int) -> None:
        total = self.num_read + len(self.faults)
        if len(self.faults) > MAX_FAULT_SHARE * max(total, at_least):
            last = self.faults[-1]
            raise UserError(
                f"{self.name}: {len(self.faults):,} of {total:,} pictures could not be read, more than "
                f"{MAX_FAULT_SHARE:.0%}; the last: {last.key} ({last.kind}: {last.detail})"
            )
