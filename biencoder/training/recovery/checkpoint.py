"""Checkpoints as folders that are either whole or not there.

    checkpoints/step-00001200/   manifest.json           size and SHA-256 of every other file
                                 state.json              numbers and texts
                                 mining.safetensors      the epoch's negatives, and what else the epoch goes on from
                                 model.safetensors       fp32 parameters, whole, by name
                                 optimizer.safetensors   their moments
                                 part-*.safetensors      in place of these two: parts of every rank, see parts.py
                checkpoints/latest                       name of the newest one, for people

What an epoch goes on from is the same in all checkpoints of the epoch. Where it is large (the embeddings of a background
search), their files are one: hard links to what the first of them has written, where the file system knows such.

A checkpoint is written to a hidden folder, flushed to the disk, read back against its manifest, and renamed: it is the
rename that makes it one. Nothing in it is a pickle. Unless there are parts, only rank 0 touches the folder, so other nodes
need not see it.
"""

import errno
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from biencoder.distributed.world import World
from biencoder.errors import CheckpointError
from biencoder.tracking.whole_file import replace_file
from biencoder.training.engine.state import Part
from biencoder.training.recovery.parts import PART_FILES, write_parts

Tensors = Mapping[str, torch.Tensor]
WHOLE_FILES = ("model", "optimizer")
_MINING = "mining.safetensors"
_ALWAYS = ("state.json", _MINING)
_MANIFEST = "manifest.json"
_LINKED_BYTES = 64 * 2**20
"""Size from which a file is shared by the checkpoints of an epoch; damage to a shared one is damage to all of them."""
T = TypeVar("T")
_Facts = dict[str, list[Any]]
"""Size and SHA-256 of files, by name."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is written: tensors on the CPU, and a JSON object."""

    step: int
    state: dict[str, Any]
    mining: Tensors
    model: Tensors = field(default_factory=dict)
    optimizer: Tensors = field(default_factory=dict)
    parts: Sequence[Path] = ()
    """Of a checkpoint that was read: the files that hold parameters and moments, where `model` and `optimizer` do not."""


class CheckpointFolder:
    """The checkpoints of one run; writes in a thread, one at a time."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._last = _Lasting({}, folder, [])

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

    def write_sharded(
        self, checkpoint: Checkpoint, parts: Iterable[Part], world: World, *, also_keep: int
    ) -> OSError | None:
        """Write a checkpoint of which every rank writes its part; it is on the disk when this returns, or stands nowhere.
        Every rank takes part.

        Args:
            checkpoint: rank 0's, without model and optimizer.

        Returns:
            What it failed with on some rank, the same on every rank.
        """
        fresh = self._fresh(checkpoint.step)
        _, failure = world.on_main(lambda: _tried(lambda: self._begin(checkpoint)))
        if failure:
            return self._given_up(fresh, failure, world)
        outcomes = world.all_gather_object(_tried(lambda: _flushed(write_parts(fresh, parts, rank=world.rank))))
        failure = next((error for _, error in outcomes if error), None)
        if failure:
            return self._given_up(fresh, failure, world)
        of_ranks = [facts for facts, _ in outcomes if facts is not None]
        _, failure = world.on_main(lambda: _tried(lambda: self._end(checkpoint, of_ranks, also_keep)))
        return self._given_up(fresh, failure, world) if failure else None

    def _begin(self, checkpoint: Checkpoint) -> None:
        """Write rank 0's share of a sharded checkpoint."""
        fresh = self._fresh(checkpoint.step)
        self._make(fresh)
        self._save_mining(checkpoint, fresh)
        _write_state(checkpoint, fresh)

    def _save_mining(self, checkpoint: Checkpoint, fresh: Path) -> None:
        file = fresh / _MINING
        if not self._last.link(checkpoint.mining, file):
            save_file({name: tensor.contiguous() for name, tensor in checkpoint.mining.items()}, file)

    def _end(self, checkpoint: Checkpoint, of_ranks: Sequence[_Facts], also_keep: int) -> None:
        """Make a checkpoint of what all ranks have written.

        Args:
            of_ranks: of the files of each rank.
        """
        fresh = self._fresh(checkpoint.step)
        facts = self._last.flushed([fresh / name for name in _ALWAYS])
        for rank, theirs in enumerate(of_ranks):
            for name, (size, _) in theirs.items():
                if not (fresh / name).is_file() or (fresh / name).stat().st_size != size:
                    raise OSError(errno.EIO, f"{name}, which rank {rank} has written, is not whole for rank 0")
            facts |= theirs
        self._commit(checkpoint, facts)
        self._delete_old(checkpoint.step, also_keep)

    def _given_up(self, fresh: Path, failure: OSError, world: World) -> OSError:
        if world.is_main:
            shutil.rmtree(fresh, ignore_errors=True)
        return failure

    def _fresh(self, step: int) -> Path:
        """Where a checkpoint is written before it is one."""
        return self._folder / f".{_name(step)}.new"

    def _make(self, fresh: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(".*"):  # of a run that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        fresh.mkdir()

    def _write(self, checkpoint: Checkpoint, also_keep: int) -> None:
        fresh = self._fresh(checkpoint.step)

        def write() -> None:
            self._make(fresh)
            for kind in WHOLE_FILES:
                save_file(dict(getattr(checkpoint, kind)), fresh / f"{kind}.safetensors")
            self._save_mining(checkpoint, fresh)
            _write_state(checkpoint, fresh)
            self._commit(checkpoint, self._last.flushed(sorted(fresh.iterdir())))

        try:
            _, failure = _tried(write)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        if failure:
            shutil.rmtree(fresh, ignore_errors=True)
            raise failure
        self._delete_old(checkpoint.step, also_keep)

    def _commit(self, checkpoint: Checkpoint, facts: _Facts) -> None:
        """Make a checkpoint of a hidden folder whose files are on the disk."""
        final, fresh = self._folder / _name(checkpoint.step), self._fresh(checkpoint.step)
        (fresh / _MANIFEST).write_text(json.dumps(facts, indent=1))
        for path in (fresh / _MANIFEST, fresh):
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)  # the same step again, after a damaged one was passed over
        os.rename(fresh, final)
        _flush(self._folder)
        replace_file(self._folder / "latest", final.name + "\n")
        self._last = _Lasting.of(checkpoint.mining, final / _MINING, facts[_MINING])

    def _delete_old(self, step: int, also_keep: int) -> None:
        for old in self._all()[: -self._keep]:
            if old.name not in (_name(also_keep), _name(step)):
                shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Lasting:
    """The tensors of a file that a checkpoint has, for the next one that has the same."""

    tensors: Mapping[str, "weakref.ref[torch.Tensor]"]
    file: Path
    facts: list[Any]
    """The file's size and SHA-256."""

    @classmethod
    def of(cls, tensors: Tensors, file: Path, facts: list[Any]) -> "_Lasting":
        return cls({name: weakref.ref(tensor) for name, tensor in tensors.items()}, file, facts)

    def link(self, tensors: Tensors, file: Path) -> bool:
        """Make `file` a link to this one, if it holds these tensors and is large."""
        same = {name: kept() for name, kept in self.tensors.items()}
        if same.keys() != tensors.keys() or any(same[name] is not tensor for name, tensor in tensors.items()):
            return False
        if not same or self.facts[0] < _LINKED_BYTES:
            return False
        with suppress(OSError):  # no file system has to know hard links, and the old file may have gone
            os.link(self.file, file)
            try:
                _verify_file(file, self.facts)
            except CheckpointError:  # damaged since it was written; the tensors are here to write it anew
                file.unlink()
                return False
            return True
        return False

    def flushed(self, files: Sequence[Path]) -> _Facts:
        """As `_flushed`; what was linked is on the disk already, and was read back by `link`."""
        linked = [file for file in files if self.facts and file.name == self.file.name and _same_file(file, self.file)]
        return _flushed([file for file in files if file not in linked]) | {file.name: self.facts for file in linked}


