"""Bytes per parameter and rank under each DeepSpeed file: as the ZeRO formulas say, and as measured.

    python benchmarks/memory.py                       # 1, 2 and 4 ranks, a minute on two cores

Computed for Adam (Rajbhandari et al. 2020, section 3): weights and gradients in the precision of training, an fp32 copy
of the weights where training is in 16 bits or ZeRO makes one, two fp32 moments; each divided by the ranks if the stage
shards it. Measured: every distinct tensor storage alive in rank 0's process between backward and step, without
activations, divided by the parameters of a small BERT. Files with `offload` are computed for the device and not
measured: on a CPU the device and the host are one.
Prints a table, and writes benchmarks/results/memory.json.
"""

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertModel

from biencoder.config import Config, LossConfig, ModelConfig, TrainConfig, find_file
from biencoder.distributed import World, world
from biencoder.engine import Engine, _import_deepspeed, precision_of, read_settings
from biencoder.loss import combined_loss
from biencoder.model import BiEncoder, TripletBatch
from biencoder.tokens import Tokens

RANKS = (1, 2, 4)


def computed(settings: dict[str, Any], ranks: int) -> float:
    """Bytes per parameter on one rank's device, between backward and step."""
    zero = settings.get("zero_optimization", {"stage": 0})
    stage, half = zero.get("stage", 0), precision_of(settings) != "fp32"
    width = 2 if half else 4
    weights = 0.0 if "offload_param" in zero else width / (ranks if stage == 3 else 1)
    gradients = width / (ranks if stage >= 2 else 1)
    copy = 4.0 if half or stage else 0.0
    states = 0.0 if "offload_optimizer" in zero else (copy + 8) / (ranks if stage else 1)
    return weights + gradients + states


def measure(ranks: World, file: str) -> float:
    """Bytes per parameter alive in this process between backward and step."""
    _import_deepspeed().get_accelerator().is_fp16_supported = lambda: True
    bert = BertConfig(vocab_size=8000, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=1024)
    gc.collect()
    before = _alive()
    model = BiEncoder(ModelConfig(embedding_dim=64), [BertModel(bert, add_pooling_layer=False)], "mean")
    parameters = sum(p.numel() for p in model.parameters())
    train = TrainConfig(global_batch_size=4 * ranks.size, micro_batch_size=4)
    settings = read_settings(Config(train=train, deepspeed_config=file), ranks.size)
    engine = Engine(model, train, settings, ranks, 10)
    for step in range(2):  # the moments come to life in the first step
        tokens = Tokens(torch.randint(5, 8000, (12, 16)), torch.ones(12, 16, dtype=torch.long))
        batch = TripletBatch(tokens, None, torch.arange(4), torch.arange(4, 8), torch.arange(8, 12))
        loss = combined_loss(engine.score(batch), LossConfig()).total
        engine.backward(loss)
        if step:
            break
        engine.step()
    del loss, batch, tokens
    gc.collect()
    return (_alive() - before) / parameters


def _alive() -> int:
    """Bytes of all distinct tensor storages in this process."""
    storages = {}
    warnings.simplefilter("ignore")  # of objects that do not like to be looked at
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.device.type != "meta":
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def worker(files: list[str]) -> None:
    with world(timeout_s=300, control_timeout_s=300, silence_s=300) as ranks:
        found = {file: measure(ranks, file) for file in files if "offload" not in file}
        if ranks.is_main:
            print(json.dumps(found), flush=True)


def run(files: list[str], size: int) -> dict[str, float]:
    """Measured bytes per parameter of each file on so many ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", "--files", *files],
            env=os.environ | {name: str(value) for name, value in (shared | {"RANK": r, "LOCAL_RANK": r}).items()},
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(size)
    ]
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{size} ranks failed")
    found: dict[str, float] = json.loads(said[0].splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", default=sorted(str(p) for p in Path("ds_configs").glob("zero*.json")))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.files)
        return
    table = Table(title="bytes per parameter and rank: computed / measured", box=None)
    table.add_column("file")
    for column in (*(f"{n} rank{'s' * (n > 1)}" for n in RANKS), "8 ranks", "64 ranks"):
        table.add_column(column, justify="right")
    measured = {size: run(arguments.files, size) for size in RANKS}
    rows = []
    for file in arguments.files:
        settings = json.loads(find_file(file).read_text())
        cells: list[str] = []
        row: dict[str, Any] = {"file": file}
        for size in RANKS:
            expected, found = computed(settings, size), measured[size].get(file)
            cells.append(f"{expected:.1f}" if found is None else f"{expected:.1f} / {found:.1f}")
            row |= {f"computed_{size}": expected, f"measured_{size}": found}
        table.add_row(Path(file).stem, *cells, *(f"{computed(settings, n):.1f}" for n in (8, 64)))
        rows.append(row)
    Console(width=120).print(table)
    out = Path(__file__).parent / "results" / "memory.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
