"""The order of a run: a function of (seed, k) that takes every sample once an epoch, holds the weights, and stays local."""

import itertools
from collections import Counter

import numpy as np
import pytest

from pretrain.data.order import UNIT, InOrder, Mixture, ShardOrder, Shuffled
from pretrain.rng import draw_key, permute
from pretrain.types import UserError


@pytest.mark.parametrize("count", [1, 2, 3, 16, 100, 1000, 1025])
def test_permute_is_a_permutation(count):
    assert sorted(permute(draw_key(0, "x", 1), count, index) for index in range(count)) == list(range(count))


def test_permutations_are_spread_evenly():
    """Where 0 goes, and what follows what, over 4,000 keys: chi-square below its 99.9% point, 26.1 with 8 degrees."""
    places = Counter(permute(draw_key(0, "x", key), 9, 0) for key in range(4000))
    assert sum((places[place] - 4000 / 9) ** 2 / (4000 / 9) for place in range(9)) < 26.1
    steps = Counter(
        (permute(draw_key(0, "y", key), 9, 1) - permute(draw_key(0, "y", key), 9, 0)) % 9 for key in range(4000)
    )
    assert steps[0] == 0
    assert sum((steps[step] - 500) ** 2 / 500 for step in range(1, 9)) < 26.1


def run(order, mixture, count, first=0):
    return [order.index(mixture.place(k)) for k in range(first, first + count)]


