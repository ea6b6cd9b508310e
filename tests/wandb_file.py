"""What the offline W&B runs in a run's folder hold."""

import json
from pathlib import Path
from typing import Any

from biencoder.tracking.wandb_log import read_log


def wandb_records(run_dir: Path) -> list[Any]:
    """The records of all W&B runs in a run's folder, oldest first."""
    return [record for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")) for record in read_log(file)]


def history(run_dir: Path) -> list[dict[str, Any]]:
    """What was logged, call by call."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(run_dir)
        if record.WhichOneof("record_type") == "history"
    ]
