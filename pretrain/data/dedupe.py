"""Pictures of a source that are in an evaluation set too, by perceptual hash (see `phash.py` for what that finds)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress

from pretrain.data.examine import counted, examine
from pretrain.data.faults import FaultLog
from pretrain.data.phash import HashIndex, phash
from pretrain.data.samples import RawSample, Source
from pretrain.data.source_config import SourceConfig, StorageConfig
from pretrain.data.storage import PackedStrings, digest
from pretrain.types import UserError

#: Kinds of source that an evaluation set can be; COCO's pictures are a folder.
EVAL_KINDS = ("folder", "shards", "parquet", "table")
_SUFFIXES = {".tar": "shards", ".parquet": "parquet", ".csv": "table", ".tsv": "table", ".jsonl": "table"}


def eval_source(text: str, *, image_column: str = "image", storage: StorageConfig | None = None) -> Source:
    """The source that `KIND:PATH` names, or PATH alone, whose kind is told by its suffix or by what the folder holds.

    Raises:
        UserError: it cannot be told, or the source cannot be read.
    """
    kind, colon, path = text.partition(":")
    if not colon or kind not in EVAL_KINDS:
        kind, path = _guess(text), text
    column = image_column if kind in ("parquet", "table") else "image"
    config = SourceConfig(kind=kind, path=path, image_column=column)
    try:
        return config.build(None, seed=0, split="val", img_size=224, storage=storage)
    except UserError as error:
        raise UserError(f"--against {text}: {error}") from error


def _guess(path: str) -> str:
    if os.path.isdir(path):
        found = sorted({_SUFFIXES[s] for s in (".tar", ".parquet") if any(Path(path).glob(f"*{s}"))})
        if len(found) < 2:
            return found[0] if found else "folder"
    elif (suffix := Path(path).suffix.lower()) in _SUFFIXES:
        return _SUFFIXES[suffix]
    raise UserError(f"--against {path}: what it is cannot be told; give {':PATH, '.join(EVAL_KINDS)}:PATH")


@dataclass(frozen=True)
class EvalSet:
    """An evaluation set's hashes.

    Attributes:
        name: as the user gave it.
        hashes: uint64, one for each picture that could be used.
        keys: their names.
        log: what could not be used.
    """

    name: str
    hashes: np.ndarray
    keys: PackedStrings
    log: FaultLog


def hash_eval_set(name: str, source: Source, progress: Progress, *, max_fault_share: float = 0.05) -> EvalSet:
    """Hash every picture. Raises UserError where too many cannot be used, or all."""
    task = progress.add_task(f"hashing {name}", total=len(source))
    log = FaultLog(max_fault_share, field="--max-fault-share")
    log.record(0, source.faults)
    hashes, keys = [], []
    for item in counted(examine(source, lambda stored: phash(stored.decode().image)), log):
        if item.fault is None:
            hashes.append(item.result)
            keys.append(item.stored.key)
        progress.advance(task)
    if not hashes:
        raise UserError(f"--against {name}: no picture can be used ({log.summary()})")
    return EvalSet(name, np.array(hashes, dtype=np.uint64), PackedStrings(keys), log)


class EvalPictures:
    """Tells whether a picture is in one of several evaluation sets.

    Args:
        sets: their hashes.
        distance: largest Hamming distance of a match.
    """

    def __init__(self, sets: Sequence[EvalSet], *, distance: int) -> None:
        if not 0 <= distance < 32:  # unrelated pictures are 32 bits apart
            raise UserError(f"--distance {distance} must be from 0 to 31")
        self.sets, self.distance = list(sets), distance
        self._index = HashIndex(np.concatenate([found.hashes for found in sets]))
        self._ends = np.cumsum([len(found.hashes) for found in sets])

    def identity(self) -> str:
        return digest(self._index.hashes)

    def match(self, sample: RawSample) -> dict[str, object] | None:
        """The evaluation set and picture that a sample matches, and how far it is; None where it matches none."""
        distance, number = self._index.nearest(phash(sample.image))
        if distance > self.distance:
            return None
        which = int(np.searchsorted(self._ends, number, side="right"))
        found = self.sets[which]
        place = number - (int(self._ends[which - 1]) if which else 0)
        return {"eval": found.name, "match": found.keys[place], "distance": distance}
