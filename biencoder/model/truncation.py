"""Shorter embeddings: the first dimensions of each, scaled to length 1 again where the whole ones have it.

A model trained at several sizes at once (Matryoshka: Kusupati et al. 2022) loses little by them.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Truncation:
    """The sizes that embeddings have beside the full one."""

    sizes: tuple[int, ...] = ()
    normalize: bool = False
    """Whether embeddings have length 1."""

    def cut(self, embedding: torch.Tensor, size: int) -> torch.Tensor:
        """The first `size` dimensions of embeddings (…, D) in fp32."""
        part = embedding[..., :size]
        return F.normalize(part, dim=-1) if self.normalize else part


FULL = Truncation()
"""The full size alone."""
