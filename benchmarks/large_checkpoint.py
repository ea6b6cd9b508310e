"""A checkpoint of a large model under ZeRO-3: what it takes to write one, and to go on from it.

    python benchmarks/large_checkpoint.py                                   # a billion parameters, 2 ranks, bf16
    python benchmarks/large_checkpoint.py --layers 4 --placement rank0      # 0.2 billion, through rank 0

Random weights of the BERT shape, short texts, and DeepSpeed settings that hold little beside a rank's part: parameters are
gathered again for the backward pass, and the update takes 100 million of them at a time. One job makes a step, writes a
checkpoint, and makes a further step; another one is built anew, reads the checkpoint, and makes that step: the loss must be
the same. Peaks are of the resident memory of a rank in each phase, mapped files included. Prints a table, and
writes benchmarks/results/large_checkpoint.json.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from ranks import run_ranks
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertModel

from biencoder.config.load import load_config
from biencoder.config.schema import DistributedConfig, LossConfig, ModelConfig
from biencoder.data.tokens import Tokens
from biencoder.distributed.join import join
from biencoder.distributed.world import World
from biencoder.model.bi_encoder import BiEncoder, TripletBatch
from biencoder.training.engine.engine import Engine
from biencoder.training.engine.settings import read_settings
from biencoder.training.engine.state import FromMain, SavedTensors
from biencoder.training.loss import combined_loss
from biencoder.training.recovery.checkpoint import Checkpoint, CheckpointFolder
from biencoder.training.recovery.parts import SavedParts

OUT = Path(__file__).parent / "results" / "large_checkpoint.json"
_PROCESS = Path("/proc/self")


class Phases:
    """Seconds and peak memory of each phase of this rank."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_gib: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        (_PROCESS / "clear_refs").write_text("5")  # the peak starts anew
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin
        found = re.search(r"VmHWM:\s+(\d+) kB", (_PROCESS / "status").read_text())
        self.peak_gib[name] = int(found[1]) / 2**20 if found else 0.0


def build(ranks: World, layers: int) -> Engine:
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=8000, hidden_size=2048, num_hidden_layers=layers, num_attention_heads=16, intermediate_size=8192
    )
    model = BiEncoder(ModelConfig(embedding_dim=64), [BertModel(bert, add_pooling_layer=False)], "mean")
    keys = {"deepspeed_config": "ds_configs/zero3.json", "train.precision": "bf16", "train.micro_batch_size": "1"}
    config = load_config(overrides=keys | {"train.global_batch_size": str(ranks.size)})
    settings = read_settings(config, ranks.size)
    settings["zero_optimization"] |= {
        "sub_group_size": 100_000_000,
        "stage3_max_live_parameters": 100_000_000,
        "stage3_max_reuse_distance": 100_000_000,
    }
    return Engine(model, config.train, settings, ranks, 10)


def one_step(engine: Engine, ranks: World, number: int) -> float:
    """The mean loss over ranks."""
    torch.manual_seed(100 * number + ranks.rank)
    tokens = Tokens(torch.randint(5, 8000, (3, 8)), torch.ones(3, 8, dtype=torch.long))
    batch = TripletBatch([tokens], None, torch.arange(1), torch.arange(1, 2), torch.arange(2, 3)[:, None], None)
    loss = combined_loss(engine.score(batch), LossConfig()).total
    engine.backward(loss)
    engine.step()
    return float(ranks.all_reduce_mean(loss.detach()))


def write(engine: Engine, ranks: World, folder: CheckpointFolder, placement: str) -> None:
    state, mining = {"engine": engine.scalars()}, {"none": torch.zeros(1)}
    if placement == "sharded":
        parts, shapes = engine.own_parts()
        failure = folder.write_sharded(Checkpoint(1, state | {"shapes": shapes}, mining), parts, ranks, also_keep=-1)
        if failure:
            raise failure
        return
    whole = engine.state()
    if whole:
        folder.write(Checkpoint(1, state, mining, whole.model, whole.optimizer), also_keep=-1)
        folder.wait()


def read(engine: Engine, ranks: World, folder: CheckpointFolder) -> None:
    found = folder.newest()[0] if ranks.is_main else None
    state, files = ranks.on_main(lambda: (found.state, found.parts) if found else ({}, ()))
    saved: SavedTensors = FromMain({**found.model, **found.optimizer} if found else {}, ranks)
    if files:
        saved = SavedParts(files, state["shapes"])
    engine.load(saved, state["engine"])


def worker(arguments: argparse.Namespace) -> None:
    phases, folder = Phases(), CheckpointFolder(Path(arguments.folder), keep=1)
    with join(DistributedConfig(timeout_s=600, control_timeout_s=600, silence_s=600)) as ranks:
        with phases.phase("build"):
            engine = build(ranks, arguments.layers)
        losses = []
        if arguments.resume:
            with phases.phase("read"):
                read(engine, ranks, folder)
        else:
            with phases.phase("step"):
                losses.append(one_step(engine, ranks, 0))
            with phases.phase("write"):
                write(engine, ranks, folder, arguments.placement)
        with phases.phase("step after it"):
            losses.append(one_step(engine, ranks, 1))
        peaks = ranks.all_gather_object(phases.peak_gib)
        if ranks.is_main:
            parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.model.parameters())
            print(json.dumps({"parameters": parameters, "losses": losses, "seconds": phases.seconds, "peak_gib": peaks}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=20, help="of 50 million parameters each (default: 20)")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--placement", choices=("sharded", "rank0"), default="sharded")
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        worker(arguments)
        return
    with tempfile.TemporaryDirectory(dir=OUT.parent.parent) as folder:
        command = ["--layers", str(arguments.layers), "--placement", arguments.placement, "--folder", folder]
        first = run_ranks(__file__, command, size=arguments.ranks)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
        second = run_ranks(__file__, [*command, "--resume"], size=arguments.ranks)
    table = Table(
        title=f"{first['parameters'] / 1e9:.2f} billion parameters, {arguments.ranks} ranks, {arguments.placement}: "
        f"{size / 2**30:.1f} GiB on disk",
        box=None,
    )
    for column in ("job", "phase", "seconds", "peak of each rank, GiB"):
        table.add_column(column)
    for job, found in (("writes", first), ("goes on", second)):
        for phase, seconds in found["seconds"].items():
            table.add_row(job, phase, f"{seconds:.1f}", ", ".join(f"{peak[phase]:.1f}" for peak in found["peak_gib"]))
    Console(width=100).print(table)
    same = first["losses"][-1] == second["losses"][-1]
    print(
        f"loss of the step after it: {first['losses'][-1]!r} and {second['losses'][-1]!r}: {'equal' if same else 'OTHER'}"
    )
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"arguments": vars(arguments), "bytes": size, "writes": first, "goes on": second}, indent=1))
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
