"""What two runs must have in common."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from biencoder.tracking.names import measures_time


def story(run_dir: Path) -> list[dict[str, Any]]:
    """What a run has computed, in order: losses, norms, learning rates, negatives, accuracies; no times, no restarts."""
    told = []
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        of_time = record.get("guard") in ("slow rank", "data stall")
        if record["kind"] != "checkpoint" and record.get("event") not in ("resumed", "checkpoint failed") and not of_time:
            told.append({k: v for k, v in record.items() if k != "time" and not measures_time(k)})
    return told


def same_weights(one: Path, other: Path, model: str = "last") -> bool:
    def weights(run_dir: Path) -> dict[str, Any]:
        folder = run_dir / "model" / model
        files = sorted(folder.rglob("*.safetensors"))
        return {f"{file.relative_to(folder)} {k}": w for file in files for k, w in load_file(file).items()}

    a, b = weights(one), weights(other)
    return len(a) > 1 and a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
