"""How far a gradient in 16 bits is from that in fp32, by micro-batch, for the same samples.

    python benchmarks/gradients.py                                 # a BERT of two layers, a minute on two cores
    python benchmarks/gradients.py --model minilm --samples 64     # three minutes
    python benchmarks/gradients.py --as-pytorch                    # with PyTorch's own sums, for comparison

A step of `--samples` triplets of the embedded debates is trained in fp32 and in the precision of a DeepSpeed file, from the
same weights (rounded to 16 bits); Adam's first moment is a tenth of the gradient then. Printed is the norm of the
difference over the norm of the fp32 gradient, of all weights and of norms, embeddings and the rest; and seconds a step.
"""

import argparse
import math
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoTokenizer, BertModel

import biencoder.training.engine.engine
from biencoder.config.schema import Config, DistributedConfig, LossConfig, ModelConfig, TrainConfig
from biencoder.data import load_dataset
from biencoder.data.tokens import tokenize
from biencoder.distributed.join import join
from biencoder.distributed.world import World
from biencoder.model.batch import triplet_batch
from biencoder.model.bi_encoder import build_model
from biencoder.model.pretrained import load_pretrained, locate
from biencoder.training.engine.engine import Engine
from biencoder.training.engine.precision import Precision
from biencoder.training.engine.settings import read_settings
from biencoder.training.loss import combined_loss

KINDS = ("norms", "embeddings", "other")


def tiny(folder: Path) -> str:
    """A BERT of 2 layers and 128 dimensions with random weights and MiniLM's tokenizer."""
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    config = AutoConfig.from_pretrained(locate("minilm"))
    config.update(sizes | {"initializer_range": 0.1})
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate("minilm")).save_pretrained(folder)
    return str(folder)


def kind_of(name: str) -> str:
    return "norms" if "LayerNorm" in name else "embeddings" if "embeddings" in name else "other"


def gradient(
    given: argparse.Namespace, ranks: World, model_name: str, stage: int, precision: Precision, micro: int
) -> tuple[dict[str, torch.Tensor], float]:
    """A tenth of each weight's gradient, and the seconds of a step after the first."""
    config = ModelConfig(name=model_name, max_length=given.length, dropout=0.0, embedding_dim=0, pooling="mean")
    pretrained = load_pretrained(config)
    dataset = load_dataset("examples/debates", clean=True)
    split, tokens = dataset.splits["training"], tokenize(dataset.texts, pretrained.tokenizer, max_length=given.length)
    samples = np.resize(np.arange(len(split)), given.samples)
    negatives = np.roll(split.counter_text_P, 7)[:, None]
    model = build_model(config, pretrained, seed=0)
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data.bfloat16())
    train = TrainConfig(global_batch_size=given.samples, micro_batch_size=micro, clip_norm=0, precision=precision)
    engine = Engine(
        model, train, read_settings(Config(train=train, deepspeed_config=f"ds_configs/zero{stage}.json"), 1), ranks, 2
    )

    def step() -> None:
        for part in samples.reshape(-1, micro):
            batch = triplet_batch(
                part,
                split,
                negatives,
                tokens,
                one_encoder=True,
                rivals=False,
                pass_cost=engine.pass_cost,
            )
            engine.backward(combined_loss(engine.score(batch), LossConfig()).total)
            engine.step()

    step()
    state = engine.state()
    assert state is not None
    start = time.perf_counter()
    step()
    return {name: state.optimizer[f"{name}.exp_avg"] for name in state.model}, time.perf_counter() - start


def norm(parts: dict[str, torch.Tensor], kind: str) -> float:
    return math.sqrt(
        sum(float(part.double().square().sum()) for name, part in parts.items() if kind in ("all", kind_of(name)))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--micro", type=int, nargs="+", default=[4, 16, 64, 256])
    parser.add_argument("--precision", choices=("bf16", "fp16"), default="bf16")
    parser.add_argument("--as-pytorch", action="store_true")
    given = parser.parse_args()
    table = Table(title=f"{given.model}, {given.samples} triplets, {given.precision}", box=None)
    for column in ("micro-batch", "all", *KINDS, "seconds a step"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if given.as_pytorch:
            stack.enter_context(mock.patch.object(biencoder.training.engine.engine, "sum_in_fp32", return_value=None))
        ranks = stack.enter_context(join(DistributedConfig()))
        name = tiny(Path(folder)) if given.model == "tiny" else given.model
        exact, _ = gradient(given, ranks, name, 0, "fp32", max(given.micro))
        for micro in given.micro:
            found, seconds = gradient(given, ranks, name, 1, given.precision, micro)
            wrong = {key: found[key] - exact[key] for key in exact}
            shares = (f"{norm(wrong, kind) / norm(exact, kind):.2%}" for kind in ("all", *KINDS))
            table.add_row(str(micro), *shares, f"{seconds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
