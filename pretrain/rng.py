"""Draws that are functions of (seed, stream, the sample's number in the run), and of nothing else.

No draw depends on a rank, a worker, a micro-batch or on a generator's history, so that resuming a run, adding
workers or spreading it over devices changes nothing (DESIGN, "Randomness"). The hash is the SplitMix64 finaliser
(Steele, Lea & Flood, OOPSLA 2014), applied once per word. One version for Python integers, one for torch tensors on
any device; a test holds them equal.
"""

import zlib

import numpy as np
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA, _M1, _M2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix(x: int) -> int:
    x = (x + _GAMMA) & _MASK
    x = ((x ^ (x >> 30)) * _M1) & _MASK
    x = ((x ^ (x >> 27)) * _M2) & _MASK
    return x ^ (x >> 31)


def _stream_state(seed: int, stream: str) -> int:
    return _mix(_mix(seed & _MASK) ^ zlib.crc32(stream.encode()))


def draw_key(seed: int, stream: str, position: int, attempt: int = 0) -> int:
    """64-bit key of the draw `stream` for the sample `position`; `attempt` numbers repeated draws for that sample."""
    key = _mix(_stream_state(seed, stream) ^ (position & _MASK))
    return _mix(key ^ attempt) if attempt else key


def draw_rng(seed: int, stream: str, position: int, attempt: int = 0) -> np.random.Generator:
    """NumPy generator for all the numbers that `stream` needs for the sample `position`."""
    return np.random.Generator(np.random.Philox(key=draw_key(seed, stream, position, attempt)))


def draw_integer(seed: int, stream: str, position: int, low: int, high: int, attempt: int = 0) -> int:
    """Integer uniform on low..high, both ends included; equal to :func:`draw_integers` on the same position."""
    return low + (((draw_key(seed, stream, position, attempt) >> 33) * (high - low + 1)) >> 31)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch's >> on int64 copies the sign bit; the hash wants zeros there
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix_tensor(x: Tensor) -> Tensor:
    x = x + _signed(_GAMMA)
    x = (x ^ _shift_right(x, 30)) * _signed(_M1)
    x = (x ^ _shift_right(x, 27)) * _signed(_M2)
    return x ^ _shift_right(x, 31)


def draw_integers(seed: int, stream: str, position_B: Tensor, low: int, high: int) -> Tensor:
    """Integers uniform on low..high, both ends included.

    Args:
        seed: the run's seed.
        stream: name of the draw, e.g. "prefix".
        position_B: int64 [B], the samples' numbers in the run, on any device (nothing is copied to the host).
        low: smallest value.
        high: largest value, at least `low`.

    Returns:
        int64 [B] on the device of `position_B`.
    """
    if high < low:
        raise ValueError(f"draw_integers: high={high} is below low={low}")
    key = _mix_tensor(position_B ^ _signed(_stream_state(seed, stream)))
    return low + ((_shift_right(key, 33) * (high - low + 1)) >> 31)


_FEISTEL_ROUNDS = 8


def permute(key: int, count: int, index: int) -> int:
    """Image of `index` under the permutation of 0..count-1 that `key` names, without a table.

    A Feistel network (Luby & Rackoff, SIAM J. Comput. 1988) over the next even number of bits, walked until the value
    lies below `count` (at most four times as many values, so fewer than four steps on average).

    Args:
        key: 64 bits, of :func:`draw_key`.
        count: how many values there are, at least 1.
        index: 0..count-1.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for round_number in range(_FEISTEL_ROUNDS):
            left, right = right, left ^ (_mix(key ^ (right << 8 | round_number)) & low)
        index = left << half | right
        if index < count:
            return index
