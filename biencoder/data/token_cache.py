"""A cache of token ids on disk, mapped into memory. The processes of a machine share it, and later runs use it again.

The name of an entry is a hash of the texts, their prompt, the tokenizer and `max_length`. A change of any of them makes a
new entry.

N: texts, T: their tokens.
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from biencoder import environment
from biencoder.data.ids import Ids
from biencoder.data.texts import texts_sha256
from biencoder.data.tokens import TokenizedTexts, both_sides, offsets, pad_id_of, token_chunks, tokenize
from biencoder.distributed.world import World

_FLAT, _OFFSETS = "flat.int32", "offsets.npy"


def cached_tokens(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    world: World,
    prompts: tuple[str, str] = ("", ""),
    advance: Callable[[int], None] = lambda count: None,
) -> TokenizedTexts:
    """The texts' token ids from the cache; the first rank of each machine fills it if needed. Every rank takes part.

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
    """The texts after one prompt.

    A cache that cannot be read or written is skipped. A complete entry is never replaced: other processes have it mapped.
    """
    folder = cache_folder() / _name(texts, tokenizer, max_length, prompt)
    pad_id = pad_id_of(tokenizer)

    def entry(folder: Path) -> TokenizedTexts | None:
        return _read(folder, len(texts), pad_id, max_length)

    if world.local_rank == 0 and entry(folder) is None:
        chunks = token_chunks(texts, tokenizer, max_length=max_length, prompt=prompt, advance=advance)
        with suppress(OSError):
            _write(folder, chunks, lambda place: entry(place) is not None)
    world.together(lambda: None)
    return entry(folder) or tokenize(texts, tokenizer, max_length=max_length, prompt=prompt)


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


def _write(folder: Path, chunks: Iterable[tuple[npt.NDArray[np.int32], Ids]], there: Callable[[Path], bool]) -> None:
    """Write beside `folder`, then rename, so that no process reads half of it.

    Args:
        chunks: token ids of some texts at a time, and the number of each text's.
        there: whether a folder holds a complete entry.

    Raises:
        OSError: a complete entry is there already, and stays; or nothing can be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        whole, lengths = Path(beside) / "tokens", []
        whole.mkdir()
        with (whole / _FLAT).open("wb") as file:
            for flat_T, lengths_N in chunks:
                file.write(flat_T.data)
                lengths.append(lengths_N)
        np.save(whole / _OFFSETS, offsets(lengths))
        for _ in range(2):
            try:
                whole.rename(folder)  # fails if a folder with files is there already
                return
            except OSError:
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
