"""Samples per second of a training step, against sentence-transformers' own trainer: same encoder, batches, length.

    python benchmarks/training.py                             # the embedded debates, a quarter of an hour on two cores
    python benchmarks/training.py --data DIR --repeats 3      # another corpus

Every case runs in a process of its own, in turns, `--repeats` times; the first three steps warm up, the next `--steps`
count. Ours is the loop of launcher/train.py itself: batches, loss, ZeRO-1, clipping. The peer is
SentenceTransformerTrainer with AdamW and clipping at 1, and is given the very same batches. Precision: what this machine is
good at (biencoder/training/engine/precision.py), the same for all.

triplet       the peer: TripletLoss (Euclidean distance), which is less work than ours: it has no pair classifier
contrastive   the peer: MultipleNegativesRankingLoss; ours: the contrastive loss alone, no mined negatives, in batches of
              whole debates. Both at a temperature of 0.05 (a scale of 20); ours has the points among the candidates
              besides the counters

peer, defaults    the model's own dropout, 0.1 in hidden states and attention
peer, best        dropout 0 in both, with which fused attention works on CPUs; on GPUs also FlashAttention 2, which does
                  without padding, where it is installed (else cuDNN's attention off, as in ours), TF32 for what is left in
                  fp32, and four processes that load batches
ours, defaults    dropout 0.1 in hidden states, 0 in attention
ours              dropout 0 in both, as in configs/triplets.toml
... one padding   ours, but all texts of a batch padded to the longest
... 1 core        on one core
... 2 ranks       on two ranks with a core each; also against one core

Prints a table for each loss, and writes benchmarks/results/training.json.
"""

import argparse
import importlib.util
import json
import math
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from paired import ratio
from ranks import run_ranks
from rich.console import Console
from rich.table import Table

from biencoder.data import Split, load_dataset
from biencoder.model.pretrained import locate
from biencoder.training.engine.engine import Engine
from biencoder.training.engine.precision import fast_precision
from biencoder.training.loop import Trainer
from biencoder.training.recovery.resume import Recovery
from biencoder.training.sampler import global_batches
from launcher import train

OUT = Path(__file__).parent / "results" / "training.json"
WARM_UP = 3
PEERS = {"peer, defaults": 0.1, "peer, best": 0.0}
ONE_CORE, TWO_RANKS = "ours, 1 core", "ours, 2 ranks"
OURS = {
    "ours, defaults": ["--model.dropout", "0.1"],
    "ours": [],
    "ours, one padding": [],
    ONE_CORE: [],
    TWO_RANKS: [],
}
CONTRASTIVE = """--loss.contrastive_weight 1 --loss.triplet_weight 0 --loss.classification_weight 0
    --mining.negatives 0 --loss.temperature 0.05 --train.batches debates""".split()
