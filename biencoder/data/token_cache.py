"""A cache of token ids on disk, mapped into memory. The processes of a machine share it, and later runs use it again.

The name of an entry is a hash of the texts, their prompt, the tokenizer and `max_length`. A change of any of them makes a
new entry. An entry grows in a folder beside it, from which the next process goes on if the first one is killed.

N: texts, T: their tokens.
"""

import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from biencoder import environment
from biencoder.data.texts import texts_sha256
from biencoder.data.tokens import CHUNK_TEXTS, TokenizedTexts, both_sides, offsets, pad_id_of, token_chunks, tokenize
from biencoder.distributed.file_server import MISSED_NAMES_S, appears, sees_rank_0
from biencoder.distributed.world import World

_FLAT, _OFFSETS, _LENGTHS, _LOCK = "flat.int32", "offsets.npy", "lengths.int64", "lock"
_UNFINISHED = ".unfinished"
_OLD_S = 86_400.0
"""After which nobody is taken to go on with what is unfinished."""


def cached_tokens(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    world: World,
    prompts: tuple[str, str] = ("", ""),
    advance: Callable[[int], None] = lambda count: None,
) -> TokenizedTexts:
    """The texts' token ids from the cache. Every rank takes part.

    What the cache lacks the first rank of a machine makes, for all machines that see the same folder.

    Args:
        prompts: what is put before queries, and before candidates.
        advance: called again and again with the number of texts that have got their ids since, if the cache lacks them.
    """
    return both_sides(lambda prompt: _cached(texts, tokenizer, max_length, world, prompt, advance), prompts)


def _cached(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    world: World,
    prompt: str,
    advance: Callable[[int], None],
) -> TokenizedTexts:
    """The texts after one prompt. A cache that cannot be read or written is skipped."""
    folder = cache_folder() / _name(texts, tokenizer, max_length, prompt)
    pad_id = pad_id_of(tokenizer)

    def entry(folder: Path = folder) -> TokenizedTexts | None:
        return _read(folder, len(texts), pad_id, max_length)

    def make() -> None:
        with suppress(OSError):
            _make(
                folder,
                lambda place: _fill(place, texts, tokenizer, max_length, prompt, advance),
                lambda place: entry(place) is not None,
            )

    with suppress(OSError):  # before anything is looked for in it: file servers remember that a name was not there
        folder.parent.mkdir(parents=True, exist_ok=True)
    lacking = entry() is None
    if any(world.all_gather_object(lacking)):
        shared = sees_rank_0(folder.parent, world)
        if lacking and world.local_rank == 0 and not shared:
            make()
        world.together(lambda: None)
        if world.on_main(lambda: entry() is not None) and shared:
            appears(lambda: entry() is not None, within_s=MISSED_NAMES_S)
    return entry() or tokenize(texts, tokenizer, max_length=max_length, prompt=prompt)


def cache_folder() -> Path:
    """The folder of all entries."""
    return environment.cache_folder() / "tokens"


def _name(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, prompt: str) -> str:
    facts = (str(max_length), tokenizer.backend_tokenizer.to_str(), prompt, texts_sha256(texts))
    return texts_sha256(facts)[:32]


def _read(folder: Path, num_texts: int, pad_id: int, max_length: int) -> TokenizedTexts | None:
    """The entry in this folder; None if it is missing or incomplete."""
    try:
        flat_T: npt.NDArray[np.int32] = np.memmap(folder / _FLAT, np.int32, "r")
        offsets_N1 = np.load(folder / _OFFSETS, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if len(offsets_N1) != num_texts + 1 or offsets_N1[-1] != len(flat_T):
        return None
    return TokenizedTexts(flat_T, offsets_N1, pad_id, max_length)


def _make(folder: Path, fill: Callable[[Path], None], there: Callable[[Path], bool]) -> None:
    """Make the entry, or go on with it where a process of this machine that was killed has left it.

    A complete entry is never replaced: other processes have it mapped.

    Args:
        fill: writes into a folder what it lacks of an entry.
        there: whether a folder holds a complete entry.

    Raises:
        OSError: a complete entry is there already, and stays; or nothing can be written.
    """
    unfinished = folder.with_name(f"{folder.name}.{socket.gethostname()}{_UNFINISHED}")
    while True:
        unfinished.mkdir(parents=True, exist_ok=True)
        with (unfinished / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)  # until another process on this machine has made it, or is gone
            except OSError:  # a file system without locks
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished = Path(tempfile.mkdtemp(_UNFINISHED, f"{folder.name}.", folder.parent))
                return _fill_and_name(unfinished, folder, fill, there)
            if (unfinished / _LOCK).exists() and os.path.samestat(os.fstat(lock.fileno()), (unfinished / _LOCK).stat()):
                return _fill_and_name(unfinished, folder, fill, there)


def _fill_and_name(unfinished: Path, folder: Path, fill: Callable[[Path], None], there: Callable[[Path], bool]) -> None:
    try:
        if not there(folder):
            fill(unfinished)
            _move(unfinished, folder, there)
            for name in (_LENGTHS, _LOCK):
                (folder / name).unlink(missing_ok=True)
            _forget_old(folder)
    except OSError:  # a full disk, say: it shall not stay full
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(unfinished, ignore_errors=True)  # where another process was quicker


def _forget_old(folder: Path) -> None:
    """Remove what processes of other machines have left of this entry, if none has written there for a day."""
    for left in folder.parent.glob(f"{folder.name}.*{_UNFINISHED}"):
        with suppress(OSError):
            if time.time() - (left / _FLAT).stat().st_mtime > _OLD_S:
                shutil.rmtree(left)


def _fill(
    folder: Path,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    prompt: str,
    advance: Callable[[int], None],
) -> None:
    """Write what the folder lacks of an entry. The number of a text's tokens is written after the tokens themselves."""
    with (folder / _FLAT).open("ab") as flat, (folder / _LENGTHS).open("ab") as lengths:
        known_N = np.fromfile(folder / _LENGTHS, np.int64)
        known_N = known_N[: len(known_N) // CHUNK_TEXTS * CHUNK_TEXTS]
        if len(known_N) > len(texts) or (known_N <= 0).any() or 4 * known_N.sum() > flat.tell():
            known_N = known_N[:0]  # a machine that loses its power may leave zeros, or lengths without their tokens
        flat.truncate(4 * int(known_N.sum()))
        lengths.truncate(8 * len(known_N))
        advance(len(known_N))
        chunks = token_chunks(texts, tokenizer, max_length=max_length, prompt=prompt, advance=advance, first=len(known_N))
        for flat_T, lengths_N in chunks:
            for file, part in ((flat, flat_T.data), (lengths, lengths_N.data)):
                file.write(part)
                file.flush()
                os.fsync(file.fileno())
    np.save(folder / _OFFSETS, offsets([np.fromfile(folder / _LENGTHS, np.int64)]))


def _move(whole: Path, folder: Path, there: Callable[[Path], bool]) -> None:
    for _ in range(2):
        try:
            whole.rename(folder)  # fails if a folder with files is there already
            return
        except OSError:
            with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
                _make_way(folder, there, Path(beside) / "taken")


def _make_way(folder: Path, there: Callable[[Path], bool], aside: Path) -> None:
    """Move an incomplete entry aside. A complete one stays, because other processes have it mapped.

    Raises:
        OSError: the entry is complete, or cannot be moved.
    """
    if not there(folder):
        folder.rename(aside)
        if not there(aside):
            return
        aside.rename(folder)  # in between, another process has completed it
    raise FileExistsError(folder)
