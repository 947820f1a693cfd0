"""Features of a frozen encoder, encoded once and kept on disk: memory-mapped, resumable, keyed by weights and pictures.

Shape letters: B batch, S pictures of the set, T tokens (class and register tokens, then patches), D width, E summary's width.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from evals.data.labelled import LabelledSet
from evals.data.loading import set_loader
from evals.encoder import Features, TokenEncoder
from evals.results import hash_of, source_hash
from pretrain.data.terminal import progress_bar
from pretrain.files import write_atomically
from pretrain.memory import show_bytes
from pretrain.types import UserError

Precision = Literal["fp32", "bf16"]
#: What a row's byte in `state.bin` says.
_ABSENT, _DONE, _UNREADABLE = 0, 1, 2
#: Code that decides features: a change of it encodes anew.
_SOURCES = (
    "evals/encoder.py",
    "evals/transforms.py",
    "evals/features.py",
    "evals/encoders",
    "pretrain/models",
    "pretrain/types.py",
    "pretrain/data/storage.py",
    "pretrain/data/transforms.py",
)
#: Batches between two flushes to the disk: what an interruption loses.
_FLUSH_EVERY = 50


@dataclass(frozen=True)
class FeatureConfig:
    """How features are encoded and kept.

    Attributes:
        folder: holds a folder for each (encoder, transform, set of pictures).
        dtype: of the tokens on disk; float16 keeps 11 bits of each number.
        precision: of the encoder: "bf16" is autocast.
        batch_size: pictures encoded at once.
        num_workers: processes that read pictures; 0 reads in this one.
    """

    folder: Path = Path("runs/features")
    dtype: Literal["float16", "float32"] = "float16"
    precision: Precision = "bf16"
    batch_size: int = 128
    num_workers: int = 1

    def check(self) -> None:
        """Raise UserError for numbers that cannot be meant."""
        if self.batch_size < 1:
            raise UserError(f"features.batch_size={self.batch_size} must be at least 1")
        if self.num_workers < 0:
            raise UserError(f"features.num_workers={self.num_workers} must be 0 or more")


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def encode(encoder: TokenEncoder, image_BCHW: Tensor, *, precision: Precision) -> Features:
    """Features of uint8 pictures on the encoder's device."""
    device = next(encoder.parameters()).device
    image_BCHW = encoder.transform.spec.normalise(image_BCHW.to(device, non_blocking=True))
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return encoder(image_BCHW)


@dataclass(frozen=True)
class CachedFeatures:
    """Features of one split.

    Attributes:
        tokens_STD: memory-mapped; rows of unreadable pictures are zero.
        summary_SE: float32, memory-mapped.
        usable_N: indices of the pictures that could be read.
        label_S: a class of each picture of the set.
        folder: where they lie.
    """

    tokens_STD: np.memmap
    summary_SE: np.memmap
    usable_N: np.ndarray
    label_S: np.ndarray
    folder: Path

    @property
    def num_unreadable(self) -> int:
        return len(self.label_S) - len(self.usable_N)

    def tokens(self, index_B: np.ndarray) -> Tensor:
        """float32 [B, T, D]."""
        return _rows(self.tokens_STD, index_B).float()

    def summaries(self, index_B: np.ndarray) -> Tensor:
        """float32 [B, E]."""
        return _rows(self.summary_SE, index_B)


def _rows(array: np.memmap, index_B: np.ndarray) -> Tensor:
    """Rows in the order that is asked for, read in the order of the file."""
    order_B = np.argsort(index_B, kind="stable")
    rows = np.empty((len(order_B), *array.shape[1:]), dtype=array.dtype)
    rows[order_B] = array[np.asarray(index_B)[order_B]]
    return torch.from_numpy(rows)


