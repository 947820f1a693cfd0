"""What the light head is fed with: rows of cached patch tokens, the tokens of one sentence each, and the box that it means.

Shape letters: B sentences, N patches, V width of the encoder's tokens, L text tokens, E width of the text's, R objects (rows), X
expressions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import box_convert

from evals.features import CachedFeatures
from evals.grounding.chance import relative_boxes
from evals.grounding.ref_set import RefSet
from evals.grounding.text_features import TextFeatures
from evals.probe.feeding import EpochBatches
from pretrain.rng import draw_integer


@dataclass
class LightBatch:
    """Sentences with their pictures' tokens.

    Attributes:
        tokens_BNV: float32, patches row by row.
        text_BLE: float32, 0 where there is no token.
        valid_BL: bool, where there is one.
        box_B4: float32, centre x, centre y, width, height in shares of the picture's sides.
        number_B: int64, the expressions' numbers in their split.
    """

    tokens_BNV: Tensor
    text_BLE: Tensor
    valid_BL: Tensor
    box_B4: Tensor
    number_B: Tensor

    def __len__(self) -> int:
        return len(self.number_B)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(Tensor.pin_memory)


class LightSplit:
    """One split with its features.

    Args:
        dataset: expressions and pictures.
        features: of `dataset.pictures`, class and register tokens first.
        text: of at least its sentences.
        num_patches: N; what stands in front of the last N tokens is not used.

    Attributes:
        usable_X: int64, expressions whose picture could be read.
    """

    def __init__(self, dataset: RefSet, features: CachedFeatures, text: TextFeatures, *, num_patches: int) -> None:
        self.dataset, self.features, self.text, self.num_patches = dataset, features, text, num_patches
        self.picture_X = np.array([dataset.pictures.index(e.image_id) for e in dataset.expressions], dtype=np.int64)
        self.usable_X = np.flatnonzero(np.isin(self.picture_X, features.usable_N))
        self.box_X4 = box_convert(torch.from_numpy(relative_boxes(dataset)).float(), "xyxy", "cxcywh")

    def objects(self) -> list[np.ndarray]:
        """For each object that is referred to, the numbers of its usable sentences."""
        found: dict[int, list[int]] = {}
        for number in self.usable_X.tolist():
            found.setdefault(self.dataset.expressions[number].ref_id, []).append(number)
        return [np.array(numbers) for numbers in found.values()]

    def batch(
        self, number_B: np.ndarray, *, picture_from_B: np.ndarray | None = None, text_from_B: np.ndarray | None = None
    ) -> LightBatch:
        """Expressions by number; for controls, with the pictures or the sentences of others."""
        pictures_B, texts_B = (number_B if other is None else other for other in (picture_from_B, text_from_B))
        tokens_BTV = self.features.tokens(self.picture_X[pictures_B])
        sentences = [self.dataset.expressions[number].text for number in texts_B.tolist()]
        text_BLE, valid_BL = self.text.batch(sentences)
        numbers = torch.from_numpy(np.asarray(number_B))
        return LightBatch(tokens_BTV[:, -self.num_patches :], text_BLE, valid_BL, self.box_X4[numbers], numbers)


class LightRows(Dataset[LightBatch]):
    """Batches of (epoch, row): a row is an object, and each epoch draws one of its sentences.

    Args:
        split: with its features.
        rows: for each row the numbers of its sentences.
        seed: of the draws, which are functions of (seed, epoch, row).
    """

    def __init__(self, split: LightSplit, rows: Sequence[np.ndarray], *, seed: int) -> None:
        self.split, self.rows, self.seed = split, rows, seed

    def _draw(self, epoch: int, row: int) -> int:
        numbers, position = self.rows[row], epoch * len(self.rows) + row
        return int(numbers[draw_integer(self.seed, "grounding/sentence", position, 0, len(numbers) - 1)])

    def __getitem__(self, batch: Sequence[tuple[int, int]]) -> LightBatch:
        return self.split.batch(np.array([self._draw(epoch, row) for epoch, row in batch]))


def light_loader(
    split: LightSplit, rows: Sequence[np.ndarray], *, batch_size: int, seed: int | None = None
) -> DataLoader[LightBatch]:
    """A loader of whole batches of `rows`: shuffled anew in each epoch where `seed` is given, else in order."""
    return DataLoader(
        LightRows(split, rows, seed=seed or 0),
        sampler=EpochBatches(np.arange(len(rows)), batch_size=batch_size, seed=seed),
        batch_size=None,
        pin_memory=torch.cuda.is_available(),
    )
