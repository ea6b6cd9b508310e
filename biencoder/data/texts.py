"""Texts outside of Python's memory: their bytes in one block, which is a mapped file where it is large.

    pile = Pile()
    for text in ("a", "b", "a"):
        pile.add(text)
    texts, text_id_M = pile.distinct()        # "a", "b" and 0, 1, 0

A text costs its bytes and 16 more, and is a `str` only while somebody looks at it. The file has no name, so nothing is left
of it, whatever ends the process. The ranks of a machine share one (`Texts.share`).

M: texts of a pile, with copies, N: distinct ones, T: bytes.
"""

import hashlib
import io
import operator
import os
import sys
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from biencoder import environment
from biencoder.data.ids import Ids
from biencoder.distributed.world import World

IN_MEMORY = 64 * 2**20
"""Bytes above which a pile goes to a file in the cache folder."""
_DIGEST = 16
"""Bytes of a text's hash: two of 10^12 different texts agree with a probability of 10^-15."""

Block = npt.NDArray[np.uint8]


class Texts(Sequence[str]):
    """Distinct texts; text n is `block_T[start_N[n] : end_N[n]]` in UTF-8."""

    def __init__(self, block_T: Block, start_N: Ids, end_N: Ids, file: "_File | None", content: bytes) -> None:
        """
        Args:
            file: what the block is mapped from; None: it is in memory.
            content: equal for two blocks exactly when they hold the same.
        """
        self._block_T, self._start_N, self._end_N = block_T, start_N, end_N
        self._file, self._content = file, content

    def __len__(self) -> int:
        return len(self._start_N)

    __hash__ = None  # type: ignore[assignment]  # as that of a list

    @overload
    def __getitem__(self, place: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: SupportsIndex | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return self._block_T[self._start_N[place] : self._end_N[place]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    def of(self, text_ids: Ids) -> "Texts":
        """These alone, in this order; each must be named once."""
        start_N, end_N = self._start_N[text_ids], self._end_N[text_ids]
        return Texts(self._block_T, start_N, end_N, self._file, self._content)

    def share(self, world: World) -> None:
        """Map the file of the machine's first rank instead of a copy of one's own. Every rank takes part.

        A rank that cannot open it, or has read something else, keeps its own.
        """
        here = world.hosts[world.rank], self._content
        descriptor = self._file.fileno() if self._file else -1
        told = world.all_gather_object((here, os.getpid(), descriptor, _identity(self._file)))
        first, pid, number, identity = next(other for other in told if other[0][0] == here[0])
        if identity and self._file and first == here and identity != _identity(self._file):
            with suppress(OSError):
                file = _File(f"/proc/{pid}/fd/{number}")
                if _identity(file) == identity:  # another container has other process numbers
                    self._block_T, self._file = np.memmap(file, np.uint8, "r", shape=self._block_T.shape), file
        world.together(lambda: None)  # the first may close its file only now


class Pile:
    """Texts that are being read, in the order of their reading."""

    def __init__(self) -> None:
        self._in_memory = IN_MEMORY
        self._buffer, self._written = bytearray(), 0
        self._file: _File | None = None
        self._end_M, self._digest_M = array("q"), bytearray()

    def __len__(self) -> int:
        return len(self._end_M)

    def add(self, text: str) -> int:
        """Put a text on the pile.

        Returns:
            Its place.
        """
        utf8 = text.encode()
        self._buffer += utf8
        self._digest_M += hashlib.blake2b(utf8, digest_size=_DIGEST).digest()
        self._end_M.append(self._written + len(self._buffer))
        if len(self._buffer) > self._in_memory:
            self._spill()
        return len(self._end_M) - 1

    def add_all(self, texts: Iterable[str]) -> range:
        """Put texts on the pile.

        Returns:
            Their places.
        """
        start = len(self)
        for text in texts:
            self.add(text)
        return range(start, len(self))

    def distinct(self, place_O: Ids | None = None) -> tuple[Texts, Ids]:
        """The texts at these places, each once, in the order in which they come first; and the text id of each of these
        places (O,). The pile is used up.

        Args:
            place_O: None: all places, in their order.
        """
        if self._file:
            self._spill()
        block_T = np.memmap(self._file, np.uint8, "r") if self._file else np.frombuffer(self._buffer, np.uint8)
        end_M = np.frombuffer(self._end_M, dtype=np.int64)
        start_M = np.concatenate([np.zeros(1, dtype=np.int64), end_M])[:-1]
        place_O = np.arange(len(end_M)) if place_O is None else place_O
        digest_M2 = np.frombuffer(self._digest_M, dtype=np.uint64).reshape(-1, 2)
        first_N, text_id_O = _numbered(digest_M2[place_O])
        place_N = place_O[first_N]
        content = hashlib.blake2b(self._digest_M, digest_size=_DIGEST).digest()
        return Texts(block_T, start_M[place_N], end_M[place_N], self._file, content), text_id_O

    def _spill(self) -> None:
        """Move the buffer to the file. Where that cannot be done, all goes on in memory."""
        try:
            if self._file is None:
                self._file = _file_without_name()
            rest = memoryview(self._buffer)
            while rest:
                rest = rest[self._file.write(rest) :]
            rest.release()
            self._written += len(self._buffer)
            self._buffer = bytearray()
        except OSError:
            before = np.memmap(self._file, np.uint8, "r", shape=self._written) if self._file and self._written else b""
            self._buffer, self._file = bytearray(before) + self._buffer, None
            self._written, self._in_memory = 0, sys.maxsize


class Sources:
    """Where texts were read: `file:line` each, in eight bytes of memory; or the path of a file of one text."""

    def __init__(self) -> None:
        self._line_M = array("q")
        self._file: list[str] = []
        self._first: list[int] = []
        """The first place of each file."""

    def add(self, source: str) -> None:
        file, _, line = source.rpartition(":")
        if not line.isdecimal() or str(int(line)) != line:
            file, line = source, "-1"
        if self._file[-1:] != [file]:
            self._file.append(file)
            self._first.append(len(self._line_M))
        self._line_M.append(int(line))

    def __getitem__(self, place: int) -> str:
        file, line = self._file[bisect_right(self._first, place) - 1], self._line_M[place]
        return f"{file}:{line}" if line >= 0 else file


def terminated(text: str) -> bytes:
    """The text as UTF-8 with a zero byte at its end and nowhere else, so that a hash of several texts sees their ends."""
    return text.encode().replace(b"\x00", b"\xff") + b"\x00"  # UTF-8 never contains 0xff


def texts_sha256(texts: Iterable[str]) -> str:
    """Equal for the same texts in the same order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(terminated(text))
    return digest.hexdigest()


def copies(number_M: Ids) -> Ids:
    """The places whose number came before, where numbers are given in the order of their first places."""
    largest_M1 = np.maximum.accumulate(np.concatenate([np.full(1, -1, dtype=np.int64), number_M]))
    return np.flatnonzero(number_M <= largest_M1[:-1])


class _File(io.FileIO):
    """Is closed when nobody holds it any more."""

    def __del__(self) -> None:
        self.close()


def _identity(file: _File | None) -> tuple[int, int] | None:
    status = os.fstat(file.fileno()) if file else None
    return (status.st_dev, status.st_ino) if status else None


def _file_without_name() -> _File:
    folder = environment.cache_folder() / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        return _File(os.dup(file.fileno()), "r+b")


def _numbered(digest_O2: npt.NDArray[np.uint64]) -> tuple[Ids, Ids]:
    """The first place (N,) of each distinct row, ascending, and the number (O,) of each row's among these."""
    order_O = np.lexsort(digest_O2.T)  # is stable: of equal rows the first comes first
    sorted_O2 = digest_O2[order_O]
    is_first_O = np.ones(len(order_O), dtype=np.bool_)
    is_first_O[1:] = (sorted_O2[1:] != sorted_O2[:-1]).any(axis=1)
    first_N = order_O[is_first_O]
    by_place_N = np.argsort(first_N)
    number_N = np.empty_like(by_place_N)
    number_N[by_place_N] = np.arange(len(by_place_N))
    number_O = np.empty_like(order_O)
    number_O[order_O] = number_N[np.cumsum(is_first_O) - 1]
    return first_N[by_place_N], number_O
