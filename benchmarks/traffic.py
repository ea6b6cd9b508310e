"""The bytes that a rank sends, by the number of ranks, counted on the loopback device.

    python benchmarks/traffic.py                       # two minutes on two cores
    unshare --net sh -c 'ip link set lo up; python benchmarks/traffic.py'     # as root: nobody else's bytes are counted

answers    to the queries of a sharded search: the same queries and the same neighbours, whatever the number of ranks
distances  of pairs of texts that are held by different ranks, as the audit of negatives asks for them
gradients  of the candidates of the contrastive loss: every rank has the same number of its own
whole      a checkpoint of a small BERT under ZeRO-3 through rank 0
parts      the same checkpoint where every rank writes its part

Prints the bytes of a rank at 2, 4 and 8 ranks, and those at 8 as a multiple of those at 2. What is bounded grows as
(R - 1) / R does, which is 1.75 times; what every rank gets from every other grows 7 times. Over gloo a reduce-scatter
sends as much as a sum over all ranks, over NCCL half of it. Writes benchmarks/results/traffic.json.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from ranks import run_ranks
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertModel

from biencoder.config.load import load_config
from biencoder.config.schema import DistributedConfig, ModelConfig
from biencoder.distributed.join import join
from biencoder.distributed.world import World
from biencoder.model.bi_encoder import BiEncoder, Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.nearest import nearest_of_ranks
from biencoder.training.engine.engine import Engine
from biencoder.training.engine.settings import read_settings
from biencoder.training.recovery.checkpoint import Checkpoint, CheckpointFolder

OUT = Path(__file__).parent / "results" / "traffic.json"
Work = Callable[[], object]
RANKS = (2, 4, 8)
QUERIES, NEIGHBOURS = 20_000, 16
DIMENSION, CANDIDATES = 128, 4096


def sent_by_a_rank(ranks: World, work: Work) -> float:
    """Bytes of each rank in the mean, also those of the signs of life in that time."""
    ranks.together(lambda: None)
    before = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
    ranks.together(work)
    sent: int = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before
    return sent / ranks.size


def answers(ranks: World) -> Work:
    counts = [QUERIES // ranks.size] * ranks.size
    rng = np.random.default_rng(ranks.rank)
    shape = (sum(counts), NEIGHBOURS)
    return lambda: nearest_of_ranks(rng.integers(0, 10**6, shape), np.sort(rng.random(shape), axis=1), ranks, counts)


def distances(ranks: World) -> Work:
    holder_M = np.arange(QUERIES, dtype=np.int32) % ranks.size
    held = np.flatnonzero(holder_M == ranks.rank)
    mine = Vectors(torch.zeros(len(held), DIMENSION), torch.zeros(len(held), 0))
    embedded = EmbeddedTexts(held, mine, mine, np.arange(QUERIES), holder_M)
    return lambda: embedded.distances("query", np.arange(QUERIES), np.roll(np.arange(QUERIES), 1), ranks)


def gradients(ranks: World) -> Work:
    rows = torch.zeros(CANDIDATES, DIMENSION, requires_grad=True)
    return lambda: torch.autograd.backward(ranks.all_gather(rows).sum())


def whole(ranks: World) -> Work:
    return small_engine(ranks).state


def parts(ranks: World) -> Work:
    engine = small_engine(ranks)
    folder = Path(ranks.on_main(tempfile.mkdtemp))

    def write() -> None:
        tensors, shapes = engine.own_parts()
        checkpoint = Checkpoint(1, {"engine": engine.scalars(), "shapes": shapes}, {"none": torch.zeros(1)})
        if failure := CheckpointFolder(folder, keep=1).write_sharded(checkpoint, tensors, ranks, also_keep=-1):
            raise failure
        if ranks.is_main:
            shutil.rmtree(folder)

    return write


def small_engine(ranks: World) -> Engine:
    """Of 3.7 million parameters; their moments come with the first step, so that only parameters are saved here."""
    bert = BertConfig(vocab_size=2000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
    model = BiEncoder(ModelConfig(embedding_dim=64), [BertModel(bert, add_pooling_layer=False)], "mean")
    keys = {"deepspeed_config": "ds_configs/zero3.json", "train.precision": "fp32"}
    config = load_config(overrides=keys | {"train.global_batch_size": str(ranks.size)})
    return Engine(model, config.train, read_settings(config, ranks.size), ranks, 10)


PARTS = {"answers": answers, "distances": distances, "gradients": gradients, "whole": whole, "parts": parts}


def worker() -> None:
    with join(DistributedConfig(timeout_s=300, control_timeout_s=300, silence_s=300)) as ranks:
        found = {name: sent_by_a_rank(ranks, prepare(ranks)) for name, prepare in PARTS.items()}
        if ranks.is_main:
            print(json.dumps(found))


def main() -> None:
    found = {size: run_ranks(__file__, ["worker"], size=size, threads=1) for size in RANKS}
    table = Table("part", *(f"{size} ranks" for size in RANKS), "growth", title="MB that a rank sends", box=None)
    for name in PARTS:
        sent = [found[size][name] for size in RANKS]
        table.add_row(name, *(f"{part / 1e6:.2f}" for part in sent), f"{sent[-1] / sent[0]:.2f}")
    Console().print(table)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
