"""A checkpoint is whole or not there, whatever happens while it is written."""

import errno
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from biencoder.distributed.world import World
from biencoder.errors import CheckpointError
from biencoder.training.engine.state import Part
from biencoder.training.recovery.checkpoint import Checkpoint, CheckpointFolder
from biencoder.training.recovery.parts import SavedParts, write_parts


def checkpoint(step: int, size: int = 10) -> Checkpoint:
    weights = {"w": torch.full((size,), float(step))}
    return Checkpoint(step, {"epoch": step // 10}, {"window": torch.zeros(1, 5)}, weights, {"w.exp_avg": weights["w"] / 2})


def write(folder: CheckpointFolder, step: int, *, also_keep: int = -1) -> None:
    folder.write(checkpoint(step), also_keep=also_keep)
    folder.wait()


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    write(folder, 12)
    found, complaints = folder.newest()
    assert complaints == []
    assert found is not None
    assert (found.step, found.state["epoch"]) == (12, 1)
    assert found.model["w"].tolist() == [12.0] * 10
    assert found.optimizer["w.exp_avg"].tolist() == [6.0] * 10
    assert (tmp_path / "latest").read_text() == "step-00000012\n"


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (1, 2, 3, 4, 5):
        write(folder, step, also_keep=2 if step > 2 else -1)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-0000000{n}" for n in (2, 4, 5)]


def test_large_tensors_of_an_epoch_are_written_once_and_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, mining = CheckpointFolder(tmp_path, keep=2), {"ahead": torch.arange(1000.0)}

    def write_mining(step: int, mining: Mapping[str, torch.Tensor]) -> Path:
        folder.write(replace(checkpoint(step), mining=mining), also_keep=-1)
        folder.wait()
        return tmp_path / f"step-{step:08d}" / "mining.safetensors"

    assert not write_mining(1, mining).samefile(write_mining(2, mining))  # small: each has its own
    monkeypatch.setattr("biencoder.training.recovery.checkpoint._LINKED_BYTES", 1000)
    written = [write_mining(step, mining) for step in (3, 4)]
    assert written[0].samefile(written[1])
    fifth = write_mining(5, mining)
    assert not written[0].exists()  # deleted, and what was linked is there
    flip(fifth)
    again = write_mining(5, mining)
    assert load_file(again)["ahead"].equal(mining["ahead"])  # damage is found before it is linked
    fifth = again
    equal = write_mining(6, {"ahead": mining["ahead"].clone()})  # another tensor may be another one's
    assert not equal.samefile(fifth)
    seventh = write_mining(7, {"ahead": mining["ahead"] + 1, "more": torch.ones(1)})
    assert not seventh.samefile(equal)
    found, complaints = folder.newest()
    assert complaints == []
    assert found is not None
    assert found.mining["ahead"].equal(mining["ahead"] + 1)
    monkeypatch.setattr("os.link", no_links)
    eighth = write_mining(8, found.mining)
    assert not write_mining(9, found.mining).samefile(eighth)
    assert CheckpointFolder(tmp_path, keep=2).newest()[1] == []


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def no_links(source: Path, target: Path) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_leftovers_of_a_killed_writer_are_no_checkpoint_and_go_away(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    write(folder, 1)
    half = tmp_path / ".step-00000002.new"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    found, complaints = folder.newest()
    assert (found.step if found else None, complaints) == (1, [])
    write(folder, 3)
    assert not half.exists()


def test_a_manifest_that_lists_other_files_is_damage(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    write(folder, 1)
    manifest = tmp_path / "step-00000001" / "manifest.json"
    manifest.write_text(json.dumps({"../../secret": [0, ""]}))
    found, (complaint,) = folder.newest()
    assert found is None
    assert "does not list" in complaint


def test_a_write_that_does_not_read_back_is_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a full disk is: training goes on, and the checkpoint before stands."""
    folder = CheckpointFolder(tmp_path, keep=2)
    write(folder, 1)
    for error in (CheckpointError("model.safetensors is not what was written"), SafetensorError("I/O error: 5")):
        monkeypatch.setattr("biencoder.training.recovery.checkpoint._verify_file", Mock(side_effect=error))
        with pytest.raises(OSError, match=str(error)):
            write(folder, 2)
    monkeypatch.undo()
    found, complaints = folder.newest()
    assert (found.step if found else None, complaints) == (1, [])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 50 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=50m", "none", disk], check=False).returncode:
        pytest.skip("needs the right to mount a filesystem")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_fails_the_write_and_spares_the_checkpoint_before(small_disk: Path) -> None:
    folder = CheckpointFolder(small_disk / "checkpoints", keep=5)
    folder.write(checkpoint(1, size=3_000_000), also_keep=-1)  # 24 MB
    folder.wait()
    folder.write(checkpoint(2, size=5_000_000), also_keep=-1)
    with pytest.raises(OSError, match="No space left"):
        folder.wait()
    assert [path.name for path in (small_disk / "checkpoints").iterdir() if path.name.startswith((".", "step"))] == [
        "step-00000001"
    ]
    found, complaints = folder.newest()
    assert (found.step if found else None, complaints) == (1, [])


def write_sharded(folder: CheckpointFolder, step: int, *, size: int = 10) -> OSError | None:
    """By one rank: a tensor in two parts and a further one."""
    whole = torch.arange(size).float() + step
    parts = [Part("w", 0, whole[: size // 2]), Part("w", size // 2, whole[size // 2 :].half()), Part("b", 0, whole[:1])]
    state = {"epoch": step // 10, "shapes": {"w": (size // 2, 2), "b": ()}}
    sharded = Checkpoint(step, state, {"window": torch.zeros(1, 5)})
    return folder.write_sharded(sharded, parts, World.alone(), also_keep=-1)


def test_parts_are_put_together_again(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=1)
    write(folder, 1)
    assert write_sharded(folder, 2) is None
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000002"]
    assert (tmp_path / "latest").read_text() == "step-00000002\n"
    found, complaints = folder.newest()
    assert found is not None
    assert (found.step, complaints, found.model) == (2, [], {})
    saved = SavedParts(found.parts, found.state["shapes"])
    assert saved.whole("w").tolist() == [[2.0, 3.0], [4.0, 5.0], [6.0, 7.0], [8.0, 9.0], [10.0, 11.0]]
    assert saved.whole("b").item() == 2


def test_files_of_parts_are_small_and_hold_every_value_once(tmp_path: Path) -> None:
    values = torch.arange(10.0)
    files = write_parts(
        tmp_path, [Part("w", 5, values[5:]), Part("w", 0, values[:5]), Part("b", 0, values[:2])], rank=3, file_values=4
    )
    assert [file.name for file in files] == [f"part-00003-00{n}.safetensors" for n in range(3)]
    assert [sum(map(len, load_file(file).values())) for file in files] == [4, 4, 4]
    assert SavedParts(files, {"w": (10,), "b": (2,)}).whole("w").equal(values)
    for wrong in ({"w": (11,), "b": (2,)}, {"w": (9,), "b": (2,)}, {"w": (10,)}, {"w": (10,), "b": (2,), "c": (1,)}):
        with pytest.raises(CheckpointError, match="does not hold every value of"):
            SavedParts(files, wrong)
    with pytest.raises(CheckpointError, match="does not hold every value of w once"):
        SavedParts(files[1:], {"w": (10,), "b": (2,)})
    again = write_parts(tmp_path, [Part("w", 4, values[4:5])], rank=4)
    with pytest.raises(CheckpointError, match="does not hold every value of w once"):
        SavedParts([*files, *again], {"w": (10,), "b": (2,)})
    files[0].unlink()
    with pytest.raises(CheckpointError, match=r"part-00003-000\.safetensors cannot be read"):
        SavedParts(files, {"w": (10,), "b": (2,)})


@pytest.mark.parametrize("how", ["damaged", "missing", "not listed"])
def test_a_damaged_part_is_named_and_the_checkpoint_before_is_found(tmp_path: Path, how: str) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    write_sharded(folder, 1)
    write_sharded(folder, 2)
    part, manifest = (tmp_path / "step-00000002" / name for name in ("part-00000-000.safetensors", "manifest.json"))
    if how == "missing":
        part.unlink()
    elif how == "damaged":
        content = bytearray(part.read_bytes())
        content[-1] ^= 1
        part.write_bytes(content)
    else:
        facts = json.loads(manifest.read_text())
        del facts[part.name]
        manifest.write_text(json.dumps(facts))
    found, (complaint,) = folder.newest()
    assert found is not None
    assert found.step == 1
    assert {"damaged": "is not what was written", "missing": "is missing", "not listed": "does not list"}[how] in complaint


def test_a_full_disk_fails_the_parts_and_spares_the_checkpoint_before(small_disk: Path) -> None:
    folder = CheckpointFolder(small_disk / "checkpoints", keep=5)
    assert write_sharded(folder, 1, size=6_000_000) is None  # 24 MB
    failure = write_sharded(folder, 2, size=10_000_000)
    assert failure is not None
    assert "No space left" in str(failure)
    assert [path.name for path in (small_disk / "checkpoints").iterdir() if path.name.startswith((".", "step"))] == [
        "step-00000001"
    ]


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("manifest.json", None, "manifest.json is missing"),
        ("manifest.json", "{", "manifest.json is no JSON"),
        ("manifest.json", "[1]", "manifest.json does not list "),
        ("optimizer.safetensors", None, "optimizer.safetensors is missing"),
        ("state.json", "{}", "state.json is not what was written"),
    ],
)
def test_each_kind_of_damage_is_named_and_the_checkpoint_before_is_found(
    tmp_path: Path, file: str, content: str | None, complaint: str
) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (1, 2):
        write(folder, step)
    damaged = tmp_path / "step-00000002" / file
    damaged.unlink()
    if content is not None:
        damaged.write_text(content)
    found, complaints = folder.newest()
    assert found is not None
    assert found.step == 1
    (sentence,) = complaints
    assert complaint in sentence
