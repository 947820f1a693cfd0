"""What a source is: samples by index, as they are stored or decoded, with captions of one kind or of several.

A source gives any sample by its index and keeps no position, so that the order of a run can be a function of
(seed, the sample's number in the run) alone. It can be pickled into DataLoader workers. What it holds per sample lies
in arrays and byte strings rather than in Python objects, whose reference counts would copy it into every worker.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from PIL import Image

from pretrain.data.storage import BadSample, Spare, decode_image, spread_order
from pretrain.types import Fault


@dataclass(frozen=True)
class Captions:
    """The captions of a sample, as written.

    Attributes:
        texts: all of them; none for a picture without a caption.
        weights: how often each is to be chosen, in proportion; all alike where None.
        kinds: field or column -> its captions, where there are several kinds.
    """

    texts: list[str]
    weights: list[float] | None = None
    kinds: dict[str, list[str]] | None = None


@dataclass
class RawSample:
    """A picture and its captions as they are stored.

    Attributes:
        image: mode RGB, fully decoded, upright.
        captions: all of them, as written; none for a picture without a caption.
        key: the sample's name.
        label: class number where the source has one.
        caption_weights: how often each caption is to be chosen, in proportion; all alike where None.
    """

    image: Image.Image
    captions: list[str]
    key: str
    label: int | None = None
    caption_weights: list[float] | None = None


@dataclass
class StoredSample:
    """A sample as it is stored: nothing is decoded, and nothing says that it can be.

    Attributes:
        data: the encoded picture.
        captions: all of them.
        key: the sample's name.
        name: the same with its file in front where keys alone would not say where to look; it names the sample in faults.
        label: class number where the source has one.
        record: what is stored beside the captions (the fields of a shard's `.json`).
    """

    data: bytes
    captions: Captions
    key: str
    name: str
    label: int | None = None
    record: dict[str, object] = field(default_factory=dict)

    def decode(self, *, spare: Spare | None = None) -> RawSample:
        """The picture decoded, smaller where `spare` allows it. Raises BadSample, kind "corrupt", where that fails."""
        image = decode_image(self.data, self.name, spare=spare)
        return RawSample(image, self.captions.texts, self.key, self.label, caption_weights=self.captions.weights)


class Source(ABC):
    """Samples by index.

    Attributes:
        faults: what was found unusable at construction, and is not among the samples.
        shard_counts: samples of each file that is best read from front to back; None where any sample can be read alike.
        keys_fit_tar: whether keys can name the samples of a WebDataset shard: unique, without a dot in the last part.
    """

    shard_counts: Sequence[int] | None = None
    #: Most lanes of a run that may stand in this source at once, where each keeps much in memory.
    max_lanes: int | None = None
    keys_fit_tar: bool = False

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> StoredSample:
        """The sample `index`, 0 .. len - 1, with its picture as it is encoded.

        Raises:
            BadSample: kind "missing" for an absent file, "bad_caption" for captions that cannot be read.
        """

    @abstractmethod
    def load(self, index: int) -> RawSample:
        """Read and decode the sample `index`, 0 .. len - 1.

        Raises:
            BadSample: as :meth:`read`, and kind "corrupt" for a picture that cannot be decoded.
        """

    @abstractmethod
    def iter_captions(self, limit: int | None = None) -> Iterator[str]:
        """Captions without decoding a picture (to train a tokenizer), at most `limit`; unreadable ones are left out."""

    def choose_caption(self, sample: RawSample, rng: np.random.Generator) -> str:
        """One of the sample's captions, by their weights; "" where it has none."""
        if not sample.captions:
            return ""
        if sample.caption_weights is None:
            return sample.captions[int(rng.integers(len(sample.captions)))]
        ends = np.cumsum(sample.caption_weights)
        return sample.captions[int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))]

    def identity(self) -> str:
        """What decides which sample is which, beside their number: file names and counts, in order; the same anywhere."""
        return type(self).__name__

    #: Set by who needs no more pixels than this leaves; None decodes pictures as they are.
    spare: Spare | None = None
    #: Whether :meth:`prefetch` has anything to do.
    prefetches: bool = False

    def prefetch(self, index: int) -> None:
        """Get ready for a sample that is going to be read soon."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to fetch")


class FileSource(Source):
    """A source whose pictures lie encoded in files, and whose captions can be read one sample at a time."""

    def load(self, index: int) -> RawSample:
        return self.read(index).decode(spare=self.spare)

    @abstractmethod
    def read_captions(self, index: int) -> list[str]:
        """The captions of the sample `index`. Raises BadSample where they cannot be read."""

    def iter_captions(self, limit: int | None = None) -> Iterator[str]:
        order = range(len(self)) if limit is None else spread_order(len(self))
        return islice(self._captions(order), limit)

    def _captions(self, order: Iterable[int]) -> Iterator[str]:
        for index in order:
            # Counted when training draws the sample; here it has no captions to give.
            with suppress(BadSample):
                yield from self.read_captions(index)


def as_captions(value: object, key: str) -> list[str]:
    """A caption, a list of captions or null as a list without blank ones.

    Raises:
        BadSample: "bad_caption" for any other value.
    """
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(caption, str) for caption in values):
        raise BadSample(Fault("bad_caption", key, f"{value!r:.80} is neither a caption nor a list of captions"))
    return [caption for caption in values if caption.strip()]


def weighted_captions(record: Mapping[str, object], weights: Mapping[str, float], key: str) -> Captions:
    """Captions of several kinds; a kind's weight is shared by its captions.

    A kind without a caption gives its weight to the others.

    Args:
        record: field -> caption, list of captions or null.
        weights: field -> weight of this kind of caption, e.g. {"alt": 0.5, "synthetic": 0.5}.
        key: the sample's name.

    Raises:
        BadSample: "bad_caption" where none of the fields is in the record, or one holds something else.
    """
    if not any(name in record for name in weights):
        detail = f"no {' or '.join(map(repr, weights))} among its fields {', '.join(record)}"
        raise BadSample(Fault("bad_caption", key, detail))
    kinds = {name: as_captions(record.get(name), key) for name in weights}
    texts = [caption for kind in kinds.values() for caption in kind]
    shares = [weights[name] / len(kind) for name, kind in kinds.items() for _ in kind]
    return Captions(texts, shares, kinds)
