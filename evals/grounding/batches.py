"""What Grounding DINO is fed with: pictures on a canvas, each with one sentence and the box that it means.

Shape letters: B sentences of the batch (each with its own picture), C channels, S side of the canvas, X expressions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evals.data.labelled import BadSample
from evals.data.loading import one_thread
from evals.detection.canvas import CanvasTransform
from evals.detection.feeding import DetectionBatch
from evals.detection.samples import Objects, Sample
from evals.grounding.ref_set import RefSet
from evals.probe.feeding import EpochBatches
from pretrain.types import Fault


@dataclass(frozen=True)
class ExpressionBatch:
    """Sentences with their pictures; a picture stands in a batch as often as sentences about it do.

    Attributes:
        samples: B of them; `objects` holds the one box that the sentence means, in pixels of the canvas ([1, 4], label 0),
            or none ([0, 4]) where it is too small for the canvas. Predictions do not read it.
        texts: B sentences as the data set has them.
        sent_ids: B, of the sentences.
        faults: what could not be read, and is not in the batch.
    """

    samples: list[Sample]
    texts: list[str]
    sent_ids: list[int]
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert len(self.samples) == len(self.texts) == len(self.sent_ids)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def image_BCSS(self) -> Tensor:
        """uint8 [B, 3, S, S] RGB, 0 outside of `content_hw`; the canvases of a batch have one size."""
        return torch.stack([sample.image_CSS for sample in self.samples])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return replace(self, samples=DetectionBatch(self.samples).to(device, non_blocking=non_blocking).samples)

    def pin_memory(self) -> Self:
        return replace(self, samples=DetectionBatch(self.samples).pin_memory().samples)

    def __reduce__(self) -> tuple[Callable[..., "ExpressionBatch"], tuple[Any, ...]]:
        """Between processes the samples travel as a DetectionBatch's do."""
        return _unpack, (DetectionBatch(self.samples), self.texts, self.sent_ids, self.faults)


def _unpack(batch: DetectionBatch, texts: list[str], sent_ids: list[int], faults: list[Fault]) -> ExpressionBatch:
    return ExpressionBatch(batch.samples, texts, sent_ids, faults)


class ExpressionSamples(Dataset[ExpressionBatch]):
    """Batches of (epoch, number of the expression), pictures read anew each time; unreadable ones are left out and named.

    Args:
        dataset: expressions and pictures.
        transform: onto the canvas. Without jitter and flip: "left" and "right" must stay what they are ([refcoco] of
            evals.grounding.dino_config flips none either, but crops).
    """

    def __init__(self, dataset: RefSet, transform: CanvasTransform) -> None:
        assert not transform.flip, "a mirrored picture makes sentences wrong"
        self.dataset, self.transform = dataset, transform

    def _sample(self, epoch: int, number: int) -> Sample | Fault:
        expression = self.dataset.expressions[number]
        try:
            image = self.dataset.load(expression.image_id)
        except BadSample as bad:
            return bad.fault
        box_14 = torch.tensor([expression.box], dtype=torch.float32)
        objects = Objects(box_14, torch.zeros(1, dtype=torch.int64), None, box_14[:0])
        return self.transform(image, objects, image_id=expression.image_id, epoch=epoch, index=number)

    def __getitem__(self, batch: Sequence[tuple[int, int]]) -> ExpressionBatch:
        found = [(self.dataset.expressions[number], self._sample(epoch, number)) for epoch, number in batch]
        good = [(expression, sample) for expression, sample in found if isinstance(sample, Sample)]
        return ExpressionBatch(
            [sample for _, sample in good],
            [expression.text for expression, _ in good],
            [expression.sent_id for expression, _ in good],
            [sample for _, sample in found if isinstance(sample, Fault)],
        )


def expression_loader(
    dataset: RefSet,
    number_X: np.ndarray | Sequence[int],
    transform: CanvasTransform,
    *,
    batch_size: int,
    seed: int | None = None,
    num_workers: int = 0,
) -> DataLoader[ExpressionBatch]:
    """A loader of whole batches of sentences.

    Args:
        dataset: expressions and pictures.
        number_X: of the expressions to go through: in an epoch each once, as in mmdet.
        transform: puts pictures on the canvas.
        batch_size: B; a shuffled epoch leaves out the rest that fills no batch.
        seed: of the order, another one in every epoch; None keeps that of `number_X`.
        num_workers: processes that read, each with one thread.
    """
    return DataLoader(
        ExpressionSamples(dataset, transform),
        sampler=EpochBatches(np.asarray(number_X), batch_size=batch_size, seed=seed),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=one_thread,
        persistent_workers=False,  # workers learn of a new epoch through the sampler's items
        pin_memory=torch.cuda.is_available(),
    )
