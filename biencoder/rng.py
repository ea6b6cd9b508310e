"""One seed, named streams: every random draw is a function of (seed, purpose, epoch, position) and of nothing else.

Neither the number of ranks, nor what ran before, nor the order of calls can change a draw. Dropout's masks are the
exception: PyTorch draws them for a whole micro-batch, from a seed that holds step, rank and the micro-batch's number. Whole
arrays are drawn at once by hashing counters, so a draw for sample 7 does not depend on how many other samples there are.

    >>> uniforms(seed=0, purpose="negative", epoch=3, positions_N=np.arange(2)).shape
    (2,)
"""

import zlib

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix_N(values_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection of 64-bit words that avalanches."""
    with np.errstate(over="ignore"):
        values_N = (values_N ^ (values_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values_N = (values_N ^ (values_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values_N ^ (values_N >> np.uint64(31))


def stream_seed(seed: int, purpose: str, *path: int) -> int:
    """A 63-bit seed for a library's own generator, distinct for each (seed, purpose, path)."""
    state = np.array([seed], dtype=np.uint64)
    for word in (zlib.crc32(purpose.encode()), *path):
        with np.errstate(over="ignore"):
            state = _mix_N(state + _GOLDEN + np.uint64(word))
    return int(state[0] >> np.uint64(1))


def uniforms(
    *, seed: int, purpose: str, epoch: int, positions_N: npt.NDArray[np.int64], draw: int = 0
) -> npt.NDArray[np.float64]:
    """One uniform number in [0, 1) for each position; `draw` numbers repeated draws for the same position."""
    base = np.uint64(stream_seed(seed, purpose, epoch, draw))
    with np.errstate(over="ignore"):
        bits_N = _mix_N(base + _GOLDEN * (positions_N.astype(np.uint64) + np.uint64(1)))
    return (bits_N >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(*, seed: int, purpose: str, epoch: int, size: int) -> npt.NDArray[np.int64]:
    """A permutation of range(size) that depends on (seed, purpose, epoch) only."""
    return np.random.Generator(np.random.Philox(stream_seed(seed, purpose, epoch))).permutation(size)
