"""Groups of near-duplicates: texts that are edited, shortened or rearranged copies of one another.

    same_N = near_duplicates(dataset.texts)
    same_N[i] == same_N[j]          # whether texts i and j are nearly the same

Two texts are near-duplicates if the Jaccard index of their word triples is at least 0.5. Texts that a chain of
near-duplicates joins are one group. MinHash sketches (Broder 1997) and locality-sensitive hashing propose the pairs to
compare, in time proportional to the number of texts, also where many texts share a sentence. Each proposed pair is then
compared exactly, so no two texts are grouped by chance. A pair at 0.5 is proposed with a probability of 99.6 %, and a pair
at 0.7 or more almost surely. The same texts in the same order give the same groups.

The groups of a large corpus are kept on disk, named by a hash of its texts.

N: texts.
"""

import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

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
    from datasketch import MinHash, MinHashLSH  # half a second, which only those wait for who need it
    from scipy.cluster.hierarchy import DisjointSet

    groups = DisjointSet(range(len(texts)))
    index = MinHashLSH(params=(_BANDS, _ROWS), num_perm=_BANDS * _ROWS)
    sketches = MinHash.generator((_triples(text) for text in texts), num_perm=_BANDS * _ROWS, seed=1)
    for number, sketch in enumerate(sketches):
        for other in sorted(index.query(sketch)):
            if not groups.connected(other, number) and _shared(texts[other], texts[number]) >= _LEAST_SHARED:
                groups.merge(other, number)
        index.insert(number, sketch)
    group_N = np.empty(len(texts), dtype=np.int64)
    for members in groups.subsets():
        group_N[list(members)] = min(members)
    return group_N


def _triples(text: str) -> set[bytes]:
    """The text's word triples; a text of fewer words counts as one triple."""
    words = _WORD.findall(text.lower()) or [text]
    return {" ".join(words[start : start + _WORDS]).encode() for start in range(max(1, len(words) - _WORDS + 1))}


def _shared(one: str, other: str) -> float:
    """The Jaccard index of two texts' word triples."""
    first, second = _triples(one), _triples(other)
    return len(first & second) / len(first | second)
