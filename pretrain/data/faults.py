"""Skipped samples are counted, shown at the end, and bounded."""

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from pretrain.types import Fault, UserError

_NUM_EXAMPLES = 3


class _Tally:
    """Faults by kind, with the first few names of each kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, fault: Fault) -> None:
        self.counts[fault.kind] += 1
        examples = self.examples.setdefault(fault.kind, [])
        if len(examples) < _NUM_EXAMPLES and fault.key not in examples:
            examples.append(fault.key)

    def describe(self, counts: Counter[str]) -> str:
        parts = []
        for kind, count in counts.most_common():
            names = self.examples[kind]
            more = ", ..." if self.counts[kind] > len(names) else ""
            parts.append(f"{count:,} {kind.replace('_', ' ')} ({', '.join(names)}{more})")
        return ", ".join(parts)


class FaultLog:
    """Counts what a run skips, and stops it where that is too much of what it tried lately.

    Args:
        bound: largest share of faults among the last `window` attempts.
        window: attempts that the share is taken over; whole chunks are kept, so that it covers up to one chunk more.
        min_seen: attempts that the share refers to at least, so that one bad file at the start stops nothing.
        field: what the user sets the bound by.

    Attributes:
        attempts: samples tried so far.
    """

    def __init__(
        self,
        bound: float = 0.05,
        *,
        window: int = 10_000,
        min_seen: int = 1_000,
        field: str = "data.max_fault_share",
    ) -> None:
        if not 0 <= bound <= 1:
            raise UserError(f"{field}: {bound} is not a share; give a number from 0 to 1")
        if window < 1 or min_seen < 1:
            raise ValueError(f"FaultLog: window={window} and min_seen={min_seen} have to be at least 1")
        self.bound, self.window, self.min_seen, self.field = bound, window, min_seen, field
        self.attempts = 0
        self._skipped, self._index = _Tally(), _Tally()
        self._chunks: deque[tuple[int, dict[str, int]]] = deque()  # attempts, faults by kind
        self._in_window = 0

    @property
    def counts(self) -> dict[str, int]:
        """All faults by kind, those found while indexing included."""
        return dict(self._skipped.counts + self._index.counts)

    def record(self, attempts: int, faults: Iterable[Fault]) -> None:
        """Add a chunk of `attempts` samples of which `faults` were skipped.

        With 0 attempts, the faults are of the index (truncated tars): they are shown, but have no share in the bound.

        Raises:
            UserError: the share of faults in the window is beyond the bound.
        """
        faults = list(faults)
        if attempts < 0:
            raise ValueError(f"FaultLog.record: attempts={attempts} is negative")
        for fault in faults:
            (self._skipped if attempts else self._index).add(fault)
        if not attempts:
            return
        self.attempts += attempts
        self._in_window += attempts
        self._chunks.append((attempts, dict(Counter(fault.kind for fault in faults))))
        while self._in_window - self._chunks[0][0] >= self.window:
            self._in_window -= self._chunks.popleft()[0]
        if faults:
            self._check()

    def _check(self) -> None:
        counts: Counter[str] = Counter()
        for _, chunk in self._chunks:
            counts.update(chunk)
        skipped, seen = counts.total(), self._in_window
        if skipped <= self.bound * max(seen, self.min_seen):
            return
        raise UserError(
            f"{self.field}: {skipped:,} of the last {seen:,} samples could not be used ({skipped / seen:.2%}, "
            f"allowed are {self.bound:.2%}): {self._skipped.describe(counts)}; repair the data or raise the bound"
        )

    def summary(self) -> str:
        """One line for the end of a run."""
        parts = []
        if total := self._skipped.counts.total():
            details = self._skipped.describe(self._skipped.counts)
            parts.append(f"skipped {total:,} of {self.attempts:,} samples: {details}")
        if self._index.counts:
            parts.append(f"found while indexing: {self._index.describe(self._index.counts)}")
        return "; ".join(parts) or "nothing skipped"

    def state_dict(self) -> dict[str, Any]:
        """Plain Python. Without the faults of the index, which a resumed run finds anew."""
        return {
            "attempts": self.attempts,
            "counts": dict(self._skipped.counts),
            "examples": {kind: list(names) for kind, names in self._skipped.examples.items()},
            "chunks": [[attempts, dict(kinds)] for attempts, kinds in self._chunks],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; bound, window and the faults of the index stay as they are here."""
        self.attempts = state["attempts"]
        self._skipped = _Tally()
        self._skipped.counts.update(state["counts"])
        self._skipped.examples = {kind: list(names) for kind, names in state["examples"].items()}
        self._chunks = deque((attempts, dict(kinds)) for attempts, kinds in state["chunks"])
        self._in_window = sum(attempts for attempts, _ in self._chunks)