def cached_features(
    encoder: TokenEncoder,
    dataset: LabelledSet,
    config: FeatureConfig,
    *,
    text: str = "",
    fingerprint: str | None = None,
) -> CachedFeatures:
    """Features of all pictures of `dataset`: those on disk are used, the others are encoded.

    Args:
        encoder: on the device that it is to run on.
        dataset: one split.
        config: where and how.
        text: what the progress bar is about.
        fingerprint: the encoder's, where it is known already.

    Raises:
        UserError: the disk is too small, too many pictures are unreadable, or tokens do not fit into `dtype`.
    """
    config.check()
    about = {
        "encoder": fingerprint or encoder.fingerprint(),
        "transform": encoder.transform.identity(),
        "pictures": dataset.pictures_identity(),
        "precision": config.precision,
        "dtype": config.dtype,
        "device": next(encoder.parameters()).device.type,
        "code": source_hash(*_SOURCES),
    }
    folder = Path(config.folder) / hash_of(about)  # not named after the data set: others may share its pictures
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if not (folder / "about.json").exists():
            _create(folder, encoder, len(dataset), config, about)
        arrays = _open(folder)
        _encode_missing(encoder, dataset, config, arrays, folder, text=text or f"{dataset.name} {dataset.split}")
    state_S = arrays["state"]
    return CachedFeatures(
        arrays["tokens"], arrays["summary"], np.flatnonzero(state_S == _DONE), np.asarray(dataset.label_N), folder
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time: a second one waits, and finds the features."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _create(folder: Path, encoder: TokenEncoder, count: int, config: FeatureConfig, about: dict[str, str]) -> None:
    size = encoder.transform.spec.img_size
    blank = encode(encoder, torch.zeros(1, 3, size, size, dtype=torch.uint8), precision=config.precision)
    arrays = {
        "tokens": (config.dtype, [count, *blank.all_tokens().shape[1:]]),
        "summary": ("float32", [count, blank.summary().shape[1]]),
        "state": ("uint8", [count]),
    }
    needed = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in arrays.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"features of {count:,} pictures take {show_bytes(needed)}, {folder} has {show_bytes(free)} left: name another "
            "place (--features.folder) or encode in every epoch (--mode augmented)"
        )
    for name, (dtype, shape) in arrays.items():
        with (folder / f"{name}.bin").open("wb") as file:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if size:  # taken from the disk now: a mapped file that finds it full later kills the process without a word
                os.posix_fallocate(file.fileno(), 0, size)
    write_atomically(folder / "about.json", json.dumps(about | {"arrays": arrays}, indent=2).encode())


def _open(folder: Path) -> dict[str, np.memmap]:
    arrays = json.loads((folder / "about.json").read_text())["arrays"]
    return {
        name: np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r+", shape=tuple(shape))
        for name, (dtype, shape) in arrays.items()
    }


def _encode_missing(
    encoder: TokenEncoder,
    dataset: LabelledSet,
    config: FeatureConfig,
    arrays: dict[str, np.memmap],
    folder: Path,
    *,
    text: str,
) -> None:
    # unreadable ones are tried again: they may have been mended, and the bound on them is for all of them together
    missing_N = np.flatnonzero(arrays["state"] != _DONE)
    if not len(missing_N):
        return
    loader = set_loader(
        dataset, encoder.transform, index_N=missing_N, batch_size=config.batch_size, num_workers=config.num_workers
    )
    with progress_bar() as bar, (folder / "faults.jsonl").open("w") as faults:
        task = bar.add_task(f"encode {text}", total=len(dataset), completed=len(dataset) - len(missing_N))
        pending: list[tuple[np.ndarray, int]] = []
        try:
            for batch in loader:
                index_B = np.asarray(batch.index_B)
                if len(index_B):
                    features = encode(encoder, batch.image_BCHW, precision=config.precision)
                    _store(arrays, index_B, features, folder)
                    pending.append((index_B, _DONE))
                for fault_index, fault in batch.faults:
                    pending.append((np.array([fault_index]), _UNREADABLE))
                    faults.write(json.dumps({"index": int(fault_index), **vars(fault)}) + "\n")
                bar.advance(task, len(index_B) + len(batch.faults))
                if len(pending) >= _FLUSH_EVERY:
                    _flush(arrays, pending)
        finally:
            _flush(arrays, pending)


def _store(arrays: dict[str, np.memmap], index_B: np.ndarray, features: Features, folder: Path) -> None:
    dtype = torch.from_numpy(arrays["tokens"][:0]).dtype
    tokens_BTD = features.all_tokens().to(dtype)
    if not torch.isfinite(tokens_BTD).all():
        raise UserError(
            f"{folder}: features are not finite as {dtype}: set --features.dtype=float32, or mend the encoder"
        )
    arrays["tokens"][index_B] = tokens_BTD.cpu().numpy()
    arrays["summary"][index_B] = features.summary().float().cpu().numpy()


def _flush(arrays: dict[str, np.memmap], pending: list[tuple[np.ndarray, int]]) -> None:
    """Rows first, then that they are there: a crash in between encodes them once more."""
    arrays["tokens"].flush()
    arrays["summary"].flush()
    for index_B, value in pending:
        arrays["state"][index_B] = value
    arrays["state"].flush()
    pending.clear()