def _same_file(file: Path, other: Path) -> bool:
    with suppress(OSError):
        return file.samefile(other)
    return False


def _tried(work: Callable[[], T]) -> tuple[T | None, OSError | None]:
    """What `work` returns, or how writing failed."""
    try:
        return work(), None
    except OSError as error:
        return None, error
    except (SafetensorError, CheckpointError) as error:  # a write that failed, or that is not what was written
        full = "No space left on device"
        return None, OSError(errno.ENOSPC, full) if full in str(error) else OSError(errno.EIO, str(error))


def _write_state(checkpoint: Checkpoint, folder: Path) -> None:
    (folder / "state.json").write_text(json.dumps(checkpoint.state | {"step": checkpoint.step}, indent=1))


def _flushed(files: Sequence[Path]) -> _Facts:
    """Flush files to the disk and read them back; returns what the manifest says of them.

    Raises:
        CheckpointError: one is not what was written.
    """
    facts = {path.name: [path.stat().st_size, _digest(path)] for path in files}
    for path in files:
        _flush(path)
    for path in files:
        _verify_file(path, facts[path.name])
    return facts


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _read(folder: Path) -> Checkpoint:
    _verify(folder)
    state = json.loads((folder / "state.json").read_text())
    mining, parts = load_file(folder / _MINING), sorted(folder.glob(PART_FILES))
    whole = {} if parts else {kind: load_file(folder / f"{kind}.safetensors") for kind in WHOLE_FILES}
    return Checkpoint(int(state["step"]), state, mining, **whole, parts=parts)


def _verify(folder: Path) -> None:
    """Raise a CheckpointError unless every file has the size and the content that the manifest says."""
    manifest_file = folder / _MANIFEST
    if not manifest_file.is_file():
        raise CheckpointError(f"{_MANIFEST} is missing")
    try:
        manifest = json.loads(manifest_file.read_text())
    except ValueError:
        raise CheckpointError(f"{_MANIFEST} is no JSON") from None
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{_MANIFEST} does not list files")
    whole = {f"{kind}.safetensors" for kind in WHOLE_FILES}
    parts = {name for name in manifest if Path(name).name == name and Path(name).match(PART_FILES)}
    expected = {*_ALWAYS, *(parts or whole)}
    if set(manifest) != expected:
        raise CheckpointError(f"{_MANIFEST} does not list {', '.join(sorted(expected))}")
    for name, facts in manifest.items():
        _verify_file(folder / name, facts)


def _verify_file(path: Path, facts: list[Any]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing")
    if [path.stat().st_size, _digest(path)] != facts:
        raise CheckpointError(f"{path.name} is not what was written")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
