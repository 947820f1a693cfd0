"""What answering models are fed with: conversations and prompts as batches, with the pictures' cached tokens or their pixels.

Batch number k of a training is a function of (seed, k): rows are dealt out in an order that is drawn anew for each pass.

Shape letters: B sequences, I pictures, N patches of a picture, D width of the encoder's tokens, P pictures of a set.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from evals.data.labelled import BadSample, LabelledSet
from evals.data.loading import one_thread
from evals.features import CachedFeatures
from evals.multimodal.examples import InstructionSet
from evals.multimodal.language import Language
from evals.multimodal.sequences import PICTURE_ID, Encoded, SequenceBatch, collate, encode_conversation
from evals.transforms import ImageTransform
from pretrain.data.terminal import progress_bar
from pretrain.rng import draw_rng


@dataclass(frozen=True)
class Seen:
    """Pictures as a model will see them.

    Attributes:
        tokens_IND: float32; None where pixels are given, or nothing is seen.
        image_ICHW: uint8.
        unreadable: numbers of those that could not be read; the others are in the order that they were asked for.
    """

    tokens_IND: Tensor | None = None
    image_ICHW: Tensor | None = None
    unreadable: tuple[int, ...] = ()


class Pictures(ABC):
    """Pictures of a set, by number.

    Attributes:
        num_patches: N; 0 where nothing is seen.
    """

    num_patches: int

    @abstractmethod
    def see(self, numbers: Sequence[int]) -> Seen:
        """Tokens or pixels of pictures."""


class NoPictures(Pictures):
    """For a model that sees none: what it answers is what language alone says."""

    num_patches = 0

    def see(self, numbers: Sequence[int]) -> Seen:
        return Seen()


class CachedPictures(Pictures):
    """Patch tokens that were encoded once; class and register tokens, which stand in front, are left out."""

    def __init__(self, features: CachedFeatures, *, num_patches: int) -> None:
        self.features, self.num_patches = features, num_patches
        self._usable = set(features.usable_N.tolist())

    def see(self, numbers: Sequence[int]) -> Seen:
        good = [number for number in numbers if number in self._usable]
        unreadable = tuple(number for number in numbers if number not in self._usable)
        if not good:
            return Seen(unreadable=unreadable)
        return Seen(self.features.tokens(np.array(good))[:, -self.num_patches :], None, unreadable)


class PixelPictures(Pictures):
    """Pictures that are read and encoded each time: for sets that are gone through once, or do not fit on a disk as tokens."""

    def __init__(self, dataset: LabelledSet, transform: ImageTransform, *, num_patches: int) -> None:
        self.dataset, self.transform, self.num_patches = dataset, transform, num_patches

    def see(self, numbers: Sequence[int]) -> Seen:
        images, unreadable = [], []
        for number in numbers:
            try:
                images.append(self.transform(self.dataset.load(number)))
            except BadSample:
                unreadable.append(number)
        return Seen(None, torch.stack(images) if images else None, tuple(unreadable))


class StepBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (pass, row), without an end: batch k holds the rows k * B to (k + 1) * B of the passes one after the other.

    Lightning is shown chunks of them as its epochs, after each of which it keeps a checkpoint.

    Args:
        num_rows: of a pass.
        batch_size: B.
        chunk: batches of one of Lightning's epochs.
        seed: of the order, which differs in each pass.
    """

    def __init__(self, num_rows: int, *, batch_size: int, chunk: int, seed: int) -> None:
        self.num_rows, self.batch_size, self.chunk, self.seed, self.epoch = num_rows, batch_size, chunk, seed, 0
        self._order: tuple[int, np.ndarray] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning in front of each chunk."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.chunk

    def _row(self, position: int) -> tuple[int, int]:
        number, place = divmod(position, self.num_rows)
        if self._order is None or self._order[0] != number:
            self._order = number, draw_rng(self.seed, "multimodal/order", number).permutation(self.num_rows)
        return number, int(self._order[1][place])

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.epoch * self.chunk, (self.epoch + 1) * self.chunk):
            yield [self._row(position) for position in range(batch * self.batch_size, (batch + 1) * self.batch_size)]


