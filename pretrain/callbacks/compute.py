"""FLOPs of a run: what its training cost, for comparisons at equal compute.

Shape letters: B batch, N patches, L text.
"""

from collections.abc import Iterable

import lightning

from pretrain.data.stream import Collate
from pretrain.flops import model_flops, model_size
from pretrain.module import PretrainModule
from pretrain.objectives.aimv2 import AIMv2Objective
from pretrain.types import ImageTextBatch

#: Samples that the mean caption is taken from.
NUM_SAMPLES = 512


def flops_per_sample(module: PretrainModule, batches: Iterable[ImageTextBatch]) -> float | None:
    """FLOPs of training on one sample: forward and backward (`pretrain.flops`), with captions padded as in `batches`.

    Predicted patches are the expected ones of the prefix's distribution. None for an objective without a decoder, or where
    there is no batch.
    """
    objective = module.objective
    if not isinstance(objective, AIMv2Objective):
        return None
    size = model_size(module.encoder, objective.decoder, pixel_decoder=objective.pixel_decoder)
    low, high = objective.config.prefix.bounds(objective.num_patches)
    total, count = 0.0, 0
    for batch in batches:
        total += model_flops(
            size,
            text_len=batch.text_BL.shape[1],
            valid_tokens=float(batch.text_valid_BL.sum()),
            predicted_patches=len(batch) * (objective.num_patches - (low + high) / 2),
            samples=len(batch),
        ).training
        count += len(batch)
    return total / count if count else None


def training_flops(trainer: lightning.Trainer, module: PretrainModule, *, samples: int) -> float | None:
    """FLOPs of training on `samples` samples, from the first NUM_SAMPLES of the run."""
    data = trainer.datamodule
    collate, stream = Collate(data.train_stream.seed, data.tokenizer.pad_id), data.train_stream
    count = min(NUM_SAMPLES, len(stream), samples)
    starts = range(0, count - count % data.batch_size, data.batch_size)
    batches = (collate([stream[k] for k in range(start, start + data.batch_size)]) for start in starts)
    each = flops_per_sample(module, (batch for batch in batches if len(batch)))
    return None if each is None else each * samples
