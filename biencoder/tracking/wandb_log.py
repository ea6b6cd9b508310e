"""What a Weights & Biases run already holds, read from the transaction logs that it keeps in the run's folder.

A log is LevelDB's log format around protocol buffers. Blocks of 32 KiB hold pieces: checksum (4 bytes), length (2), type
(1: whole, 2: first, 3: middle, 4: last), content. The first block begins with 7 bytes of W&B's own. W&B writes one log a
start, offline (`wandb/offline-run-*`) and online (`wandb/run-*`), and may lose the end of a log when its process is killed.

contents = read_wandb_contents(Path("runs/mine"), "1a2b3c4d")
("train/active_triplets", 40) in contents.records
"""

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biencoder.tracking.json_lines import parsed_lines

_BLOCK, _HEADER, _PREFIX = 32768, 7, b":W&B"
Key = tuple[str, int]
"""A record: the first of its names in alphabetical order, and its step."""


@dataclass(frozen=True, slots=True)
class WandbContents:
    records: set[Key] = field(default_factory=set)
    settings: dict[str, Any] = field(default_factory=dict)
    """The configuration that the last start showed."""


def read_wandb_contents(run_dir: Path, run_id: str) -> WandbContents:
    """What earlier starts have logged to this W&B run. If their logs were deleted: everything in metrics.jsonl."""
    contents = WandbContents()
    logs = sorted(
        run_dir.glob(f"wandb/*run-*-{run_id}/*.wandb"), key=lambda file: file.parent.name.removeprefix("offline-")
    )
    for log in logs:
        for record in read_log(log):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                contents.records.update(_history_key(record.history.item))
            elif kind == "alert":
                contents.records.update(_alert_key(record.alert))
            elif kind == "run":
                contents.settings.update({item.key: json.loads(item.value_json) for item in record.run.config.update})
    if not logs:
        contents.records.update(_recorded(run_dir / "metrics.jsonl"))
    return contents


def read_log(file: Path) -> Iterator[Any]:
    """The records of one log, oldest first, up to where it was torn."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto import wandb_internal_pb2

    with suppress(DecodeError):
        for content in _log_entries(file.read_bytes()):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # made when imported
            record.ParseFromString(content)
            yield record


def key_of(line: Mapping[str, Any]) -> Key | None:
    """The key of a line of metrics.jsonl; None for those that W&B is not contents."""
    match line["kind"]:
        case "event":
            return (f"alert {line['guard']}", line["step"]) if line["event"] == "alert" else None
        case "histogram" | "table":
            return line["name"], line["step"]
        case _:
            return min(name for name in line if "/" in name), line["step"]


def _history_key(items: Any) -> Iterator[Key]:
    values = {item.key or item.nested_key[0]: item.value_json for item in items}
    names = [name for name in values if "/" in name]
    if names and "step" in values:
        yield min(names), json.loads(values["step"])


def _alert_key(alert: Any) -> Iterator[Key]:
    step = alert.text.removeprefix("step ").split(":")[0]
    if step.isdecimal():
        yield f"alert {alert.title}", int(step)


def _recorded(file: Path) -> Iterator[Key]:
    content = file.read_bytes() if file.exists() else b""
    for _, line in parsed_lines(content):
        with suppress(ValueError, KeyError):  # an object that is no record
            if line and (key := key_of(line)):
                yield key


def _log_entries(log: bytes) -> Iterator[bytes]:
    if not log.startswith(_PREFIX):
        return
    at, content = _HEADER, b""
    while at + _HEADER <= len(log):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", log, at)
        content += log[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if at > len(log):
            return
        if kind in (1, 4):
            yield content
            content = b""
