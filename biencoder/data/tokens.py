"""Texts as token ids: tokenized once per run, kept in one flat array, and padded or packed only when a batch is made.

N: texts, T: their tokens, or those of a batch; U: texts of a batch, L: its padded width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from biencoder.data.ids import Ids

CHUNK_TEXTS = 4096
_PAD_TO_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class Tokens:
    """A padded batch. L is the length of its longest text, rounded up to a multiple of 8, at most `max_length`."""

    input_ids_UL: torch.Tensor
    attention_mask_UL: torch.Tensor
    candidate: "Tokens | None" = None
    """The same texts as candidates, if other tokens stand before them than before queries."""

    def to(self, device: torch.device) -> "Tokens":
        """On this device. The copy is made from pinned memory, so that the program does not wait for a GPU."""
        on_cpu = self.input_ids_UL.device.type == "cpu"
        source = self.pinned() if on_cpu and device.type == "cuda" and not self.input_ids_UL.is_pinned() else self
        return Tokens(
            source.input_ids_UL.to(device, non_blocking=True),
            source.attention_mask_UL.to(device, non_blocking=True),
            None if source.candidate is None else source.candidate.to(device),
        )

    def pinned(self) -> "Tokens":
        """In memory that a GPU copies from by itself."""
        candidate = None if self.candidate is None else self.candidate.pinned()
        return Tokens(self.input_ids_UL.pin_memory(), self.attention_mask_UL.pin_memory(), candidate)


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """A batch without padding: the tokens of its texts one after the other, as one row."""

    input_ids_1T: torch.Tensor
    positions_1T: torch.Tensor
    """Of each token in its text, as the encoder numbers them (see `Packing`)."""
    bounds_U1: torch.Tensor
    """Where each text begins, and the end of the last; int32."""
    longest: int
    """Tokens of the longest text: a number of the program's, so that nobody asks the device for it."""
    candidate: "PackedTokens | None" = None
    """The same texts as candidates, if other tokens stand before them than before queries."""

    def to(self, device: torch.device) -> "PackedTokens":
        """On this device. The copy is made from pinned memory, so that the program does not wait for a GPU."""
        on_cpu = self.input_ids_1T.device.type == "cpu"
        source = self.pinned() if on_cpu and device.type == "cuda" and not self.input_ids_1T.is_pinned() else self
        return source._made_by(lambda part: part.to(device, non_blocking=True), lambda tokens: tokens.to(device))

    def pinned(self) -> "PackedTokens":
        """In memory that a GPU copies from by itself."""
        return self._made_by(torch.Tensor.pin_memory, PackedTokens.pinned)

    def _made_by(
        self, part: Callable[[torch.Tensor], torch.Tensor], whole: Callable[["PackedTokens"], "PackedTokens"]
    ) -> "PackedTokens":
        return PackedTokens(
            part(self.input_ids_1T),
            part(self.positions_1T),
            part(self.bounds_U1),
            self.longest,
            None if self.candidate is None else whole(self.candidate),
        )


Batch = Tokens | PackedTokens


@dataclass(frozen=True, slots=True)
class Packing:
    """How an encoder numbers the tokens of a packed text."""

    padding_idx: int | None = None
    """For RoBERTa and its relatives: they count from the number after this one on, and leave out tokens that have it as
    their id. None: the first token is 0."""

    def positions(self, ids_T: npt.NDArray[np.int32], starts_U: Ids, lengths_U: Ids) -> Ids:
        """The number (T,) of each token in its text."""
        if self.padding_idx is None:
            return np.arange(len(ids_T)) - np.repeat(starts_U, lengths_U)
        counts_T = ids_T != self.padding_idx
        before_T1 = np.concatenate([[0], np.cumsum(counts_T)])
        numbers_T: Ids = (before_T1[1:] - np.repeat(before_T1[starts_U], lengths_U)) * counts_T + self.padding_idx
        return numbers_T


