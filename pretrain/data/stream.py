"""The run's samples by number: sample k is a function of (seed, k), whatever worker or rank asks for it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from pretrain.data.order import UNIT, Mixture, Order, Place
from pretrain.data.sources import BadSample, RawSample, Source
from pretrain.data.tokenizers import CaptionTokenizer, clean_caption, collate_captions
from pretrain.data.transforms import Transform
from pretrain.rng import draw_integer, draw_rng
from pretrain.types import Fault, ImageTextBatch, UserError

#: So many unusable samples in a row are no bad luck: the source as a whole is broken.
MAX_ATTEMPTS = 100


@dataclass
class Sample:
    """One picture with its caption, ready to be collated.

    Attributes:
        image_CHW: uint8; None where the sample could not be used and is not replaced (validation).
        token_ids: caption with EOS; empty where there is none.
    """

    position: int
    image_CHW: Tensor | None = None
    token_ids: list[int] = field(default_factory=list)
    caption: str = ""
    key: str = ""
    label: int | None = None
    faults: list[Fault] = field(default_factory=list)
    attempts: int = 1


@dataclass
class Part:
    """One source of a stream.

    Attributes:
        source: where pictures and captions come from.
        transform: picture -> uint8 [3, H, W], with the sample's own generator.
        order: which of the source's samples comes when.
        name: the source's name in a mixture; "" where there is but one.
        ahead: how much further on, in samples of the same lane, a source that fetches is told to get ready.
    """

    source: Source
    transform: Transform
    order: Order
    name: str = ""
    ahead: int = 2048

    def key(self, key: str) -> str:
        """A sample's or fault's name, with the source's in front where there are several."""
        return f"{self.name}:{key}" if self.name else key

    def index(self, place: Place) -> int:
        """Place in the source; a source that fetches is told what comes later."""
        if self.source.prefetches and place.offset % UNIT == 0:
            later = place._replace(offset=place.offset + self.ahead)
            self.source.prefetch(self.order.index(later))
        return self.order.index(place)


class SampleStream(Dataset):
    """Sample k of a run, for any k.

    In training an unusable sample is replaced by another of the same source, drawn for the same k; in validation it is left
    out.

    Args:
        parts: the sources.
        mixture: which part and place sample k comes from.
        tokenizer: for the captions.
        seed: the run's seed.
        replaces: whether unusable samples are replaced.
        length: how many samples there are to ask for.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        mixture: Mixture,
        *,
        tokenizer: CaptionTokenizer,
        seed: int,
        replaces: bool,
        length: int,
    ) -> None:
        self.parts, self.mixture, self.tokenizer = list(parts), mixture, tokenizer
        self.seed, self.replaces, self.length = seed, replaces, length

    def __len__(self) -> int:
        return self.length

    def locate(self, position: int) -> tuple[int, int]:
        """Number of the source, and place in it, of sample `position`."""
        place = self.mixture.place(position)
        return place.source, self.parts[place.source].index(place)

    def _load(self, position: int) -> tuple[RawSample | None, Part, list[Fault]]:
        faults: list[Fault] = []
        number, index = self.locate(position)
        part = self.parts[number]
        for attempt in range(MAX_ATTEMPTS if self.replaces else 1):
            if attempt:
                index = draw_integer(self.seed, "replacement", position, 0, len(part.source) - 1, attempt)
            try:
                return part.source.load(index), part, faults
            except BadSample as bad:
                faults.append(replace(bad.fault, key=part.key(bad.fault.key)))
        if not self.replaces:
            return None, part, faults
        last = faults[-1]
        raise UserError(
            f"data: {MAX_ATTEMPTS} unusable samples in a row, the last is {last.key} ({last.kind}: {last.detail})"
        )

    def __getitem__(self, position: int) -> Sample:
        raw, part, faults = self._load(position)
        sample = Sample(position, faults=faults, attempts=len(faults) + (raw is not None))
        if raw is None:
            return sample
        sample.image_CHW = part.transform(raw.image, draw_rng(self.seed, "crop", position))
        caption = part.source.choose_caption(raw, draw_rng(self.seed, "caption", position))
        sample.caption, sample.key, sample.label = clean_caption(caption), part.key(raw.key), raw.label
        if sample.caption:
            sample.token_ids = self.tokenizer.encode([sample.caption])[0]
        return sample


@dataclass(frozen=True)
class Collate:
    """Samples to a batch; captions padded to the longest, rounded up to a multiple of 8."""

    seed: int
    pad_id: int

    def __call__(self, samples: Sequence[Sample]) -> ImageTextBatch:
        used = [sample for sample in samples if sample.image_CHW is not None]
        faults = [fault for sample in samples for fault in sample.faults]
        text_BL, text_valid_BL = collate_captions([sample.token_ids for sample in used], self.pad_id)
        labelled = bool(used) and all(sample.label is not None for sample in used)
        return ImageTextBatch(
            # a validation batch may be empty: its faults still have to be counted
            # torch's own stacks a worker's pictures right into shared memory: no copy on the way to the training process
            image_BCHW=default_collate([sample.image_CHW for sample in used]) if used else torch.zeros(0, 3, 1, 1),
            text_BL=text_BL,
            text_valid_BL=text_valid_BL,
            position_B=torch.tensor([sample.position for sample in used], dtype=torch.long),
            seed=self.seed,
            keys=[sample.key for sample in used],
            captions=[sample.caption for sample in used],
            label_B=torch.tensor([sample.label for sample in used]) if labelled else None,
            faults=faults,
            attempts=sum(sample.attempts for sample in samples),
        )


class PositionBatches(Sampler[list[int]]):
    """Sample numbers of this rank's batches.

    Batch i of the run covers the numbers i * batch_size * world_size and on, split over ranks in order: the samples of a
    step are the same on one device and on many.

    Args:
        batch_size: samples of a batch on one device.
        num_batches: batches in the whole run.
        start_batch: where a resumed run goes on.
        num_samples: bound of the numbers (validation: the last batch may be short, or empty on a rank).
    """

    def __init__(
        self,
        *,
        batch_size: int,
        num_batches: int,
        start_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_samples: int | None = None,
    ) -> None:
        self.batch_size, self.num_batches, self.start_batch = batch_size, num_batches, start_batch
        self.rank, self.world_size, self.num_samples = rank, world_size, num_samples

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.start_batch, self.num_batches):
            first = (batch * self.world_size + self.rank) * self.batch_size
            last = first + self.batch_size
            if self.num_samples is not None:
                last = min(last, self.num_samples)
            if first < last:
                yield list(range(first, last))
