"""Groups of near-duplicates: texts that are edited, shortened or rearranged copies of one another.

    same_N = near_duplicates(dataset.texts)
    same_N[i] == same_N[j]          # whether texts i and j are nearly the same

Two texts are near-duplicates if the Jaccard index of their word triples is at least 0.5. Texts that a chain of
near-duplicates joins are one group. MinHash sketches (Broder 1997) and locality-sensitive hashing propose the pairs to
compare, in time proportional to the number of texts, also where many texts share a sentence. Each proposed pair is then
compared exactly, so no two texts are grouped by chance. A pair at 0.5 is proposed with a probability of 99.6 %, and a pair
at 0.7 or more almost surely. The same texts in the same order give the same groups.

The groups of a large corpus are kept on disk, named by a hash of its texts.

N: texts, B: bands of a sketch, R: rows of a band.
"""

import re
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from biencoder import environment
from biencoder.data.ids import Ids
from biencoder.data.texts import texts_sha256

_LEAST_SHARED = 0.5
_WORDS = 3
_BANDS, _ROWS = 42, 3
"""A pair with Jaccard index j is compared with a probability of 1 - (1 - j^rows)^bands."""
_MIXING = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
"""Odd, for each row of a band."""
_WORD = re.compile(r"\w+")
_KEPT_FROM = 5_000
"""Texts from which on groups are kept: finding them takes seconds."""
_FORMAT = 1
"""Of what is kept; another number where the same texts would give other groups."""


def near_duplicates(texts: Sequence[str]) -> Ids:
    """For each text (N,) the lowest number in its group; a text without near-duplicates is a group of its own."""
    if len(texts) < _KEPT_FROM:
        return _find(texts)
    file = environment.cache_folder() / "near-duplicates" / f"{_name(texts)}.npy"
    group_N = _read(file, len(texts))
    if group_N is None:
        group_N = _find(texts)
        with suppress(OSError):  # what cannot be kept is found again
            _write(file, group_N)
    return group_N


def _name(texts: Sequence[str]) -> str:
    return texts_sha256([f"{_FORMAT} {_LEAST_SHARED} {_WORDS} {_BANDS} {_ROWS}", texts_sha256(texts)])[:32]


def _read(file: Path, num_texts: int) -> Ids | None:
    """What is kept in the file; None if that is nothing, or not whole."""
    try:
        group_N: Ids = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return group_N if group_N.shape == (num_texts,) and group_N.dtype == np.int64 else None


def _write(file: Path, group_N: Ids) -> None:
    """Write beside the file, then rename, so that nobody reads half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as beside:
        fresh = Path(beside) / file.name
        np.save(fresh, group_N)
        fresh.replace(file)


def _find(texts: Sequence[str]) -> Ids:
    hash_BN, groups = _band_hashes(texts), _Groups(len(texts))
    kept_M = _without_copies(hash_BN, texts, groups)
    for band in range(_BANDS):
        for alike in _agreeing(hash_BN[band, kept_M]):
            _join(kept_M[alike], hash_BN[:band], texts, groups)
    return groups.lowest()


def _agreeing(hash_N: npt.NDArray[np.unsignedinteger[Any]]) -> Iterator[Ids]:
    """The places of each hash that stands in several, ascending."""
    order_N = np.argsort(hash_N, kind="stable")
    starts = np.flatnonzero(np.diff(hash_N[order_N], prepend=hash_N[order_N[:1]] + 1))
    sizes = np.diff(starts, append=len(order_N))
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        yield order_N[start : start + size]


def _without_copies(hash_BN: npt.NDArray[np.uint32], texts: Sequence[str], groups: "_Groups") -> Ids:
    """Join texts of the very same triples, which agree in all bands; the first of them, and all others."""
    whole_N, is_first_N = np.zeros(len(texts), dtype=np.uint64), np.full(len(texts), True)
    for hash_N in hash_BN:
        whole_N = whole_N * np.uint64(_MIXING[0]) + hash_N
    for alike in _agreeing(whole_N):
        first_of: dict[frozenset[bytes], int] = {}
        for text in alike.tolist():
            first = first_of.setdefault(frozenset(_triples(texts[text])), text)
            if first != text:
                groups.join(first, text)
                is_first_N[text] = False
    return np.flatnonzero(is_first_N)


def _band_hashes(texts: Sequence[str]) -> npt.NDArray[np.uint32]:
    """Of each text (B, N). Two texts are compared where they agree in a band; one pair in 4 billion does by chance."""
    from datasketch import MinHash  # a quarter of a second, which only those wait for who need it

    hash_BN = np.empty((_BANDS, len(texts)), dtype=np.uint32)
    sketches = MinHash.generator((_triples(text) for text in texts), num_perm=_BANDS * _ROWS, seed=1)
    mixing_R = np.array(_MIXING, dtype=np.uint64)
    for number, sketch in enumerate(sketches):
        hash_BN[:, number] = (sketch.hashvalues.reshape(_BANDS, _ROWS) * mixing_R).sum(1) >> np.uint64(32)
    return hash_BN


class _Groups:
    """Disjoint sets of texts, each known by its lowest number, in 8 bytes a text: SciPy's keep Python objects of each."""

    def __init__(self, num_texts: int) -> None:
        self._parent = array("q", range(num_texts))

    def of(self, text: int) -> int:
        parent = self._parent
        while parent[text] != text:
            parent[text] = text = parent[parent[text]]
        return text

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.of(one), self.of(other)))
        self._parent[high] = low

    def lowest(self) -> Ids:
        """Of each text's group (N,)."""
        return np.array([self.of(text) for text in range(len(self._parent))], dtype=np.int64)


def _join(alike: Ids, earlier_bN: npt.NDArray[np.uint32], texts: Sequence[str], groups: _Groups) -> None:
    """Join those that are near-duplicates, comparing texts of different groups.

    Args:
        earlier_bN: hashes of the bands before this one; who agrees there has been compared.
    """
    numbers = alike.tolist()
    if len({groups.of(text) for text in numbers}) == 1:
        return
    earlier_bn = earlier_bN[:, alike]
    for place, text in enumerate(numbers):
        compared = (earlier_bn[:, :place] == earlier_bn[:, [place]]).any(0).tolist()
        for other, done in zip(numbers[:place], compared, strict=True):
            if not done and groups.of(other) != groups.of(text) and _are_near(texts[other], texts[text]):
                groups.join(other, text)


def _triples(text: str) -> set[bytes]:
    """The text's word triples; a text of fewer words counts as one triple."""
    words = _WORD.findall(text.lower()) or [text]
    return {" ".join(words[start : start + _WORDS]).encode() for start in range(max(1, len(words) - _WORDS + 1))}


def _are_near(one: str, other: str) -> bool:
    first, second = _triples(one), _triples(other)
    return len(first & second) / len(first | second) >= _LEAST_SHARED
