"""Pictures with a class each: what every data set of an evaluation is, wherever it lies."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pretrain.data.storage import BadSample, digest

__all__ = ["BadSample", "LabelledSet", "Subset"]


class LabelledSet(ABC):
    """One split of a data set: pictures by index, a class each.

    Attributes:
        name: the data set's, as its config gives it.
        split: "train" or "test": what the split is for; which of the data set's own it is stands in its config.
        classes: names of the classes, by label.
        label_N: int64, a class of each picture.
        synthetic: whether pictures are generated.
    """

    name: str
    split: str
    classes: Sequence[str]
    label_N: np.ndarray
    synthetic: bool = False

    def __len__(self) -> int:
        return len(self.label_N)

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """The picture `index`, RGB, upright. Raises BadSample where it is missing or cannot be decoded."""

    @abstractmethod
    def key(self, index: int) -> str:
        """The picture's name, for faults and for lists of predictions."""

    @abstractmethod
    def pictures_identity(self) -> str:
        """What decides the pictures and their order, labels aside; the same on any machine. Part of the features' key."""

    def identity(self) -> str:
        """What decides pictures, order and labels."""
        labels = digest(self.label_N.astype(np.int64), "\n".join(self.classes).encode())
        return f"{self.pictures_identity()} labels={labels}"


class Subset(LabelledSet):
    """Some pictures of a set, in the order of `index_N`."""

    def __init__(self, whole: LabelledSet, index_N: np.ndarray) -> None:
        self.whole, self.index_N = whole, np.asarray(index_N)
        self.name, self.split, self.classes, self.synthetic = whole.name, whole.split, whole.classes, whole.synthetic
        self.label_N = whole.label_N[self.index_N]

    def load(self, index: int) -> Image.Image:
        return self.whole.load(int(self.index_N[index]))

    def key(self, index: int) -> str:
        return self.whole.key(int(self.index_N[index]))

    def pictures_identity(self) -> str:
        return f"{self.whole.pictures_identity()} subset={digest(self.index_N.astype(np.int64))}"
