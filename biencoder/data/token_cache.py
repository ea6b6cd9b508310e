"""A cache of token ids on disk, mapped into memory. The processes of a machine share it, and later runs use it again.

The name of an entry is a hash of the texts, their prompt, the tokenizer and `max_length`. A change of any of them makes a
new entry.

N: texts, T: their tokens.
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from biencoder import environment
from biencoder.data.tokens import TokenizedTexts, both_sides, tokenize
from biencoder.distributed.world import World


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
    pad_id = int(tokenizer.pad_token_id or 0)
    tokens = None

    def fresh() -> TokenizedTexts:
        return tokenize(texts, tokenizer, max_length=max_length, prompt=prompt, advance=advance)

    if world.local_rank == 0 and _read(folder, len(texts), pad_id, max_length) is None:
        tokens = fresh()
        with suppress(OSError):
            _write(folder, tokens)
    world.together(lambda: None)
    return tokens or _read(folder, len(texts), pad_id, max_length) or fresh()


def cache_folder() -> Path:
    """The folder of all entries."""
    return environment.cache_folder() / "tokens"


def _name(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, prompt: str) -> str:
    digest = hashlib.sha256(f"{max_length}\0{len(texts)}\0{tokenizer.backend_tokenizer.to_str()}".encode())
    if prompt:
        digest.update(f"\0{prompt}\0".encode())
    for text in texts:
        content = text.encode()
        digest.update(f"{len(content)} ".encode() + content)
    return digest.hexdigest()[:32]


def _read(folder: Path, num_texts: int, pad_id: int, max_length: int) -> TokenizedTexts | None:
    """The entry in this folder; None if it is missing or incomplete."""
    try:
        flat_T, offsets_N1 = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("flat", "offsets")
        )
    except (OSError, ValueError, EOFError):
        return None
    if len(offsets_N1) != num_texts + 1 or offsets_N1[-1] != len(flat_T):
        return None
    return TokenizedTexts(flat_T, offsets_N1, pad_id, max_length)


def _write(folder: Path, tokens: TokenizedTexts) -> None:
    """Write beside `folder`, then rename, so that no process reads half of it.

    Raises:
        OSError: a complete entry is there already, and stays; or nothing can be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        whole = Path(beside) / "tokens"
        whole.mkdir()
        np.save(whole / "flat.npy", tokens.flat_T)
        np.save(whole / "offsets.npy", tokens.offsets_N1)
        for _ in range(2):
            try:
                whole.rename(folder)  # fails if a folder with files is there already
                return
            except OSError:
                _make_way(folder, tokens, Path(beside) / "taken")


def _make_way(folder: Path, tokens: TokenizedTexts, aside: Path) -> None:
    """Move an incomplete entry aside. A complete one stays, because other processes have it mapped.

    Raises:
        OSError: the entry is complete, or cannot be moved.
    """
    num_texts = len(tokens.offsets_N1) - 1
    if _read(folder, num_texts, tokens.pad_id, tokens.max_length) is None:
        folder.rename(aside)
        if _read(aside, num_texts, tokens.pad_id, tokens.max_length) is None:
            return
        aside.rename(folder)  # in between, another process has completed it
    raise FileExistsError(folder)
