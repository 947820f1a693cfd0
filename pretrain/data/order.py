"""Which sample of which source is number k of a run: functions of (seed, k), with nothing to store.

A run's samples are dealt to *lanes*: samples 0..15 to lane 0, 16..31 to lane 1, and so on round and round. Each lane goes
through a part of the shards of its own, one shard after the other, shuffling inside a window. A loader's worker takes every
so-many-th batch, so that where the number of lanes is a multiple of (workers over all devices) x (batch / 16) it always
works on the same lanes: it reads its shards once and in sequence. Any other number of workers reads the same samples in
the same order, only less locally. Within a lane a mixture deals samples to sources in blocks that hold the weights exactly.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pretrain.rng import draw_key, draw_rng, permute
from pretrain.types import UserError

#: Consecutive samples that go to one lane.
UNIT = 16
#: Samples of a mixture's block within a lane: the paper's shares are whole hundredths (Table 2), so a block holds them exactly.
_BLOCK = 1000
_SCALE_BITS = 40


class Place(NamedTuple):
    """Where a sample of the run comes from.

    Attributes:
        source: number of the source.
        lane: lane of the run.
        offset: how many samples this lane took from this source before.
        position: number of the sample among the source's; without gaps, in order up to the width of the lanes.
    """

    source: int
    lane: int
    offset: int
    position: int


class Mixture:
    """Deals the samples of a run to lanes and sources.

    Args:
        weights: of the sources; they need not add up to 1.
        seed: the run's seed.
        num_lanes: lanes of the run.

    Raises:
        UserError: a weight that is not above 0, or fewer lanes than one.
    """

    def __init__(self, weights: Sequence[float], *, seed: int, num_lanes: int) -> None:
        if num_lanes < 1:
            raise UserError(f"data.num_lanes={num_lanes} must be at least 1")
        for weight in weights:
            if not 0 < weight < float("inf"):
                raise UserError(f"data.mixture: a weight is {weight}; it must be above 0, or leave the source out")
        self.seed, self.num_lanes = seed, num_lanes
        shares = np.array(weights, dtype=np.float64) / sum(weights)
        # every source has at least one sample in a block, so that no block can owe one
        self.block = max(_BLOCK, int(np.ceil(1 / shares.min())))
        bounds = [round(float(share) * 2**_SCALE_BITS) for share in np.cumsum(shares)]
        self._bounds = [*bounds[:-1], 2**_SCALE_BITS]

    def place(self, k: int) -> Place:
        """Lane, source and place of sample k."""
        turn, rest = divmod(k, UNIT * self.num_lanes)
        lane, step = rest // UNIT, turn * UNIT + rest % UNIT
        if len(self._bounds) == 1:
            return Place(0, lane, step, k)
        block, slot = divmod(step, self.block)
        slot = permute(draw_key(self.seed, f"mixture/{lane}", block), self.block, slot)
        before = last = 0  # samples of the sources so far: before this block, and in it
        for source in range(len(self._bounds)):
            upto, upto_next = self._dealt(source, block, lane), self._dealt(source, block + 1, lane)
            if slot < upto_next - upto:
                offset = upto - before + slot - last
                return Place(source, lane, offset, offset * self.num_lanes + lane)
            before, last = upto, upto_next - upto
        raise AssertionError("the last source takes what is left of a block")

    def _dealt(self, source: int, block: int, lane: int) -> int:
        """Samples of sources 0..source in a lane's first `block` blocks, rounded at another point in each lane."""
        phase = ((2 * lane + 1) << _SCALE_BITS) // (2 * self.num_lanes)
        last = source == len(self._bounds) - 1
        return block * self.block if last else (self._bounds[source] * self.block * block + phase) >> _SCALE_BITS


class Order(ABC):
    """Which sample of a source stands at a place."""

    @abstractmethod
    def index(self, place: Place) -> int: ...


class InOrder(Order):
    """The source's own order, again and again; validation, and scenes, which never repeat."""

    def __init__(self, count: int) -> None:
        self.count = count

    def index(self, place: Place) -> int:
        return place.position % self.count


class Shuffled(Order):
    """Epochs, each a permutation of the whole source: where any sample can be read alike."""

    def __init__(self, count: int, *, seed: int) -> None:
        self.count, self.seed = count, seed

    def index(self, place: Place) -> int:
        epoch, at = divmod(place.position, self.count)
        return permute(draw_key(self.seed, "order", epoch), self.count, at)


@dataclass
class _Epoch:
    shards: np.ndarray
    ends: np.ndarray


class ShardOrder(Order):
    """Shard after shard in each lane, samples shuffled inside a window.

    In each epoch the shards stand in another order, end to end; lane l of L takes the l-th of L equal parts of this line,
    so that lanes are equally long whatever the shards' sizes are, and a shard is read by two lanes at most where it is
    shorter than a part.

    Args:
        counts: samples of each shard.
        seed: the run's seed.
        num_lanes: lanes of the run.
        window: samples that are shuffled among each other.
        max_lanes: most lanes that this source is to have, which then share them; as many as the run where None.
    """

    def __init__(
        self, counts: Sequence[int], *, seed: int, num_lanes: int, window: int, max_lanes: int | None = None
    ) -> None:
        if window < 1:
            raise UserError(f"data.shuffle_window={window} must be at least 1")
        self.counts = np.asarray(counts, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.count, self.seed, self.window = int(self.starts[-1]), seed, window
        # a lane that held less than a window could not shuffle: few samples share few lanes
        lanes = num_lanes if max_lanes is None else min(num_lanes, max_lanes)
        while lanes > 1 and (self.count // lanes < window or num_lanes % lanes):
            lanes -= 1
        self.num_lanes, self._share = lanes, num_lanes // lanes
        self._epochs: dict[int, _Epoch] = {}

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            while len(self._epochs) > 1:  # lanes may be an epoch apart where one ends
                del self._epochs[min(self._epochs)]
            shards = draw_rng(self.seed, "shards", epoch).permutation(len(self.counts))
            self._epochs[epoch] = _Epoch(shards, np.cumsum(self.counts[shards]))
        return self._epochs[epoch]

    def index(self, place: Place) -> int:
        share, lane = divmod(place.lane, self.num_lanes)
        first, end = (self.count * edge // self.num_lanes for edge in (lane, lane + 1))
        epoch, at = divmod(place.offset * self._share + share, end - first)
        window, inside = divmod(at, self.window)
        size = min(self.window, end - first - window * self.window)
        key = draw_key(self.seed, f"window/{epoch}/{lane}", window)
        at = first + window * self.window + permute(key, size, inside)
        line = self._epoch(epoch)
        number = int(np.searchsorted(line.ends, at, side="right"))
        shard = int(line.shards[number])
        return int(self.starts[shard] + at - (line.ends[number] - self.counts[shard]))
