"""Checkpoints as folders that are either whole or not there.

    checkpoints/step-00001200/   manifest.json           size and SHA-256 of every other file
                                 state.json              numbers and texts
                                 model.safetensors       fp32 parameters, whole, by name
                                 optimizer.safetensors   their moments
                                 mining.safetensors      the epoch's negatives, and what else the epoch goes on from
                checkpoints/latest                       name of the newest one, for people

A checkpoint is written to a hidden folder, flushed to the disk, read back against its manifest, and renamed: it is the
rename that makes it one. Nothing in it is a pickle. Only rank 0 touches the folder, so other nodes need not see it.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from biencoder.errors import CheckpointError
from biencoder.tracking.whole_file import replace_file

Tensors = Mapping[str, torch.Tensor]
TENSOR_FILES = ("model", "optimizer", "mining")
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is written: tensors on the CPU, and a JSON object."""

    step: int
    state: dict[str, Any]
    model: Tensors
    optimizer: Tensors
    mining: Tensors


class CheckpointFolder:
    """The checkpoints of one run; writes in a thread, one at a time."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def write(self, checkpoint: Checkpoint, *, also_keep: int) -> None:
        """Start to write; waits for the write before, and raises what that one failed with.

        Args:
            also_keep: the step of a checkpoint that is not to be deleted, though it is old.

        Raises:
            OSError: the previous checkpoint could not be written; this one is under way.
        """
        try:
            self.wait()
        finally:
            self._writing = self._thread.submit(self._write, checkpoint, also_keep)

    def wait(self) -> None:
        """Until the last write is on the disk.

        Raises:
            OSError: it could not be written; what stood there before is untouched.
        """
        writing = self._writing
        if writing:
            try:
                writing.result()  # several threads may wait for it
            finally:
                self._writing = None

    def failed(self) -> OSError | None:
        """What the last write has failed with, if it has ended by now; told once."""
        if self._writing and self._writing.done():
            try:
                self.wait()
            except OSError as error:
                return error
        return None

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and a sentence for each newer one that is not."""
        complaints: list[str] = []
        for folder in reversed(self._all()):
            try:
                return _read(folder), complaints
            except (CheckpointError, OSError, ValueError) as error:
                complaints.append(f"checkpoint {folder} is damaged ({error}); the one before it is used")
        return None, complaints

    def holds_any(self) -> bool:
        """Whether there is a checkpoint, whole or damaged."""
        return bool(self._all())

    def _all(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("step-*") if path.is_dir())

    def _write(self, checkpoint: Checkpoint, also_keep: int) -> None:
        final = self._folder / _name(checkpoint.step)
        fresh = self._folder / f".{final.name}.new"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for left in self._folder.glob(".*"):  # of a run that was killed while it wrote
                shutil.rmtree(left, ignore_errors=True)
            fresh.mkdir()
            for kind in TENSOR_FILES:
                save_file(dict(getattr(checkpoint, kind)), fresh / f"{kind}.safetensors")
            (fresh / "state.json").write_text(json.dumps(checkpoint.state | {"step": checkpoint.step}, indent=1))
            manifest = {path.name: [path.stat().st_size, _digest(path)] for path in sorted(fresh.iterdir())}
            (fresh / _MANIFEST).write_text(json.dumps(manifest, indent=1))
            for path in (*fresh.iterdir(), fresh):
                _flush(path)
            _verify(fresh)
            shutil.rmtree(final, ignore_errors=True)  # the same step again, after a damaged one was passed over
            os.rename(fresh, final)
            _flush(self._folder)
            replace_file(self._folder / "latest", final.name + "\n")
        except BaseException as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if isinstance(
                error, (SafetensorError, CheckpointError)
            ):  # a write that failed, or that is not what was written
                full = "No space left on device"
                raise (OSError(errno.ENOSPC, full) if full in str(error) else OSError(errno.EIO, str(error))) from None
            raise
        for old in self._all()[: -self._keep]:
            if old.name not in (_name(also_keep), final.name):
                shutil.rmtree(old, ignore_errors=True)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _read(folder: Path) -> Checkpoint:
    _verify(folder)
    state = json.loads((folder / "state.json").read_text())
    tensors = {kind: load_file(folder / f"{kind}.safetensors") for kind in TENSOR_FILES}
    return Checkpoint(int(state["step"]), state, **tensors)


def _verify(folder: Path) -> None:
    """Raise a CheckpointError unless every file has the size and the content that the manifest says."""
    manifest_file = folder / _MANIFEST
    if not manifest_file.is_file():
        raise CheckpointError(f"{_MANIFEST} is missing")
    try:
        manifest = json.loads(manifest_file.read_text())
    except ValueError:
        raise CheckpointError(f"{_MANIFEST} is no JSON") from None
    expected = {f"{kind}.safetensors" for kind in TENSOR_FILES} | {"state.json"}
    if not isinstance(manifest, dict) or set(manifest) != expected:
        raise CheckpointError(f"{_MANIFEST} does not list {', '.join(sorted(expected))}")
    for name, facts in manifest.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{name} is missing")
        if [path.stat().st_size, _digest(path)] != facts:
            raise CheckpointError(f"{name} is not what was written")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
