"""Texts as token ids: tokenized once per run, kept flat, and padded only when a batch is put together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

_CHUNK_TEXTS = 4096
_PAD_TO_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class Tokens:
    """A padded batch. U: texts, L: tokens of the longest, rounded up to a multiple of 8."""

    input_ids_UL: torch.Tensor
    attention_mask_UL: torch.Tensor

    def to(self, device: torch.device) -> "Tokens":
        return Tokens(self.input_ids_UL.to(device, non_blocking=True), self.attention_mask_UL.to(device, non_blocking=True))


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """The token ids of N texts, one after the other in one array."""

    flat_T: npt.NDArray[np.int32]
    offsets_N1: npt.NDArray[np.int64]
    pad_id: int

    @property
    def lengths_N(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets_N1)

    def batch(self, text_ids_U: npt.NDArray[np.int64]) -> Tokens:
        """The texts with these ids, padded to a common length."""
        lengths_U = self.offsets_N1[text_ids_U + 1] - self.offsets_N1[text_ids_U]
        width = -(-int(lengths_U.max()) // _PAD_TO_MULTIPLE) * _PAD_TO_MULTIPLE
        input_ids_UL = np.full((len(text_ids_U), width), self.pad_id, dtype=np.int64)
        for row, text_id in enumerate(text_ids_U):
            input_ids_UL[row, : lengths_U[row]] = self.flat_T[self.offsets_N1[text_id] : self.offsets_N1[text_id + 1]]
        mask_UL = np.arange(width) < lengths_U[:, None]
        return Tokens(torch.from_numpy(input_ids_UL), torch.from_numpy(mask_UL.astype(np.int64)))


def tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> TokenizedTexts:
    """Token ids of every text with special tokens, cut at `max_length` tokens."""
    pieces: list[npt.NDArray[np.int32]] = []
    for start in range(0, len(texts), _CHUNK_TEXTS):
        encoded = tokenizer(
            list(texts[start : start + _CHUNK_TEXTS]),
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        pieces += [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]
    offsets_N1 = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(piece) for piece in pieces], out=offsets_N1[1:])
    return TokenizedTexts(np.concatenate(pieces), offsets_N1, int(tokenizer.pad_token_id or 0))
