"""What LVIS's annotation files (lvisdataset.org/dataset, version 1) have beside COCO's fields.

Pictures are annotated for some categories only: those that they have, and some that they were searched for in vain.

Shape letters: S pictures, E entries of a list of each picture, one behind the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from pretrain.types import UserError

Json = Mapping[str, Any]
#: Groups of categories: rare, common, frequent.
FREQUENCIES = ("r", "c", "f")
_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True)
class IdLists:
    """A list of category ids for each picture.

    Attributes:
        start_S: int64, S + 1 numbers: picture s has entries start_S[s] to start_S[s + 1].
        id_E: int64.
    """

    start_S: np.ndarray
    id_E: np.ndarray

    def of(self, picture: int) -> list[int]:
        return self.id_E[self.start_S[picture] : self.start_S[picture + 1]].tolist()


@dataclass(frozen=True)
class LvisFields:
    """LVIS's own fields.

    Attributes:
        frequency: "r", "c" or "f" of each class, in the order of class numbers.
        absent: categories that a picture was searched for in vain (`neg_category_ids`).
        not_exhaustive: categories of which a picture has more objects than are annotated (`not_exhaustive_category_ids`).
    """

    frequency: tuple[str, ...]
    absent: IdLists
    not_exhaustive: IdLists

    def of_picture(self, picture: int) -> dict[str, list[int]]:
        """A picture's lists by the names that the file has for them."""
        return dict(zip(_LISTS, (self.absent.of(picture), self.not_exhaustive.of(picture)), strict=True))

    def parts(self) -> tuple[Any, ...]:
        """All of it, for an identity."""
        lists = (self.absent, self.not_exhaustive)
        return (*(array for one in lists for array in (one.start_S, one.id_E)), "".join(self.frequency).encode())


def read_lvis_fields(
    path: Path, *, images: Sequence[Json], categories: Sequence[Json], category_ids: Sequence[int]
) -> LvisFields:
    """LVIS's fields of a file whose pictures and categories are checked.

    Args:
        path: of the file, for errors.
        images: in the order of the pictures.
        categories: in any order.
        category_ids: by class number.

    Raises:
        UserError: a field is missing or is none of LVIS's.
    """
    frequency = {}
    for category in categories:
        value = frequency[category["id"]] = category.get("frequency")
        if value not in FREQUENCIES:
            raise UserError(
                f"{path}: category {category['id']}: frequency is {value!r:.40}; in LVIS's layout it is 'r', 'c' or 'f' "
                "(a file in COCO's is read with kind: coco)"
            )
    known = set(category_ids)
    absent, not_exhaustive = (_id_lists(path, images, field, known) for field in _LISTS)
    return LvisFields(tuple(frequency[category_id] for category_id in category_ids), absent, not_exhaustive)


def _id_lists(path: Path, images: Sequence[Json], field: str, known: set[int]) -> IdLists:
    lists = [image.get(field) for image in images]
    for image, ids in zip(images, lists, strict=True):
        if not isinstance(ids, list) or any(not isinstance(one, int) or one not in known for one in ids):
            raise UserError(
                f"{path}: image {image['id']}: {field} is {ids!r:.40}; in LVIS's layout it is a list of ids of categories"
            )
    ends = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return IdLists(ends, np.array([one for ids in lists for one in ids], dtype=np.int64))


def file_name(path: Path, image: Json) -> str:
    """Where a picture lies below COCO's folder, e.g. "train2017/000000000009.jpg": LVIS 1 names its `coco_url` only.

    Raises:
        UserError: none, or not of that form.
    """
    url = image.get("coco_url")
    parts = PurePosixPath(urlsplit(url).path).parts if isinstance(url, str) else ()
    if len(parts) < 2 or parts[-2] == "/":
        raise UserError(
            f"{path}: image {image.get('id')}: coco_url is {url!r:.80}; in LVIS's layout it ends with the picture's folder and "
            "name, train2017/000000000009.jpg"
        )
    return "/".join(parts[-2:])
