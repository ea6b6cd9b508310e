"""Weights between the pretrained and the trained ones: they keep what a small corpus makes an encoder forget.

Weight-space ensembles of Wortsman et al. 2022 (arXiv 2109.01903): `pretrained_share` of the one and the rest of the other.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from biencoder.model.bi_encoder import BiEncoder


class Interpolation:
    def __init__(self, model: BiEncoder, share: float, *, release: Callable[[], None]) -> None:
        """
        Args:
            model: under DeepSpeed, with the weights that it starts from.
            share: of these weights, in [0, 1).
            release: gives up all copies of weights that were gathered from the parts of all ranks.
        """
        self._model, self._share, self._release = model, share, release
        self._start = self._copies() if share else []

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context the towers have the interpolated weights; after it the trained ones, bit for bit.

        Every rank interpolates what it holds of each weight, and nothing is sent. The pair classifier stays as it is:
        nothing of it is pretrained.
        """
        if not self._share:
            yield
            return
        trained = self._copies()
        pairs = zip(trained, self._start, strict=True)
        self._set(now.float().lerp(start.float(), self._share) for now, start in pairs)
        try:
            yield
        finally:
            self._set(trained)

    @torch.no_grad()
    def _set(self, values: Iterable[torch.Tensor]) -> None:
        self._release()
        for held, value in zip(self._held(), values, strict=True):
            held.copy_(value)

    def _copies(self) -> list[torch.Tensor]:
        return [held.to("cpu", copy=True) for held in self._held()]

    def _held(self) -> Iterator[torch.Tensor]:
        """What this rank holds of the towers' weights, in the precision that it computes in."""
        for parameter in self._model.towers.parameters():
            yield getattr(parameter, "ds_tensor", parameter).detach()  # under ZeRO-3 this rank's part
