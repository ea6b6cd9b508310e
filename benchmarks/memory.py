"""Bytes per parameter and rank under each DeepSpeed file: as the ZeRO formulas say, and as measured.

    python benchmarks/memory.py                       # 1, 2 and 4 ranks, a few minutes on two cores

Computed for Adam (Rajbhandari et al. 2020, section 3) by `biencoder.training.engine.memory`. Measured: every distinct
tensor storage alive in a rank's process, activations and the gradient bucket of fixed size left out, divided by the
parameters of a small BERT; the rank that has most. Once between backward pass and update, and once during the backward
pass, when the last (and largest) parameter has just got its gradient. On a CPU the device and the host are one, so what
a file offloads is in the same sum. Prints a table, and writes benchmarks/results/memory.json.
"""

import argparse
import gc
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from ranks import run_ranks
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertModel

from biencoder.config.load import load_config
from biencoder.config.paths import find_file
from biencoder.config.schema import DistributedConfig, LossConfig, ModelConfig
from biencoder.data.tokens import Tokens
from biencoder.distributed.join import join
from biencoder.distributed.world import World
from biencoder.model.bi_encoder import BiEncoder, TripletBatch
from biencoder.training.engine.engine import Engine
from biencoder.training.engine.memory import bucket_bytes, offloaded_bytes, state_bytes
from biencoder.training.engine.settings import Settings, import_deepspeed, read_settings
from biencoder.training.loss import combined_loss

RANKS, MORE_RANKS = (1, 2, 4), (8, 64)
MODES = """zero0_fp32 zero0_bf16 zero1_fp32 zero1_bf16 zero1_fp16 zero2_fp32 zero2_bf16 zero2_fp16 zero2_offload_bf16
zero2_offload_fp16 zero3_fp32 zero3_bf16 zero3_fp16 zero3_offload_bf16""".split()
OUT = Path(__file__).parent / "results" / "memory.json"


def computed(settings: dict[str, Any], ranks: int) -> tuple[float, float]:
    """Bytes per parameter of one rank on its device, and on its host."""
    million = 10**6
    device = state_bytes(settings, million, num_ranks=ranks) / million
    return device, offloaded_bytes(settings, million, num_ranks=ranks) / million


def settings_of(mode: str) -> Settings:
    """As far as `computed` needs them."""
    file, precision = mode.rsplit("_", 1)
    settings: Settings = json.loads(find_file(f"ds_configs/{file}.json").read_text())
    for other in ("bf16", "fp16"):
        settings[other]["enabled"] = other == precision
    return settings


def measure(ranks: World, mode: str) -> tuple[float, float]:
    """Bytes per parameter alive in this process between backward pass and update, and during the backward pass."""
    import_deepspeed().get_accelerator().is_fp16_supported = lambda: True
    bert = BertConfig(vocab_size=8000, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=1024)
    gc.collect()
    before = _alive()
    encoder = BertModel(bert, add_pooling_layer=False)
    model = BiEncoder(ModelConfig(embedding_dim=64), [encoder], "mean")
    parameters = sum(p.numel() for p in model.parameters())
    last = encoder.get_input_embeddings().weight  # type: ignore[no-untyped-call]
    file, precision = mode.rsplit("_", 1)
    keys = {"deepspeed_config": f"ds_configs/{file}.json", "train.precision": precision, "train.micro_batch_size": "4"}
    config = load_config(overrides=keys | {"train.global_batch_size": str(4 * ranks.size)})
    train, settings = config.train, read_settings(config, ranks.size)
    engine = Engine(model, train, settings, ranks, 10)
    during: list[int] = []
    for step in range(2):  # the moments come to life in the first step
        tokens = Tokens(torch.randint(5, 8000, (12, 16)), torch.ones(12, 16, dtype=torch.long))
        batch = TripletBatch([tokens], None, torch.arange(4), torch.arange(4, 8), torch.arange(8, 12)[:, None], None)
        loss = combined_loss(engine.score(batch), LossConfig()).total
        if step:
            last.register_post_accumulate_grad_hook(lambda _: during.append(_alive()))
        engine.backward(loss)
        if step:
            break
        engine.step()
    del loss, batch, tokens
    gc.collect()
    bucket = bucket_bytes(settings)
    # Stages 1 and 2 give the bucket back after every backward pass, stage 3 keeps it.
    kept = bucket if settings["zero_optimization"].get("stage", 0) == 3 else 0
    return (_alive() - before - kept) / parameters, (max(during) - before - bucket) / parameters


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


def worker(modes: list[str]) -> None:
    with join(DistributedConfig(timeout_s=300, control_timeout_s=300, silence_s=300)) as ranks:
        found = {}
        for mode in modes:
            each = ranks.all_gather_object(measure(ranks, mode))
            found[mode] = [max(column) for column in zip(*each, strict=True)]
        if ranks.is_main:
            print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", default=MODES, help="DeepSpeed file and precision, as in zero2_offload_bf16")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.modes)
        return
    measured = {
        size: run_ranks(__file__, ["--worker", "--modes", *arguments.modes], size=size, threads=1) for size in RANKS
    }
    table = Table(title="bytes per parameter and rank: computed / before the update / during the backward pass", box=None)
    table.add_column("file")
    table.add_column("bucket\nMB", justify="right")
    for size in (*RANKS, *MORE_RANKS):
        table.add_column(f"{size} rank{'s' * (size > 1)}", justify="right")
    rows = json.loads(OUT.read_text()) if OUT.exists() else {}
    for mode in arguments.modes:
        settings = settings_of(mode)
        expected = {size: computed(settings, size) for size in (*RANKS, *MORE_RANKS)}
        cells = []
        for size, (device, host) in expected.items():
            cell = f"{device:.1f} + {host:.1f}" if host else f"{device:.1f}"
            cells.append(" / ".join([cell, *(f"{found:.1f}" for found in measured.get(size, {}).get(mode, ()))]))
        table.add_row(mode, f"{bucket_bytes(settings) / 1e6:.0f}", *cells)
        rows[mode] = {
            "bucket_bytes": bucket_bytes(settings),
            "computed_device": {size: device for size, (device, _) in expected.items()},
            "computed_host": {size: host for size, (_, host) in expected.items()},
            "before_update": {size: measured[size][mode][0] for size in RANKS},
            "during_backward": {size: measured[size][mode][1] for size in RANKS},
        }
    Console(width=132).print(table)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
