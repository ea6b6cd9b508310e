"""Vectors of texts on disk: a model embeds a text once, and later calls read its vectors.

    vectors/                     in the cache's folder (see environment.py)
      KEY/                       a hash of the model's weights and of all else that its vectors depend on
        HASH.safetensors         the vectors of some texts, and the SHA-256 of each text; HASH is that of the file's content

A file whose content is not that of its name is removed, and its texts are embedded again. Nothing here is a pickle. Once
all files take more than 4 GiB, those go that were not read for longest.

N: texts asked for, M: texts of a file, D: width of a part.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from biencoder import __version__, environment
from biencoder.data.ids import Ids
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.embedding import EmbeddedTexts

_MOST_BYTES = 4 * 2**30
_TEXTS = "sha256"
_PLACES = tuple(f"{side}.{part}" for side in ("query", "candidate") for part in Vectors._fields)
Parts = dict[str, torch.Tensor]
"""The distinct tensors (N, D) of embedded texts, by the places where each stands, joined by `+`."""


def cache_folder() -> Path:
    """The folder of all models' vectors."""
    return environment.cache_folder() / "vectors"


@dataclass(frozen=True, slots=True)
class VectorCache:
    """The vectors of one model."""

    folder: Path

    @classmethod
    def of(cls, *facts: str) -> "VectorCache":
        """
        Args:
            facts: all that the vectors of a text depend on beside the text.
        """
        return cls(cache_folder() / _sha256(repr((__version__, *facts)).encode()))

    def embed(
        self, texts: Sequence[str], text_ids_N: Ids, embed: Callable[[Sequence[str], Ids], EmbeddedTexts]
    ) -> tuple[EmbeddedTexts, int]:
        """The vectors of the texts with these (ascending) ids, and the number of texts that were embedded for it.

        A cache that cannot be read or written is skipped.

        Args:
            embed: makes the vectors of texts that are not there yet.
        """
        digests = [hashlib.sha256(texts[text_id].encode()).digest() for text_id in text_ids_N.tolist()]
        row_of, parts = self._read(set(digests))
        missing = np.array([n for n, digest in enumerate(digests) if digest not in row_of], dtype=np.int64)
        if len(missing):
            fresh = embed(texts, text_ids_N[missing])
            fresh_parts = _parts(fresh)
            self._write([digests[n] for n in missing], fresh_parts)
            if len(missing) == len(digests):
                return fresh, len(missing)
            if parts.keys() != fresh_parts.keys():  # the sides agree in some texts alone
                return embed(texts, text_ids_N), len(digests)
            row_of |= {digests[n]: len(row_of) + i for i, n in enumerate(missing)}
            parts = {name: torch.cat([part, fresh_parts[name]]) for name, part in parts.items()}
        rows = torch.tensor([row_of[digest] for digest in digests], dtype=torch.int64)
        return _embedded(text_ids_N, {name: part[rows] for name, part in parts.items()}), len(missing)

    def _read(self, wanted: Collection[bytes]) -> tuple[dict[bytes, int], Parts]:
        """The parts of those of the wanted texts that are here, and the row of each."""
        row_of: dict[bytes, int] = {}
        pieces: list[Parts] = []
        for file in sorted(self.folder.glob("*.safetensors")):
            piece = _read_file(file)
            if piece is None or (pieces and piece.keys() - {_TEXTS} != pieces[0].keys()):
                continue
            rows = []
            for row, digest in enumerate(map(bytes, piece.pop(_TEXTS).numpy())):
                if digest in wanted and digest not in row_of:
                    row_of[digest] = len(row_of)
                    rows.append(row)
            pieces.append({name: part[rows] for name, part in piece.items()})
        names = pieces[0] if pieces else {}
        return row_of, {name: torch.cat([piece[name] for piece in pieces]) for name in names}

    def _write(self, digests_M: Sequence[bytes], parts: Parts) -> None:
        """Write the file beside its place and move it there, as far as the disk allows."""
        texts = torch.frombuffer(bytearray(b"".join(digests_M)), dtype=torch.uint8).view(-1, 32)
        content = save({_TEXTS: texts, **{name: part.contiguous() for name, part in parts.items()}})
        if len(content) > _MOST_BYTES:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as beside:
                fresh = Path(beside) / "fresh"
                fresh.write_bytes(content)
                fresh.replace(self.folder / f"{_sha256(content)}.safetensors")
            _make_room(self.folder.parent)


def _read_file(file: Path) -> Parts | None:
    """A file's tensors; None for a broken or foreign one, which is removed, and for one that cannot be read."""
    try:
        content = file.read_bytes()
        os.utime(file)
    except OSError:
        return None
    with suppress(SafetensorError):
        if _sha256(content) == file.stem and _is_whole(parts := load(content)):
            return parts
    with suppress(OSError):
        file.unlink()
    return None


def _is_whole(parts: Parts) -> bool:
    shapes = {name: tuple(part.shape) for name, part in parts.items()}
    texts = shapes.pop(_TEXTS, ())
    places = [place for name in shapes for place in name.split("+")]
    return (
        len(texts) == 2
        and texts[1] == 32
        and sorted(places) == sorted(_PLACES)
        and {(len(shape), shape[0]) for shape in shapes.values()} == {(2, texts[0])}
    )


def _make_room(folder: Path) -> None:
    """Remove the files that were not read for longest, until all take at most `_MOST_BYTES`."""
    files = [(file.stat(), file) for file in folder.glob("*/*.safetensors")]
    total = 0
    for facts, file in sorted(files, key=lambda entry: -entry[0].st_mtime):
        total += facts.st_size
        if total > _MOST_BYTES:
            file.unlink()


def _parts(embedded: EmbeddedTexts) -> Parts:
    tensors = [part for side in (embedded.query, embedded.candidate) for part in side]
    places: dict[torch.Tensor, list[str]] = {}  # by identity: that is how tensors are hashed
    for place, tensor in zip(_PLACES, tensors, strict=True):
        places.setdefault(tensor, []).append(place)
    return {"+".join(names): tensor for tensor, names in places.items()}


def _embedded(text_ids_N: Ids, parts: Parts) -> EmbeddedTexts:
    """The inverse of `_parts`."""
    tensor_of = {place: part for names, part in parts.items() for place in names.split("+")}
    tensors = [tensor_of[place] for place in _PLACES]
    query, candidate = Vectors(*tensors[:2]), Vectors(*tensors[2:])
    shared = all(one is other for one, other in zip(query, candidate, strict=True))
    return EmbeddedTexts.whole(text_ids_N, query, query if shared else candidate)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