CASES = {"triplet": [*PEERS, *OURS], "contrastive": [*PEERS, "ours, defaults", "ours"]}
BATCH = {"triplet": 16, "contrastive": 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What all cases of a comparison have in common."""

    loss: str
    batch: int
    length: int
    steps: int
    data: str
    model: str
    precision: str

    def arguments(self) -> list[str]:
        return [part for name, value in asdict(self).items() for part in (f"--{name}", str(value))]

    def negatives(self, split: Split) -> npt.NDArray[np.int64]:
        """Of each sample (P, K), without mining: another sample's counter, or none."""
        columns = [np.roll(split.counter_text_P, 1)] if self.loss == "triplet" else []
        return np.stack(columns, axis=1) if columns else np.empty((len(split), 0), dtype=np.int64)

    def samples(self, split: Split) -> npt.NDArray[np.int64]:
        """Those that the loop trains on, in its order, from as many epochs as it takes."""
        left, epoch, batches = WARM_UP + self.steps, 0, []
        group_N = split.groups("debates") if self.loss == "contrastive" else None
        while left > 0:
            made_SG = global_batches(
                num_samples=len(split), global_batch_size=self.batch, seed=0, epoch=epoch, group_N=group_N
            )[:left]
            batches.append(made_SG.ravel())
            left, epoch = left - len(made_SG), epoch + 1
        return np.concatenate(batches)


def peer(work: Work, dropout: float) -> dict[str, float]:
    """What a step of sentence-transformers' trainer takes."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer.losses import (
        MultipleNegativesRankingLoss,
        TripletDistanceMetric,
        TripletLoss,
    )
    from transformers import TrainerCallback

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]  # noqa: TID251 - it would take itself for a rank of a distributed job
    dataset = load_dataset(work.data, clean=True)
    split = dataset.splits["training"]
    samples = work.samples(split)
    columns = {"anchor": split.point_text_P, "positive": split.counter_text_P}
    columns |= {f"negative_{k}": negative_text_P for k, negative_text_P in enumerate(work.negatives(split).T)}
    rows = Dataset.from_dict({name: [dataset.texts[i] for i in ids_P[samples]] for name, ids_P in columns.items()})
    on_gpu, read = torch.cuda.is_available(), []
    model = peer_model(work, dropout, on_gpu=on_gpu)
    loss = (
        TripletLoss(model, distance_metric=TripletDistanceMetric.EUCLIDEAN, triplet_margin=1.0)
        if work.loss == "triplet"
        else MultipleNegativesRankingLoss(model)
    )

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (WARM_UP, WARM_UP + work.steps):
                if on_gpu:
                    torch.cuda.synchronize()
                read.append(time.perf_counter())

    class InOrder(DefaultBatchSampler):
        def __iter__(self) -> Iterator[list[int]]:
            return (list(range(start, start + work.batch)) for start in range(0, len(samples), work.batch))

    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=work.batch,
            batch_sampler=InOrder,
            max_steps=WARM_UP + work.steps,
            use_cpu=not on_gpu,
            bf16=work.precision == "bf16",
            fp16=work.precision == "fp16",
            tf32=True if on_gpu and not dropout else None,
            dataloader_num_workers=4 if on_gpu and not dropout else 0,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss, callbacks=[Clock()]).train()
    return {"step_s": (read[1] - read[0]) / work.steps}


def peer_model(work: Work, dropout: float, *, on_gpu: bool) -> Any:
    """A SentenceTransformer. Without dropout it gets the fastest attention there is."""
    from sentence_transformers import SentenceTransformer

    flash = on_gpu and not dropout and importlib.util.find_spec("flash_attn") is not None
    if on_gpu and not dropout:
        torch.backends.cuda.enable_cudnn_sdp(False)
    model = SentenceTransformer(
        locate(work.model),
        config_kwargs={"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout},
        model_kwargs={"attn_implementation": "flash_attention_2"} if flash else {},
    )
    model.max_seq_length = work.length
    return model


def ours(work: Work, settings: list[str], folder: Path, *, one_padding: bool = False) -> dict[str, float]:
    """What a step of the training loop takes by its own record, and the tokens of a text, without padding.

    Args:
        folder: of the run, the same on all ranks.
    """
    tokens: list[int] = []

    def only_steps(self: Trainer) -> None:
        split = self.step.split
        negative_text_PK, samples = work.negatives(split), work.samples(split)
        texts = [split.point_text_P[samples], split.counter_text_P[samples], negative_text_PK[samples]]
        tokens.extend(self.step.tokens.lengths(np.concatenate([ids.ravel() for ids in texts])))
        while self.progress.step < WARM_UP + work.steps:
            self.run_epoch(negative_text_PK)

    Trainer.fit = only_steps  # type: ignore[method-assign]
    Recovery.save = lambda self: None  # type: ignore[method-assign]  # it would be written during the steps
    if one_padding:
        Engine.pass_cost = math.inf  # type: ignore[assignment,method-assign]
    train.main(
        f"""--config configs/triplets.toml --data.root {work.data} --run.dir {folder} --tracking.wandb disabled
        --tracking.report false --model.name {work.model} --model.pooling mean --model.max_length {work.length}
        --train.global_batch_size {work.batch} --train.epochs 1000 --train.max_steps {WARM_UP + work.steps}
        --train.log_every {WARM_UP} --train.precision {work.precision}""".split()
        + (CONTRASTIVE if work.loss == "contrastive" else [])
        + settings
    )
    record = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []  # on rank 0 alone
    seconds = seconds_of_steps(lines, after=WARM_UP)
    return {"step_s": seconds / work.steps, "tokens_per_text": float(np.mean(tokens))}


def seconds_of_steps(lines: list[dict[str, Any]], *, after: int) -> float:
    """What the steps after that one took, by a run's record; one of its lines must end there."""
    seconds, before = 0.0, 0
    for line in lines:  # each tells of the steps since the line before it; there is one at every epoch's end
        if line["kind"] == "step":
            seconds += line["train/step_s"] * (line["step"] - before) if line["step"] > after else 0
            before = line["step"]
    return seconds


def worker(case: str, work: Work, folder: Path) -> None:
    if case == ONE_CORE:
        os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    found = peer(work, PEERS[case]) if case in PEERS else ours(work, OURS[case], folder, one_padding="padding" in case)
    peak = (
        torch.cuda.max_memory_allocated()
        if torch.cuda.is_available()
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    print(json.dumps(found | {"peak_mib": peak / 2**20}), flush=True)


def compare(work: Work, cases: list[str], repeats: int) -> dict[str, Any]:
    """Each case's median over the turns, and how many times as fast it is as those it is held against."""
    found: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    for repeat in range(repeats):
        for case in cases[:: -1 if repeat % 2 else 1]:
            size, threads = (2, 1) if case == TWO_RANKS else (1, 1 if case == ONE_CORE else 0)
            with tempfile.TemporaryDirectory() as folder:
                worker_of = ["--worker", case, "--folder", folder, *work.arguments()]
                found[case].append(run_ranks(__file__, worker_of, size=size, threads=threads))
            print(f"{work.loss}, {case}: {found[case][-1]['step_s']:.3g} s a step", flush=True)
    rows: dict[str, Any] = {}
    for case, each in found.items():
        rows[case] = {name: statistics.median(one[name] for one in each) for name in each[0]}
        rows[case]["samples_per_s"] = work.batch / rows[case]["step_s"]
        rows[case]["against"] = {
            other: ratio([one["step_s"] for one in found[other]], [one["step_s"] for one in each])
            for other in ([] if case in PEERS else [*PEERS, ONE_CORE] if case == TWO_RANKS else PEERS)
            if other in found
        }
    return rows


def show(title: str, rows: dict[str, Any]) -> None:
    peers = [peer for peer in PEERS if peer in rows]
    table = Table(title=title, box=None)
    for name in ("", "s/step", "samples/s", *(f"against {peer}" for peer in peers), "peak MiB"):
        table.add_column(name, justify="right" if name else "left")
    for case, row in rows.items():
        ratios = [str(row["against"].get(peer, "")) for peer in peers]
        table.add_row(case, f"{row['step_s']:.3g}", f"{row['samples_per_s']:.3g}", *ratios, f"{row['peak_mib']:,.0f}")
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--data", default="examples/debates")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--batch", type=int, default=0, help="samples; default: 16 triplets, 32 pairs")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--precision", help="default: what this machine is good at")
    parser.add_argument("--cases", nargs="+", default=[*PEERS, *OURS], choices=[*PEERS, *OURS])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = given.precision or fast_precision(device)
    found = {}
    for loss in given.loss:
        work = Work(
            loss=loss,
            batch=given.batch or BATCH[loss],
            length=given.length,
            steps=given.steps,
            data=given.data,
            model=given.model,
            precision=precision,
        )
        if given.worker:
            with tempfile.TemporaryDirectory() as own:
                worker(given.worker, work, Path(given.folder or own) / "run")
            return
        cases = [case for case in CASES[loss] if case in given.cases]
        setting = asdict(work) | {"data": Path(given.data).name, "model": Path(given.model).name, "cores": os.cpu_count()}
        found[loss] = {"setting": setting, "rows": compare(work, cases, given.repeats)}
        title = f"{loss}: {work.batch} samples of up to {work.length} tokens, {precision}, {os.cpu_count()} cores"
        show(title, found[loss]["rows"])
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
