"""The tensors of a checkpoint that every rank writes its part of.

    part-00003-001.safetensors    the second file of rank 3; a tensor `name@start` holds values of `name` from `start` on

A file is small, so that writing needs little memory beside the tensors themselves. Any number of ranks can read them: a
tensor is put together from the files that hold its values, which are mapped and not loaded.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from biencoder.errors import CheckpointError
from biencoder.training.engine.state import Part, Shapes

PART_FILES = "part-*.safetensors"
_FILE_VALUES = 32 * 2**20
"""Most values of a file; 128 MiB."""


def write_parts(folder: Path, parts: Iterable[Part], *, rank: int, file_values: int = _FILE_VALUES) -> list[Path]:
    """Write a rank's parts in fp32; returns the files.

    Raises:
        OSError, SafetensorError: they cannot be written.
    """
    files: list[Path] = []
    for tensors in _of_a_file(parts, file_values):
        files.append(folder / f"part-{rank:05d}-{len(files):03d}.safetensors")
        save_file(tensors, files[-1])
    return files


def _of_a_file(parts: Iterable[Part], file_values: int) -> Iterator[dict[str, torch.Tensor]]:
    """Copies of the values for each file, by their names there."""
    tensors: dict[str, torch.Tensor] = {}
    room = file_values
    for name, start, values in parts:
        at = 0
        while at < len(values):
            piece = values[at : at + room]
            tensors[f"{name}@{start + at}"] = piece.detach().to("cpu", torch.float32, copy=True)
            at, room = at + len(piece), room - len(piece)
            if not room:
                yield tensors
                tensors, room = {}, file_values
    if tensors:
        yield tensors


class _Piece(NamedTuple):
    start: int
    size: int
    file: Path
    name: str
    """In the file."""


class SavedParts:
    """Tensors that every rank reads from the files of all ranks."""

    def __init__(self, files: Sequence[Path], shapes: Shapes) -> None:
        """
        Raises:
            CheckpointError: a file cannot be read, or values of a tensor are missing.
        """
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._pieces: dict[str, list[_Piece]] = {name: [] for name in shapes}
        for path in files:
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - it is no dictionary
                        tensor, _, start = name.rpartition("@")
                        size = file.get_slice(name).get_shape()[0]
                        self._pieces.setdefault(tensor, []).append(_Piece(int(start), size, path, name))
            except (OSError, SafetensorError, ValueError) as error:
                raise CheckpointError(f"{path} cannot be read ({error})") from None
        for name, pieces in self._pieces.items():
            pieces.sort()
            stops = [0, *(piece.start + piece.size for piece in pieces)]
            whole = name in shapes and stops[-1] == torch.Size(shapes[name]).numel()
            if not whole or [piece.start for piece in pieces] != stops[:-1]:
                raise CheckpointError(f"{files[0].parent} does not hold every value of {name} once")

    def whole(self, name: str) -> torch.Tensor:
        """A tensor in fp32 on the CPU."""
        whole = torch.empty(self.shapes[name])
        for piece in self._pieces[name]:
            with safe_open(piece.file, framework="pt") as file:
                whole.view(-1)[piece.start : piece.start + piece.size] = file.get_tensor(piece.name)
        return whole
