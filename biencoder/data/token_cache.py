"""Token ids on disk, mapped into memory: made once on a machine, then shared by its processes and by later runs.

The name of a cached tokenization is a hash of the texts, the tokenizer and the cut; what changes any of them makes another.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from biencoder import environment
from biencoder.data.tokens import TokenizedTexts, tokenize
from biencoder.distributed.world import World


def cached_tokens(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int, world: World
) -> TokenizedTexts:
    """The texts' token ids, from the cache or put into it by the first rank of each machine. Every rank takes part.

    A cache that cannot be read or written is done without. A whole one is never replaced: others have it mapped.
    """
    folder = cache_folder() / _name(texts, tokenizer, max_length)
    pad_id = int(tokenizer.pad_token_id or 0)
    made = None
    if world.local_rank == 0 and _read(folder, len(texts), pad_id, max_length) is None:
        made = tokenize(texts, tokenizer, max_length=max_length)
        with suppress(OSError):
            _write(folder, made)
    world.together(lambda: None)
    return made or _read(folder, len(texts), pad_id, max_length) or tokenize(texts, tokenizer, max_length=max_length)


def cache_folder() -> Path:
    """Where all tokenizations are."""
    return environment.cache_folder() / "tokens"


def _name(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    digest = hashlib.sha256(f"{max_length}\0{len(texts)}\0{tokenizer.backend_tokenizer.to_str()}".encode())
    for text in texts:
        content = text.encode()
        digest.update(f"{len(content)} ".encode() + content)
    return digest.hexdigest()[:32]


def _read(folder: Path, num_texts: int, pad_id: int, max_length: int) -> TokenizedTexts | None:
    """What is cached there, None where nothing whole is."""
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
    """Write beside the place and move it there, so that nobody reads half of it.

    Raises:
        OSError: a whole one stands there already, and stays, or nothing can be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        whole = Path(beside) / "tokens"
        whole.mkdir()
        np.save(whole / "flat.npy", tokens.flat_T)
        np.save(whole / "offsets.npy", tokens.offsets_N1)
        for _ in range(2):
            try:
                whole.rename(folder)  # fails where a folder with files stands already
                return
            except OSError:
                _make_way(folder, tokens, Path(beside) / "taken")


def _make_way(folder: Path, tokens: TokenizedTexts, aside: Path) -> None:
    """Move away what stands there unless it is whole: a slower starter must not replace what others have mapped.

    Raises:
        OSError: it is whole, or cannot be moved.
    """
    num_texts = len(tokens.offsets_N1) - 1
    if _read(folder, num_texts, tokens.pad_id, tokens.max_length) is None:
        folder.rename(aside)
        if _read(aside, num_texts, tokens.pad_id, tokens.max_length) is None:
            return
        aside.rename(folder)  # another process has put a whole one there in between
    raise FileExistsError(folder)
