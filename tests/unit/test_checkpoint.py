"""A checkpoint is whole or not there, whatever happens while it is written."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors import SafetensorError

from biencoder.errors import CheckpointError
from biencoder.training.recovery.checkpoint import Checkpoint, CheckpointFolder


def checkpoint(step: int, size: int = 10) -> Checkpoint:
    weights = {"w": torch.full((size,), float(step))}
    return Checkpoint(step, {"epoch": step // 10}, weights, {"w.exp_avg": weights["w"] / 2}, {"window": torch.zeros(1, 5)})


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
        monkeypatch.setattr("biencoder.training.recovery.checkpoint._verify", Mock(side_effect=error))
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
