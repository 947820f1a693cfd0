"""One split of RefCOCO, RefCOCO+, RefCOCOg or of what has their layout: expressions, and pictures read one by one.

Shape letters: S pictures of the split, M objects of a picture.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from evals.data.files import did_you_mean, first, read_as_stored
from evals.data.labelled import BadSample, LabelledSet
from evals.grounding.expressions import Expression
from evals.grounding.release import Picture, Release
from pretrain.data.storage import PackedStrings, digest, read_picture, spread_order
from pretrain.types import UserError

#: Pictures whose bytes are part of the identity, and how many are looked for when a set is made.
_NUM_SPREAD, _NUM_LOOKED_FOR = 20, 8
#: What `repaired` counts, of the refs of the split.
REPAIRS = {
    "box_clipped": "boxes reach outside their picture and are clipped",
    "box_empty": "boxes have no extent inside their picture: their sentences are left out",
    "no_words": "sentences have no words and are left out",
}


class RefPictures(LabelledSet):
    """The pictures of a split, each once, in the order of their ids. There are no classes: all labels are 0.

    Args:
        folder: that file names are relative to.
        pictures: file name, height and width by id.
        name: the data set's.
        split: its own name of the split.
        synthetic: whether they are generated.

    Attributes:
        image_ids: int64 [S], rising.
    """

    classes = ("picture",)

    def __init__(self, folder: Path, pictures: dict[int, Picture], *, name: str, split: str, synthetic: bool) -> None:
        self.folder, self.name, self.split, self.synthetic = folder, name, split, synthetic
        # as arrays and one block of bytes: workers of a loader share them
        self.image_ids = np.array(sorted(pictures), dtype=np.int64)
        self._names = PackedStrings(pictures[image_id].file_name for image_id in self.image_ids.tolist())
        self._size_S2 = np.array([pictures[i][1:] for i in self.image_ids.tolist()], dtype=np.int64).reshape(-1, 2)
        self.label_N = np.zeros(len(self.image_ids), dtype=np.int64)
        self._identity: str | None = None

    def index(self, image_id: int) -> int:
        """A picture's number in the set. Raises KeyError where it is none of its pictures."""
        place = int(np.searchsorted(self.image_ids, image_id))
        if place == len(self.image_ids) or self.image_ids[place] != image_id:
            raise KeyError(image_id)
        return place

    def key(self, index: int) -> str:
        return self._names[index]

    def file(self, index: int) -> Path:
        return self.folder / self.key(index)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels, as instances.json has them."""
        height, width = self._size_S2[index].tolist()
        return height, width

    def load(self, index: int) -> Image.Image:
        """The picture, RGB and as it is stored: COCO's annotations know no EXIF.

        Raises:
            BadSample: the file is missing or cannot be decoded, or its size is not the one that the boxes are made for.
        """
        key = self.key(index)
        return read_as_stored(self.file(index), key, size=self.size(index), source="instances.json")

    def pictures_identity(self) -> str:
        if self._identity is None:
            pixels = (self._bytes(index) for index in islice(spread_order(len(self)), _NUM_SPREAD))
            self._identity = f"refs {digest(self.image_ids, self._size_S2, *self._names.parts(), *pixels)}"
        return self._identity

    def _bytes(self, index: int) -> bytes:
        try:
            return read_picture(self.file(index), self.key(index))
        except BadSample:  # counted when it is loaded
            return b""


class RefSet:
    """One split: expressions in the order of the file, and their pictures.

    Args:
        release: of `read_release`.
        images: folder that the file names in instances.json are relative to: train2014 of the official release, whose refs name
            files that never existed (COCO_train2014_000000581857_16.jpg): these names are not used.
        name: the data set's, e.g. "refcoco+".
        split: "train", "val", "testA", "testB", "test".

    Attributes:
        expressions: one for each sentence.
        pictures: each once, as a set that features can be cached of.
        folder: of the pictures.
        synthetic: whether they are generated.
        numbering: whose ids they have: "coco", or the name of the generated set.
        repaired: kind (see REPAIRS) -> how many, of this split.

    Raises:
        UserError: no such split, a folder that is missing or lacks the pictures, no usable expression.
    """

    def __init__(self, release: Release, images: str | Path, *, name: str, split: str) -> None:
        if split not in release.splits:
            near = did_you_mean(split, release.splits)
            raise UserError(
                f"{name}: {release.folder / f'refs({release.split_by}).p'} has no split {split!r}{near}; "
                f"it has {', '.join(release.splits)}"
            )
        self.name, self.split, self.folder = name, split, Path(images).expanduser()
        self.synthetic, self.numbering, self._release = release.synthetic, release.numbering, release
        repaired: Counter[str] = Counter()
        self.expressions: list[Expression] = []
        for ref in (ref for ref in release.refs if ref.split == split):
            annotation = release.annotations[ref.ann_id]
            repaired["box_clipped"] += annotation.clipped
            if annotation.box is None:
                repaired["box_empty"] += 1
                continue
            for sent_id, text in ref.sentences:
                if not text:
                    repaired["no_words"] += 1
                    continue
                ids = {"sent_id": sent_id, "ref_id": ref.ref_id, "ann_id": ref.ann_id}
                self.expressions.append(Expression(text, annotation.box, ref.image_id, **ids))
        self.repaired = {kind: repaired[kind] for kind in REPAIRS if repaired[kind]}
        if not self.expressions:
            raise UserError(f"{name}: no sentence of split {split!r} in {release.folder} has words and a box")
        self._choose_pictures()
        self._look_for_pictures()
        self._objects: dict[int, np.ndarray] | None = None

    def _choose_pictures(self) -> None:
        chosen = {e.image_id: self._release.pictures[e.image_id] for e in self.expressions}
        self.pictures = RefPictures(self.folder, chosen, name=self.name, split=self.split, synthetic=self.synthetic)

    def _look_for_pictures(self) -> None:
        wanted = (
            f"the folder that holds {self.pictures.key(0)!r} (train2014 of COCO 2014 with the official release); name it "
            "with --images"
        )
        if not self.folder.is_dir():
            raise UserError(f"{self.name}: the folder of pictures {str(self.folder)!r} is not there; wanted: {wanted}")
        some = islice(spread_order(len(self.pictures)), _NUM_LOOKED_FOR)
        if not any(self.pictures.file(index).is_file() for index in some):
            raise UserError(
                f"{self.name}: {str(self.folder)!r} lacks the pictures that instances.json names; wanted: {wanted}"
            )

    def __len__(self) -> int:
        return len(self.expressions)

    @property
    def image_ids(self) -> np.ndarray:
        """int64 [S], of the pictures that have an expression, rising."""
        return self.pictures.image_ids

    def load(self, image_id: int) -> Image.Image:
        """A picture by COCO's id, RGB and as it is stored. Raises BadSample; KeyError where the split does not have it."""
        return self.pictures.load(self.pictures.index(image_id))

    def size(self, image_id: int) -> tuple[int, int]:
        """Height and width of a picture in pixels, without reading it."""
        return self.pictures.size(self.pictures.index(image_id))

    def objects(self, image_id: int) -> np.ndarray:
        """float32 [M, 4], boxes of all objects that are annotated on a picture, referred to or not; no crowd regions."""
        if self._objects is None:
            wanted, found = set(self.image_ids.tolist()), defaultdict(list)
            for annotation in self._release.annotations.values():
                if annotation.image_id in wanted and annotation.box is not None and not annotation.crowd:
                    found[annotation.image_id].append(annotation.box)
            self._objects = {i: np.array(boxes, dtype=np.float32).reshape(-1, 4) for i, boxes in found.items()}
        return self._objects.get(image_id, np.zeros((0, 4), dtype=np.float32))

    def subset(self, number_N: Sequence[int] | np.ndarray) -> Self:
        """Some expressions by their number, in this order, and their pictures.

        Raises:
            UserError: none is left.
        """
        if not len(number_N):
            raise UserError(f"{self.name}: none of the {len(self):,} expressions of split {self.split!r} is left")
        part = copy.copy(self)
        part.expressions = [self.expressions[int(number)] for number in number_N]
        part._choose_pictures()
        part._objects = None
        return part

    def describe_repairs(self) -> str:
        """One line; "" where nothing was touched."""
        counts = "; ".join(f"{count:,} {REPAIRS[kind]}" for kind, count in self.repaired.items())
        return f"{self.name} {self.split}: {counts}" if counts else ""

    def identity(self) -> str:
        """What decides expressions, boxes, pictures and their order; the same on any machine."""
        boxes_N4 = np.array([e.box for e in self.expressions], dtype=np.float64)
        ids = np.array([(e.image_id, e.sent_id, e.ref_id, e.ann_id) for e in self.expressions], dtype=np.int64)
        texts = PackedStrings(e.text for e in self.expressions)
        return f"{self.pictures.pictures_identity()} expressions={digest(boxes_N4, ids, *texts.parts())}"


def find_images(root: str | Path, candidates: Sequence[str], *, name: str) -> Path:
    """The first of some folders in `root` that is there.

    Args:
        root: the data set's place.
        candidates: folders relative to it; "." is itself.
        name: the data set's, for the error.

    Raises:
        UserError: none of them is there.
    """
    root = Path(root).expanduser()
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    raise UserError(
        f"{name}: {str(root)!r} has no folder of pictures ({first(candidates)}); wanted: train2014 of COCO 2014, or name "
        "the folder with --images"
    )
