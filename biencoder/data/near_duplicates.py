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
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from biencoder import environment
from biencoder.data.ids import Ids
from biencoder.data.texts import texts_sha256

_LEAST_SHARED = 0.5
_WORDS = 3
_BANDS, _ROWS = 42, 3
"""A pair with Jaccard index j is compared with a probability of 1 - (1 - j^rows)^bands."""
_WORD = re.compile(r"\w+")
_KEPT_FROM = 5_000
"""Texts from which on groups are kept: finding them takes seconds."""
_FORMAT = 2
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
    groups = _Groups(len(texts))
    for hash_N in _band_hashes(texts):
        order_N = np.argsort(hash_N, kind="stable")
        starts = np.flatnonzero(np.diff(hash_N[order_N], prepend=hash_N[order_N[:1]] + 1))
        sizes = np.diff(starts, append=len(order_N))
        for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
            _join(order_N[start : start + size].tolist(), texts, groups)
    return groups.lowest()


def _band_hashes(texts: Sequence[str]) -> npt.NDArray[np.uint32]:
    """Of each text (B, N). Two texts are compared where they agree in a band, by chance once in 4 billion."""
    from datasketch import MinHash  # a quarter of a second, which only those wait for who need it

    hash_BN = np.empty((_BANDS, len(texts)), dtype=np.uint32)
    sketches = MinHash.generator((_triples(text) for text in texts), num_perm=_BANDS * _ROWS, seed=1)
    mixing_R = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
    for number, sketch in enumerate(sketches):
        hash_BN[:, number] = (sketch.hashvalues.reshape(_BANDS, _ROWS) * mixing_R).sum(1) >> np.uint64(32)
    return hash_BN


class _Groups:
    """Disjoint sets of texts. Each is known by its lowest number."""

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


def _join(alike: Sequence[int], texts: Sequence[str], groups: _Groups) -> None:
    """Join those that are near-duplicates. A text is compared with each other group, up to the first that is near."""
    members: dict[int, list[int]] = defaultdict(list)
    for text in alike:
        for others in members.values():
            if groups.of(others[0]) != groups.of(text) and any(_are_near(texts[other], texts[text]) for other in others):
                groups.join(others[0], text)
        members[groups.of(text)].append(text)


def _triples(text: str) -> set[bytes]:
    """The text's word triples; a text of fewer words counts as one triple."""
    words = _WORD.findall(text.lower()) or [text]
    return {" ".join(words[start : start + _WORDS]).encode() for start in range(max(1, len(words) - _WORDS + 1))}


def _are_near(one: str, other: str) -> bool:
    first, second = _triples(one), _triples(other)
    return len(first & second) / len(first | second) >= _LEAST_SHARED
