"""Ten steps in ten minutes on one NVIDIA GPU: what runs there, what agrees with a CPU, and how fast it is.

    python benchmarks/gpu.py               # says so and ends with 0 where PyTorch sees no GPU
    python benchmarks/gpu.py --dry-run     # the same steps in small on a CPU, to try out the script

Each step (see gpu_steps.py) is a process of its own with a bound on its time. A step that fails leaves its error in one
line, and the next one follows. All is made here, without a registry: a BERT base with random weights, a tokenizer, and
synthetic texts whose lengths are spread as ArguAna's. The peer, sentence-transformers at its best, takes part where it is
installed.

It was written where there is no GPU, and tried with --dry-run alone: no figure of it exists so far.

Writes benchmarks/results/gpu.json and gpu.md after each step.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

OUT = Path(__file__).parent / "results" / "gpu.json"
STEPS = Path(__file__).with_name("gpu_steps.py")
BOUNDS_S = {
    "inputs": 40,
    "attention": 40,
    "unit tests": 70,
    "preflight": 40,
    "fp32 as on a CPU": 60,
    "precisions": 120,
    "out of memory": 60,
    "waits": 40,
    "packed": 70,
    "training": 150,
    "embedding": 60,
}
"""Seconds that a step may take; together with the rest they stop at `_ALL_S`."""
_ALL_S = 600
_SLOWER = 5
"""How many times as long a step may take in a dry run, on a CPU that others may use as well."""
Results = dict[str, dict[str, Any]]


def run_step(name: str, folder: Path, *, dry_run: bool, bound_s: float) -> dict[str, Any]:
    """What a step has found, or its error in one line; and its seconds."""
    start = time.perf_counter()
    command = [sys.executable, str(STEPS), name, str(folder), *(["--dry-run"] if dry_run else [])]
    try:
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=max(1.0, bound_s))
    except subprocess.TimeoutExpired:
        outcome: dict[str, Any] = {"error": f"not done after {bound_s:.0f} s"}
    else:
        outcome = outcome_of(ended.returncode, ended.stdout, ended.stderr)
    return outcome | {"seconds": round(time.perf_counter() - start, 1)}


def outcome_of(code: int, stdout: str, stderr: str) -> dict[str, Any]:
    """What a step has printed as JSON in its last line; the last line of its errors where it has failed."""
    said = stdout.strip().splitlines()
    if code == 0 and said:
        try:
            return {"found": json.loads(said[-1])}
        except ValueError:
            pass
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return {"error": f"{lines[-1] if lines else 'no word'} (exit code {code})"[:300]}


def markdown(device: str, results: Results) -> str:
    """The one table."""
    rows = [f"Steps on {device}", "", "| step | s | found |", "|---|---|---|"]
    for name, outcome in results.items():
        found = outcome.get("found", {})
        said = "; ".join(f"{key}: {_short(value)}" for key, value in found.items())
        cell = f"**failed**: {outcome['error']}" if "error" in outcome else said
        rows.append(f"| {name} | {outcome['seconds']} | {cell.replace('|', '/')} |")
    return "\n".join(rows) + "\n"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(part)}" for key, part in value.items())
    return str(value)


def run_all(device: str, names: list[str], out: Path, *, dry_run: bool) -> Results:
    """All steps, one after the other; the results so far are written after each."""
    results: Results = {}
    start, slower = time.perf_counter(), _SLOWER if dry_run else 1
    out.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            left_s = _ALL_S * slower - (time.perf_counter() - start)
            if left_s <= 0:
                results[name] = {"error": "no time was left", "seconds": 0.0}
            else:
                bound_s = min(BOUNDS_S[name] * slower, left_s)
                results[name] = run_step(name, Path(folder), dry_run=dry_run, bound_s=bound_s)
            print(name, json.dumps(results[name]), flush=True)
            out.write_text(json.dumps({"device": device, "dry_run": dry_run, "steps": results}, indent=2) + "\n")
            out.with_suffix(".md").write_text(markdown(device, results))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--steps", nargs="+", choices=list(BOUNDS_S), default=list(BOUNDS_S), help="default: all")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    if not (given.dry_run or torch.cuda.is_available()):
        print("benchmarks/gpu.py measures on an NVIDIA GPU, and PyTorch sees none here; --dry-run tries the steps on a CPU")
        return
    device = "a CPU, in small (a dry run)" if given.dry_run else torch.cuda.get_device_name()
    names = [name for name in BOUNDS_S if name == "inputs" or name in given.steps]
    run_all(device, names, given.out, dry_run=given.dry_run)
    print(given.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