@pytest.mark.parametrize(
    "order", [InOrder(100), Shuffled(100, seed=3), ShardOrder([40, 1, 59], seed=3, num_lanes=1, window=16)]
)
def test_an_epoch_takes_every_sample_once(order):
    mixture = Mixture([1.0], seed=3, num_lanes=1)
    epochs = [run(order, mixture, 100, first) for first in (0, 100, 200)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    if not isinstance(order, InOrder):
        assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("num_lanes", [1, 4, 6])
@pytest.mark.parametrize("counts", [[1000] * 8, [10, 3000, 700, 0, 1]])
def test_every_lane_goes_through_its_own_part(num_lanes, counts):
    """All lanes together take each sample once, in their first epoch, whatever the shards' sizes are."""
    order = ShardOrder(counts, seed=1, num_lanes=num_lanes, window=64)
    mixture = Mixture([1.0], seed=1, num_lanes=num_lanes)
    total = sum(counts)
    taken = Counter()
    for k in range(2 * total):
        place = mixture.place(k)
        lane = place.lane % order.num_lanes
        length = total * (lane + 1) // order.num_lanes - total * lane // order.num_lanes
        step = place.offset * (num_lanes // order.num_lanes) + place.lane // order.num_lanes
        if step < length:
            taken[order.index(place)] += 1
    assert sorted(taken) == list(range(total))
    assert set(taken.values()) == {1}


def test_few_samples_share_few_lanes_and_are_shuffled_all_the_same():
    order = ShardOrder([50, 50], seed=1, num_lanes=64, window=100)
    assert order.num_lanes == 1
    epoch = run(order, Mixture([1.0], seed=1, num_lanes=64), UNIT * 64)
    assert Counter(Counter(epoch).values()).keys() <= {10, 11}  # 1,024 samples of 100
    first = np.array(epoch[:100])
    assert abs(np.corrcoef(first, np.arange(100))[0, 1]) < 0.3


def test_a_source_that_holds_much_in_memory_has_few_lanes():
    order = ShardOrder([1000] * 64, seed=1, num_lanes=64, window=100, max_lanes=5)
    assert order.num_lanes == 4
    mixture = Mixture([1.0], seed=1, num_lanes=64)
    assert len(set(run(order, mixture, 63_000))) == 63_000, "nothing comes twice within an epoch"
    standing = {order.index(mixture.place(k)) // 1000 for k in range(64 * UNIT)}
    assert len(standing) <= 2 * 4 * 2


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_worker_reads_each_shard_once_and_in_sequence(workers):
    """32 lanes are a multiple of the readers: a shard is read by one, but for those in which a lane begins or ends."""
    counts, window = [100] * 128, 20
    order = ShardOrder(counts, seed=5, num_lanes=32, window=window)
    mixture = Mixture([1.0], seed=5, num_lanes=32)
    readers: dict[int, set[int]] = {}
    reading: dict[tuple[int, int], list[int]] = {}
    for k in range(sum(counts)):
        place = mixture.place(k)
        index = order.index(place)
        reader = (k // UNIT) % workers
        readers.setdefault(index // 100, set()).add(reader)
        reading.setdefault((reader, place.lane), []).append(index)
    assert all(len(who) == 1 for who in readers.values())
    for indices in reading.values():  # one lane of one reader
        shards = [index // 100 for index in indices]
        assert len([1 for a, b in itertools.pairwise(shards) if a != b]) == len(set(shards)) - 1, "a shard is left once"
        assert max(abs(index % 100 - at % 100) for at, index in enumerate(indices)) < window
        assert indices != sorted(indices)


def test_another_number_of_workers_or_ranks_changes_nothing():
    """The order has no such argument; what could differ is the batch, which is cut from the same line."""
    order = ShardOrder([100] * 10, seed=5, num_lanes=8, window=50)
    mixture = Mixture([2, 1], seed=5, num_lanes=8)
    whole = [mixture.place(k) for k in range(400)]
    again = [mixture.place(k) for k in reversed(range(400))][::-1]
    assert whole == again
    fresh = ShardOrder([100] * 10, seed=5, num_lanes=8, window=50)
    assert [order.index(place) for place in whole] == [fresh.index(place) for place in reversed(whole)][::-1]


def test_table_2_of_the_paper_holds_to_the_sample():
    """Shares of DFN-2B alt and synthetic, COYO, HQITP alt and synthetic: 30, 30, 9, 28, 3 of 100 (Table 2)."""
    mixture = Mixture([0.30, 0.30, 0.09, 0.28, 0.03], seed=0, num_lanes=1)
    for first in (0, 5000):
        counts = Counter(mixture.place(k).source for k in range(first, first + 1000))
        assert counts == {0: 300, 1: 300, 2: 90, 3: 280, 4: 30}
    mixture = Mixture([0.30, 0.09], seed=0, num_lanes=4)  # the public share: 10/13 and 3/13
    counts = Counter(mixture.place(k).source for k in range(52_000))
    assert counts[0] == pytest.approx(40_000, abs=4)


@pytest.mark.parametrize("weights", [[1, 1], [0.5, 0.3, 0.2], [0.9985, 0.0005, 0.001], [3e-4, 1]])
@pytest.mark.parametrize("num_lanes", [1, 3])
def test_each_source_is_taken_in_order_without_a_gap(weights, num_lanes):
    mixture = Mixture(weights, seed=2, num_lanes=num_lanes)
    taken: dict[tuple[int, int], list[int]] = {}
    rounds = 3 * mixture.block if mixture.block < 10_000 else mixture.block
    rounds = -(-rounds // UNIT) * UNIT  # whole units, so that all lanes have been dealt alike
    for k in range(rounds * num_lanes):
        place = mixture.place(k)
        taken.setdefault((place.source, place.lane), []).append(place.offset)
        assert place.position == place.offset * num_lanes + place.lane
    assert {source for source, _ in taken} == set(range(len(weights)))
    whole = rounds // mixture.block * mixture.block
    for offsets in taken.values():
        assert len(set(offsets)) == len(offsets)
    for lane in range(num_lanes):  # up to the last whole block of a lane there is no gap
        for source in range(len(weights)):
            upto = mixture._dealt(source, whole // mixture.block, lane)
            before = mixture._dealt(source - 1, whole // mixture.block, lane) if source else 0
            assert set(range(upto - before)) <= set(taken[source, lane])


def test_neighbours_come_from_all_sources():
    mixture = Mixture([0.5, 0.5], seed=0, num_lanes=64)
    sources = [mixture.place(k).source for k in range(64)]
    assert 16 <= sum(sources) <= 48
    assert sources != [mixture.place(k + 64 * UNIT).source for k in range(64)]


@pytest.mark.parametrize(
    ("weights", "lanes", "word"), [([1, 0], 1, "weight is 0"), ([1, -1], 1, "-1"), ([1], 0, "num_lanes=0")]
)
def test_bad_mixtures(weights, lanes, word):
    with pytest.raises(UserError, match=word):
        Mixture(weights, seed=0, num_lanes=lanes)
