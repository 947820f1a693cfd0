"""Training pictures that are also scored: found by COCO's ids, left out, counted.

The splits of one data set share no pictures as a rule, but RefCOCOg's "google" split divides objects, not pictures, and as soon
as data sets are mixed (RefCOCO, RefCOCO+ and RefCOCOg draw from the same pictures of train2014; detection trains on all of COCO)
the training pictures of one are test pictures of another.

Shape letters: N training samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evals.grounding.ref_set import RefSet

#: Whose ids name COCO's pictures: train2014, val2014, train2017 and val2017 number the same photographs alike.
COCO = "coco"


@dataclass(frozen=True)
class Leaks:
    """What training has to go without.

    Attributes:
        keep_N: bool, the training samples whose picture is not scored.
        num_pictures: training pictures that are left out.
        by_split: name of the scored split -> how many of its pictures the training set has.
    """

    keep_N: np.ndarray
    num_pictures: int
    by_split: dict[str, int] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Training samples (expressions, or pictures) that are left out."""
        return int((~self.keep_N).sum())

    def describe(self, *, what: str = "expressions") -> str:
        """One line for the log."""
        if not self.num_samples:
            return "no training picture is in a split that is held out or scored"
        where = ", ".join(f"{count:,} in {split}" for split, count in self.by_split.items() if count)
        return (
            f"{self.num_pictures:,} training pictures ({self.num_samples:,} {what}) are left out: they are in splits that are "
            f"held out or scored ({where})"
        )


def find_leaks(
    image_id_N: np.ndarray, scored: Mapping[str, np.ndarray], *, numbering: str = COCO, scored_numbering: str = COCO
) -> Leaks:
    """Which of a training set's samples are on pictures that are scored.

    Args:
        image_id_N: int64, the picture of each training sample; of a detection set, the pictures themselves.
        scored: name of a split -> ids of its pictures, val splits included.
        numbering: whose ids they are: "coco", or another name ("scenes 0"). Ids of different numberings name different pictures,
            however equal they look.
        scored_numbering: likewise of `scored`.
    """
    image_id_N = np.asarray(image_id_N, dtype=np.int64)
    if numbering != scored_numbering:
        return Leaks(np.ones(len(image_id_N), dtype=bool), 0, dict.fromkeys(scored, 0))
    own = np.unique(image_id_N)
    shared = {split: np.intersect1d(own, np.asarray(ids, dtype=np.int64)) for split, ids in scored.items()}
    leaked = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *shared.values()]))
    return Leaks(~np.isin(image_id_N, leaked), len(leaked), {split: len(ids) for split, ids in shared.items()})


def drop_leaks(train: RefSet, others: Sequence[RefSet]) -> tuple[RefSet, Leaks]:
    """The training set without the pictures of `others` (its val and test splits), and what was left out.

    Args:
        train: what is trained on.
        others: all splits that are looked at or scored, of this data set or another.
    """
    own = np.array([expression.image_id for expression in train.expressions], dtype=np.int64)
    keep_N, leaked, by_split = np.ones(len(own), dtype=bool), set(), {}
    for other in others:
        name = f"{other.name} {other.split}"
        leaks = find_leaks(own, {name: other.image_ids}, numbering=train.numbering, scored_numbering=other.numbering)
        keep_N &= leaks.keep_N
        leaked |= set(own[~leaks.keep_N].tolist())
        by_split |= leaks.by_split
    kept = train if keep_N.all() else train.subset(np.flatnonzero(keep_N))
    return kept, Leaks(keep_N, len(leaked), by_split)
