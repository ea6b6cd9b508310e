"""What an offline W&B run holds, read from its transaction log: protocol buffers in LevelDB's log format.

Blocks of 32 KiB hold pieces: checksum (4 bytes), length (2), type (1: whole, 2: first, 3: middle, 4: last), content. The
first block begins with 7 bytes of W&B's own.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER, _PREFIX = 32768, 7, b":W&B"


def wandb_records(run_dir: Path) -> list[Any]:
    """The records of all W&B runs in a run's folder, oldest first."""
    records = []
    for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for content in _contents(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            records.append(record)
    return records


def history(run_dir: Path) -> list[dict[str, Any]]:
    """What was logged, call by call."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(run_dir)
        if record.WhichOneof("record_type") == "history"
    ]


def _contents(log: bytes) -> Iterator[bytes]:
    assert log.startswith(_PREFIX)
    at, content = _HEADER, b""
    while at + _HEADER <= len(log):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", log, at)
        content += log[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):
            yield content
            content = b""