class ConversationRows(Dataset[SequenceBatch]):
    """Batches of conversations as the connector's language model reads them.

    Args:
        taught: the conversations.
        pictures: of the set.
        language: its tokenizer and template.
        packed: whether independent turns share a sequence; else each is a row of its own.

    Attributes:
        rows: (conversation, turn) for each row; turn None for all of them.
        num_too_long: conversations whose first turn does not fit into the context: left out.
        num_cut: conversations that lose later turns to it.
    """

    def __init__(self, taught: InstructionSet, pictures: Pictures, language: Language, *, packed: bool = True) -> None:
        self.taught, self.pictures, self.language = taught, pictures, language
        self.num_too_long = self.num_cut = 0
        self.rows: list[tuple[int, int | None]] = []
        for number, conversation in enumerate(taught.conversations):
            turns = range(len(conversation.turns)) if taught.independent and not packed else [None]
            self.rows += [(number, turn) for turn in turns]

    def __len__(self) -> int:
        return len(self.rows)

    def encode(self, row: int) -> Encoded | None:
        """A row's sequence; None where it does not fit."""
        number, turn = self.rows[row]
        conversation = self.taught.conversations[number]
        turns = conversation.turns if turn is None else conversation.turns[turn : turn + 1]
        limit = self.language.context_length
        seen = conversation.picture is not None and self.pictures.num_patches > 0
        return encode_conversation(
            self.language,
            turns,
            with_picture=seen,
            independent=self.taught.independent and turn is None,
            room=None if limit is None else limit - seen * (self.pictures.num_patches - 1),
        )

    def leave_out_too_long(self) -> None:
        """Count and leave out rows that do not fit; count those that lose turns. Goes through all of them once."""
        kept = []
        with progress_bar() as bar:
            task = bar.add_task(f"tokens of {self.taught.name}", total=len(self.rows))
            for row, (number, turn) in enumerate(self.rows):
                encoded = self.encode(row)
                bar.advance(task)
                if encoded is None:
                    self.num_too_long += 1
                    continue
                kept.append((number, turn))
                num_turns = 1 if turn is not None else len(self.taught.conversations[number].turns)
                if int((np.diff(encoded.target.astype(np.int8)) == 1).sum()) < num_turns:
                    self.num_cut += 1
        self.rows = kept

    def __getitem__(self, batch: Sequence[tuple[int, int]]) -> SequenceBatch:
        rows = [row for _, row in batch]
        encoded = [self.encode(row) for row in rows]
        assert None not in encoded, "leave_out_too_long comes first"
        return sequences_with_pictures(
            encoded,
            [self.taught.conversations[self.rows[row][0]].picture for row in rows],
            self.pictures,
            number_B=np.array([self.rows[row][0] for row in rows]),
            filler_id=self.language.filler_id,
        )


def sequences_with_pictures(
    encoded: Sequence[Encoded],
    shown: Sequence[int | None] | Sequence[Sequence[int]],
    pictures: Pictures,
    *,
    number_B: np.ndarray,
    filler_id: int,
    pad_left: bool = False,
    pictures_in_text: bool = True,
) -> SequenceBatch:
    """Sequences with the pictures that each of them shows; one whose picture cannot be read is left out and named.

    Args:
        encoded: sequences.
        shown: each one's picture or pictures, in their order.
        pictures: of the set.
        number_B: what the sequences are called by.
        filler_id: stands where nothing stands.
        pad_left: see `collate`.
        pictures_in_text: whether a picture has a place among the tokens; a sequence without one shows none then.
    """
    lists = [[] if one is None else [one] if isinstance(one, int) else list(one) for one in shown]
    if pictures_in_text:
        pairs = zip(encoded, lists, strict=True)
        lists = [numbers if (one.ids == PICTURE_ID).any() else [] for one, numbers in pairs]
    seen = pictures.see([number for numbers in lists for number in numbers])
    bad = set(seen.unreadable)
    keep = [row for row, numbers in enumerate(lists) if not bad.intersection(numbers)]
    if bad and any(len(numbers) > 1 for numbers in lists):  # a good picture of a row that goes must go as well
        seen = pictures.see([number for row in keep for number in lists[row]])
    return collate(
        [encoded[row] for row in keep],
        num_patches=pictures.num_patches,
        filler_id=filler_id,
        number_B=np.asarray(number_B)[keep],
        tokens_IND=seen.tokens_IND,
        image_ICHW=seen.image_ICHW,
        unreadable=sorted(bad),
        pad_left=pad_left,
    )


def step_loader(
    rows: Dataset[SequenceBatch], num_rows: int, *, batch_size: int, chunk: int, seed: int, num_workers: int = 0
) -> DataLoader[SequenceBatch]:
    """A loader of training batches; see :class:`StepBatches`."""
    return DataLoader(
        rows,
        sampler=StepBatches(num_rows, batch_size=batch_size, chunk=chunk, seed=seed),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=one_thread,
        pin_memory=torch.cuda.is_available(),
    )
