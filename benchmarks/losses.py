"""Whether a change of the code changed the numbers: 20 steps of three objectives on 1 and 2 ranks, compared bit for bit.

python benchmarks/losses.py --out before.json            # before the change
python benchmarks/losses.py --against before.json        # after it: exit code 1 and the first difference, or 0
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, BertModel

from biencoder.model.pretrained import locate

ROOT = Path(__file__).resolve().parent.parent
STEPS = 20
WEIGHTS = {  # triplet, classification, contrastive
    "triplets": (1.0, 1.0, 0.0),
    "contrastive": (0.0, 0.0, 1.0),
    "joint": (1.0, 0.2, 0.5),
}
_TIMES = ("_s", "/seconds", "/slowest_rank", "/slowest_ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the numbers to this file")
    parser.add_argument("--against", type=Path, help="compare with the numbers in this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_bert(Path(folder))
        numbers = {f"{name}, {ranks} ranks": record(name, ranks, model) for name in WEIGHTS for ranks in (1, 2)}
    if arguments.out:
        arguments.out.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    if arguments.against:
        compare(json.loads(arguments.against.read_text(encoding="utf-8")), numbers)


def tiny_bert(folder: Path) -> str:
    """A BERT of 2 layers and 64 dimensions with random weights and MiniLM's tokenizer."""
    config = AutoConfig.from_pretrained(locate("minilm"))
    config.update({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128})
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate("minilm")).save_pretrained(folder)
    return str(folder)


def record(objective: str, ranks: int, model: str) -> list[dict[str, object]]:
    """Every number that a run records, but for times."""
    triplet, classification, contrastive = WEIGHTS[objective]
    settings = {
        "model.name": model,
        "model.max_length": 48,
        "model.dropout": 0.1,
        "loss.triplet_weight": triplet,
        "loss.classification_weight": classification,
        "loss.contrastive_weight": contrastive,
        "mining.negatives": 2 if triplet else 0,
        "mining.random_rate": 0.5,
        "train.max_steps": STEPS,
        "train.global_batch_size": 8,
        "train.micro_batch_size": 2,
        "train.lr": 1e-4,
        "train.log_every": 1,
        "train.precision": "fp32",
        "tracking.wandb": "disabled",
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(str(Path(sys.executable).with_name("torchrun")), f"--nproc_per_node={ranks}", f"--master_port={free_port()}"),
            str(ROOT / "launcher" / "train.py"),
            *(part for key, value in settings.items() for part in (f"--{key}", str(value))),
            *("--run.dir", f"{folder}/run"),
        ]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [measured(line) for line in map(json.loads, lines) if line["kind"] in ("step", "eval", "mine")]


def measured(line: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in line.items() if name != "time" and not name.endswith((*_TIMES, "per_s"))}


def compare(before: dict[str, list[dict[str, object]]], after: dict[str, list[dict[str, object]]]) -> None:
    """Every number that both versions record must be the same; what one alone records is named."""
    alone: set[str] = set()
    for run, lines in after.items():
        assert len(lines) == len(before[run]), f"{run}: {len(before[run])} records before, {len(lines)} now"
        for number, (old, new) in enumerate(zip(before[run], lines, strict=True)):
            alone |= old.keys() ^ new.keys()
            changed = {name: (old[name], new[name]) for name in old.keys() & new.keys() if old[name] != new[name]}
            if changed:
                sys.exit(f"{run}, record {number} (step {new['step']}): {changed}")
    besides = f"; not compared: {', '.join(sorted(alone))}" if alone else ""
    print(f"{len(after)} runs of {STEPS} steps: every number is the same{besides}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
