"""Work on every sample of a source, in its order: read in one thread, worked on in many."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from pretrain.data.faults import FaultLog
from pretrain.data.samples import Source, StoredSample
from pretrain.data.storage import BadSample
from pretrain.types import Fault

T = TypeVar("T")

#: How far ahead a source that fetches is told to get ready, in samples.
_AHEAD = 2_000
_AHEAD_EVERY = 100
#: Samples after which the share of unusable ones is looked at.
_CHUNK = 100


@dataclass(frozen=True)
class Examined(Generic[T]):
    """A sample and what came of it; either `fault` is None or all else but `index` is.

    Attributes:
        index: the sample's number in the source.
        stored: the sample as it is stored.
        result: what the work on it returned.
        fault: why it cannot be used.
    """

    index: int
    stored: StoredSample | None = None
    result: T | None = None
    fault: Fault | None = None


def examine(
    source: Source, work: Callable[[StoredSample], T], *, first: int = 0, end: int | None = None
) -> Iterator[Examined[T]]:
    """Samples `first` to `end` - 1 in order, each with the result of `work`, or the fault that reading or `work` raised.

    Args:
        source: where they come from; read in this thread alone.
        work: called in threads (Pillow decodes outside Python's lock); raises BadSample for a sample that cannot be used.
        first: the first sample.
        end: the last one + 1; the source's end where None.
    """
    end = len(source) if end is None else end

    def one(index: int, stored: StoredSample) -> Examined[T]:
        try:
            return Examined(index, stored, work(stored))
        except BadSample as bad:
            return Examined(index, fault=bad.fault)

    def tasks() -> Iterator[Future[Examined[T]]]:
        for index in range(first, end):
            if source.prefetches and index % _AHEAD_EVERY == 0:
                source.prefetch(min(index + _AHEAD, end - 1))
            try:
                yield pool.submit(one, index, source.read(index))
            except BadSample as bad:
                done: Future[Examined[T]] = Future()
                done.set_result(Examined(index, fault=bad.fault))
                yield done

    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        running, ahead = tasks(), deque[Future[Examined[T]]]()
        ahead.extend(islice(running, 2 * threads))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(islice(running, 1))


def counted(items: Iterable[Examined[T]], log: FaultLog) -> Iterator[Examined[T]]:
    """The items as they come; `log` records them, and raises UserError where too many of them are faults."""
    attempts, faults = 0, list[Fault]()
    for item in items:
        attempts += 1
        if item.fault is not None:
            faults.append(item.fault)
        if attempts == _CHUNK:
            log.record(attempts, faults)
            attempts, faults = 0, []
        yield item
    log.record(attempts, faults)