def padded_width(lengths_U: npt.NDArray[np.int64], max_length: int) -> npt.NDArray[np.int64]:
    """For each of these lengths the padded width of a batch whose longest text has it.

    Args:
        max_length: the length at which texts are cut. No batch is wider: the encoder may have no further positions.
    """
    return np.minimum(-(-lengths_U // _PAD_TO_MULTIPLE) * _PAD_TO_MULTIPLE, max_length)


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """The token ids of N texts, one after the other in one array; text n is `flat_T[offsets_N1[n] : offsets_N1[n + 1]]`."""

    flat_T: npt.NDArray[np.int32]
    offsets_N1: npt.NDArray[np.int64]
    pad_id: int
    max_length: int
    """The length at which texts were cut; no batch is wider."""
    candidate: "TokenizedTexts | None" = None
    """The same texts as candidates, if they have another prompt than queries."""

    @property
    def query_alone(self) -> "TokenizedTexts":
        """The texts as queries only."""
        return replace(self, candidate=None) if self.candidate else self

    def lengths(self, text_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The number of tokens of each of these texts (an array of any shape)."""
        lengths: npt.NDArray[np.int64] = self.offsets_N1[text_ids + 1] - self.offsets_N1[text_ids]
        return lengths

    def batch(self, text_ids_U: npt.NDArray[np.int64]) -> Tokens:
        """The texts with these ids, padded to a common length."""
        starts_U, ends_U = self.offsets_N1[text_ids_U], self.offsets_N1[text_ids_U + 1]
        columns_L = np.arange(padded_width(ends_U - starts_U, self.max_length).max())
        places_UL = starts_U[:, None] + columns_L
        mask_UL = places_UL < ends_U[:, None]
        input_ids_UL = np.where(mask_UL, self.flat_T[np.minimum(places_UL, len(self.flat_T) - 1)], self.pad_id)
        return Tokens(
            torch.from_numpy(input_ids_UL.astype(np.int64)),
            torch.from_numpy(mask_UL.astype(np.int64)),
            None if self.candidate is None else self.candidate.batch(text_ids_U),
        )

    def packed(self, text_ids_U: npt.NDArray[np.int64], packing: Packing) -> PackedTokens:
        """The texts with these ids, one after the other."""
        lengths_U = self.lengths(text_ids_U)
        bounds_U1 = np.concatenate([[0], np.cumsum(lengths_U)])
        places_T = np.arange(bounds_U1[-1]) + np.repeat(self.offsets_N1[text_ids_U] - bounds_U1[:-1], lengths_U)
        ids_T = np.asarray(self.flat_T[places_T])
        return PackedTokens(
            torch.from_numpy(ids_T.astype(np.int64)[None]),
            torch.from_numpy(packing.positions(ids_T, bounds_U1[:-1], lengths_U)[None]),
            torch.from_numpy(bounds_U1.astype(np.int32)),
            int(lengths_U.max()),
            None if self.candidate is None else self.candidate.packed(text_ids_U, packing),
        )

    def laid_out(self, text_ids_U: npt.NDArray[np.int64], packing: Packing | None) -> Batch:
        """The texts with these ids, padded where there is no packing."""
        return self.batch(text_ids_U) if packing is None else self.packed(text_ids_U, packing)


def tokenize_sides(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int, prompts: tuple[str, str]
) -> TokenizedTexts:
    """Token ids of every text as a query and as a candidate.

    Args:
        prompts: what is put before queries, and before candidates.
    """
    return both_sides(lambda prompt: tokenize(texts, tokenizer, max_length=max_length, prompt=prompt), prompts)


def both_sides(tokens_of: Callable[[str], TokenizedTexts], prompts: tuple[str, str]) -> TokenizedTexts:
    """The texts as queries and as candidates, given a function that tokenizes them with a prompt."""
    tokens = tokens_of(prompts[0])
    return tokens if prompts[0] == prompts[1] else replace(tokens, candidate=tokens_of(prompts[1]))


def tokenize(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    prompt: str = "",
    advance: Callable[[int], None] = lambda count: None,
) -> TokenizedTexts:
    """Token ids of every text after a prompt, with special tokens, cut at `max_length` tokens.

    Args:
        advance: called again and again with the number of texts that have got their ids since.
    """
    chunks = list(token_chunks(texts, tokenizer, max_length=max_length, prompt=prompt, advance=advance))
    flat_T = np.concatenate([flat for flat, _ in chunks])
    return TokenizedTexts(flat_T, offsets([lengths for _, lengths in chunks]), pad_id_of(tokenizer), max_length)


def token_chunks(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    prompt: str,
    advance: Callable[[int], None],
    first: int = 0,
) -> Iterator[tuple[npt.NDArray[np.int32], Ids]]:
    """The token ids of CHUNK_TEXTS texts at a time, one text after the other, and the number of each text's.

    Args:
        first: the text to begin with.
    """
    for start in range(first, len(texts), CHUNK_TEXTS):
        chunk = [prompt + text for text in texts[start : start + CHUNK_TEXTS]]
        encoded = tokenizer(
            chunk,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids = encoded["input_ids"]
        lengths = np.array([len(piece) for piece in ids], dtype=np.int64)
        yield np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=lengths.sum()), lengths
        advance(len(chunk))


def offsets(lengths: Sequence[Ids]) -> Ids:
    """Where each text begins, and the end of the last (N + 1,), by the numbers of tokens of some texts at a time."""
    offsets_N1: Ids = np.cumsum(np.concatenate([np.zeros(1, dtype=np.int64), *lengths]))
    return offsets_N1


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.pad_token_id or 0)
