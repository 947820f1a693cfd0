"""FLOPs of a run: what its training cost, for comparisons at equal compute.

Shape letters: B batch, N patches, L text.
"""

from collections.abc import Iterable

import lightning

from pretrain.data.datamodule import global_batch_size
from pretrain.data.stream import Collate
from pretrain.module import PretrainModule
from pretrain.types import ImageTextBatch

#: Samples that the mean caption is taken from.
NUM_SAMPLES = 512


def flops_per_sample(module: PretrainModule, batches: Iterable[ImageTextBatch]) -> float | None:
    """FLOPs of training on one sample: forward and backward (`pretrain.flops`), with captions padded as in `batches`.

    What is drawn (prefixes, masks) counts with its expectation. None where there is no batch.
    """
    total, count = 0.0, 0
    for batch in batches:
        total += module.objective.flops(module.encoder, batch).training
        count += len(batch)
    return total / count if count else None


def training_flops(trainer: lightning.Trainer, module: PretrainModule, *, samples: int) -> float | None:
    """FLOPs of training on `samples` samples, from the first NUM_SAMPLES of the run."""
    data = trainer.datamodule
    collate, stream = Collate(data.train_stream.seed, data.tokenizer.pad_id), data.train_stream
    # what a contrastive step costs depends on all its samples, whichever device they lie on
    size = global_batch_size(trainer, data.batch_size) if module.objective.contrasts else data.batch_size
    count = max(size, min(NUM_SAMPLES, len(stream), samples))
    starts = range(0, count - count % size, size)
    batches = (collate([stream[k] for k in range(start, start + size)]) for start in starts)
    each = flops_per_sample(module, (batch for batch in batches if len(batch)))
    return None if each is None else each * samples
