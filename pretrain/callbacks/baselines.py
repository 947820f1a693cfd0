"""What a model that looks at nothing would score: the unigram and the mean-patch baselines.

Shape letters: N patches, P patch pixels, V vocabulary.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pretrain.data.stream import Collate, SampleStream
from pretrain.objectives.losses import normalise_patches, patchify
from pretrain.types import ImageTextBatch


def unigram_log_probability(captions: Iterable[list[int]], *, vocab_size: int) -> Tensor:
    """log P(token) [V] from token counts, EOS among them, with add-one smoothing so that unseen tokens stay finite."""
    counts_V = torch.ones(vocab_size, dtype=torch.double)
    for ids in captions:
        counts_V += torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=vocab_size)
    return (counts_V / counts_V.sum()).log()


def unigram_ce(log_probability_V: Tensor, captions: Iterable[list[int]]) -> float | None:
    """Mean negative log probability per token; None where there is no token."""
    ids = [token for caption in captions for token in caption]
    return float(-log_probability_V[ids].mean()) if ids else None


def mean_patch_mse(mean_P: Tensor, patch_MNP: Tensor, *, prefix_len: int) -> float:
    """Error of predicting `mean_P` for every patch behind the prefix."""
    return float((patch_MNP[:, prefix_len:] - mean_P).square().mean())


class Baselines(Callback):
    """Computes both baselines before training, on the training stream's first samples and the validation set.

    Args:
        num_samples: training samples that the unigram and the mean patch are taken from.
    """

    def __init__(self, num_samples: int = 512) -> None:
        self.num_samples = num_samples
        self.values: dict[str, float] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero or self.values:
            return
        data, objective = trainer.datamodule, pl_module.objective
        train = list(self._batches(data, data.train_stream, self.num_samples))
        if getattr(objective, "predicts_text", False):
            log_probability_V = unigram_log_probability(_captions(train), vocab_size=data.tokenizer.vocab_size)
            value = unigram_ce(log_probability_V, _captions(self._batches(data, data.val_stream, None)))
            if value is not None:
                self.values["text_ce"] = value
        if getattr(objective, "predicts_pixels", False):
            patches = (normalise_patches(patchify(b.image_BCHW, patch_size=objective.patch_size)) for b in train)
            mean_P = torch.stack([part.flatten(0, 1).sum(0) for part in patches]).sum(0)
            mean_P /= sum(map(len, train)) * objective.num_patches
            sums = dict.fromkeys(objective.val_prefixes(), 0.0)
            count = 0
            for batch in self._batches(data, data.val_stream, None):
                patch_BNP = normalise_patches(patchify(batch.image_BCHW, patch_size=objective.patch_size))
                count += len(batch)
                for name, prefix_len in objective.val_prefixes().items():
                    sums[name] += len(batch) * mean_patch_mse(mean_P, patch_BNP, prefix_len=prefix_len)
            self.values |= {name: total / count for name, total in sums.items() if count}
        for logger in trainer.loggers:
            logger.log_metrics({f"baseline/{name}": value for name, value in self.values.items()}, step=0)

    @staticmethod
    def _batches(data: Any, stream: SampleStream, limit: int | None) -> Iterator[ImageTextBatch]:
        collate = Collate(stream.seed, data.tokenizer.pad_id)
        total = min(limit or len(stream), len(stream))
        for start in range(0, total, 64):
            batch = collate([stream[position] for position in range(start, min(start + 64, total))])
            if len(batch):
                yield data.normalise(batch)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = state_dict["values"]


def _captions(batches: Iterable[ImageTextBatch]) -> list[list[int]]:
    return [
        ids[valid].tolist() for batch in batches for ids, valid in zip(batch.text_BL, batch.text_valid_BL, strict=True)
    ]
