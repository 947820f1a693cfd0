"""The pictures that features are looked at on: a data set's or a folder's, and what an encoder makes of many of them.

Shape letters: M pictures of the gallery, E width of the summary, N pictures of the album.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor

from evals.data.config import build_set, load_dataset_config
from evals.data.labelled import BadSample, LabelledSet
from evals.encoder import TokenEncoder
from pretrain.data.sources import FolderSource
from pretrain.types import Fault, UserError

DEFAULT_DATASET = "scenes_shape"
_BATCH = 32


@dataclass(frozen=True)
class Album:
    """Pictures by index, with or without classes: what a data set and a folder of pictures have in common.

    Attributes:
        name: of the data set or folder.
        about: which part of it, and whether it is synthetic.
        count: how many pictures there are.
        load: picture and name of an index; raises BadSample.
        label_N: a class of each; None without classes.
        classes: their names.
    """

    name: str
    about: str
    count: int
    load: Callable[[int], tuple[Image.Image, str]]
    label_N: np.ndarray | None = None
    classes: Sequence[str] = ()

    @classmethod
    def of_set(cls, dataset: LabelledSet) -> "Album":
        kind = "synthetic pictures" if dataset.synthetic else "not synthetic"
        return cls(
            dataset.name,
            f"{dataset.split} split, {kind}",
            len(dataset),
            lambda index: (dataset.load(index), dataset.key(index)),
            dataset.label_N,
            dataset.classes,
        )

    @classmethod
    def of_folder(cls, path: str | Path) -> "Album":
        source = FolderSource(path)

        def load(index: int) -> tuple[Image.Image, str]:
            sample = source.load(index)
            return sample.image, sample.key

        return cls(Path(path).resolve().name, "a folder of pictures without classes", len(source), load)


@dataclass(frozen=True)
class Gallery:
    """Pictures of an album that an encoder has summed up.

    Attributes:
        index_M: their indices in the album.
        keys: their names.
        summary_ME: their summaries.
        faults: pictures that could not be read, and are not among them.
    """

    index_M: np.ndarray
    keys: list[str]
    summary_ME: Tensor
    faults: list[Fault]


def open_album(dataset: str | None, data: str | None, *, img_size: int) -> Album:
    """A data set's test split, or the folder of pictures where only a path is given.

    Args:
        dataset: a data set's name or file; `DEFAULT_DATASET` where neither is given.
        data: where the data set lies, or the folder.
        img_size: side that generated pictures are drawn at.

    Raises:
        UserError: no such data set, or nothing there.
    """
    if dataset is None and data is not None:
        return Album.of_folder(data)
    # any number of pictures will do to look at
    config = load_dataset_config(dataset or DEFAULT_DATASET, path=data, allow_sizes=True)
    return Album.of_set(build_set(config, "test", img_size=img_size))


def device_of(encoder: TokenEncoder) -> torch.device:
    """Where its weights are."""
    return next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))


@torch.no_grad()
def encode_gallery(
    encoder: TokenEncoder, album: Album, *, index_M: np.ndarray, progress: Progress, text: str
) -> Gallery:
    """Summaries of the album's pictures `index_M`; those that cannot be read are left out and counted.

    Raises:
        UserError: none can be read.
    """
    task = progress.add_task(text, total=len(index_M))
    usable, keys, summaries, faults = [], [], [], []
    for start in range(0, len(index_M), _BATCH):
        images = []
        for index in map(int, index_M[start : start + _BATCH]):
            try:
                image, key = album.load(index)
            except BadSample as error:
                faults.append(error.fault)
                continue
            images.append(image)
            usable.append(index)
            keys.append(key)
        if images:
            summaries.append(encoder(encoder.preprocess(images).to(device_of(encoder))).summary().float().cpu())
        progress.advance(task, min(_BATCH, len(index_M) - start))
    if not summaries:
        raise UserError(f"{album.name}: none of {len(index_M)} pictures can be read; the first: {faults[0].detail}")
    return Gallery(np.array(usable), keys, torch.cat(summaries), faults)
