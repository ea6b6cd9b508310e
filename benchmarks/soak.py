"""A run on many ranks over a large corpus, killed in each phase of an epoch: does it end as if uninterrupted, and does the
memory of its ranks stay flat?

    python benchmarks/soak.py                                 # 8 ranks, a million texts
    python benchmarks/soak.py --ranks 2 --texts 20000         # for a first look

10,000 pairs of short texts and further texts that answer nothing (as in large_corpus.py), a BERT of 2 layers with random
weights, three epochs, ivf, every rank with its part of the vectors. One run is left alone while the memory of its ranks is
sampled. The other is killed (SIGKILL to one rank, drawn at random) while it trains, saves, embeds and evaluates, and mines,
and started again with the same command each time.

memory    MiB of a rank's own (without mapped files), on the rank where it is largest, the most of each epoch
flat      whether each epoch was sampled, and the last one's is at most 5 % above the most of those before
equal     whether both runs have the same record, and the same weights bit for bit

Prints a table, and writes benchmarks/results/soak.json.
"""

import argparse
import json
import os
import random
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from chaos import finish, kill_in, launch, process_ranks, records, told
from large_corpus import own_bytes, write_corpus
from losses import tiny_bert
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoTokenizer

OUT = Path(__file__).parent / "results" / "soak.json"
EPOCHS, BATCH, PAIRS = 3, 512, 10_000
PHASES = ("training", "saving", "evaluation", "mining")
FLAT = 1.05


def settings_of(folder: Path) -> dict[str, str]:
    steps = PAIRS // BATCH
    return {
        "--data.root": str(folder / "train.jsonl"),
        "--data.corpus": str(folder / "corpus.jsonl"),
        "--model.name": str(folder / "model"),
        "--model.max_length": "32",
        "--model.embedding_dim": "64",
        "--model.pooling": "mean",
        "--loss.contrastive_weight": "1",
        "--mining.faiss_kind": "ivf",
        "--mining.placement": "sharded",
        "--mining.random_rate": "0.2",
        "--train.epochs": str(EPOCHS),
        "--train.global_batch_size": str(BATCH),
        "--train.log_every": "1",
        "--eval.max_queries": "1000",
        "--checkpoint.every_steps": str(steps // 2),
        "--tracking.wandb": "disabled",
    }


class Sampler:
    """Samples the memory of a run's ranks, and which epoch they are in."""

    def __init__(self, process: subprocess.Popen[bytes], run_dir: Path) -> None:
        self.samples: list[tuple[int, float]] = []
        """Epoch, and MiB of the rank that holds most."""
        self._process, self._run_dir = process, run_dir
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while self._process.poll() is None:
            epoch = sum(record["kind"] == "mine" for record in records(self._run_dir))
            held = []
            for rank in process_ranks(self._process) or [self._process.pid]:
                try:
                    held.append(own_bytes(psutil.Process(rank)))
                except psutil.Error:  # it has just ended
                    continue
            if held:
                self.samples.append((epoch, max(held) / 2**20))
            time.sleep(0.5)

    def most_of_epochs(self) -> list[float]:
        self._thread.join()
        return [
            max((mib for epoch, mib in self.samples if epoch == number), default=0.0) for number in range(1, EPOCHS + 1)
        ]


def left_alone(run_dir: Path, settings: dict[str, str], ranks: int) -> dict[str, Any]:
    start = time.perf_counter()
    process = launch(run_dir, ranks, settings)
    sampler = Sampler(process, run_dir)
    code, err = finish(process)
    if code:
        raise SystemExit(f"the uninterrupted run failed:\n{err}")
    most = sampler.most_of_epochs()
    return {
        "seconds": time.perf_counter() - start,
        "memory_mib": most,
        "flat": all(most) and most[-1] <= FLAT * max(most[:-1]),
    }


def killed_in_each_phase(run_dir: Path, settings: dict[str, str], ranks: int) -> dict[str, Any]:
    dice, start = random.Random(0), time.perf_counter()
    for phase in PHASES:
        process = launch(run_dir, ranks, settings)
        killed = kill_in(phase, run_dir, process, dice, epoch_steps=PAIRS // BATCH)
        code, err = finish(process)
        if not killed:
            raise SystemExit(f"the run came to its end, {code}, before it could be killed in {phase}:\n{err}")
    code, err = finish(launch(run_dir, ranks, settings))
    if code:
        raise SystemExit(f"the last start failed:\n{err}")
    resumes = sum(record.get("event") == "resumed" for record in records(run_dir))
    return {"killed_in": ", ".join(PHASES), "resumes": resumes, "seconds_with_kills": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--texts", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "model").mkdir()
        tiny_bert(folder / "model")
        vocabulary = list(AutoTokenizer.from_pretrained(folder / "model").get_vocab())
        write_corpus(folder, vocabulary, pairs=PAIRS, texts=arguments.texts - 2 * PAIRS)
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"  # noqa: TID251 - of the children
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // arguments.ranks))  # noqa: TID251 - likewise
        settings = settings_of(folder)
        straight = left_alone(folder / "straight", settings, arguments.ranks)
        broken = killed_in_each_phase(folder / "broken", settings, arguments.ranks)
        a, b = (load_file(folder / run / "model/last/model.safetensors") for run in ("straight", "broken"))
        equal = told(folder / "straight") == told(folder / "broken") and all(a[name].equal(b[name]) for name in a)
    size = {"ranks": arguments.ranks, "texts": arguments.texts}
    table = Table(box=None, show_header=False)
    for name, value in (*size.items(), *straight.items(), *broken.items(), ("equal", equal)):
        table.add_row(name.replace("_", " "), str([round(mib) for mib in value]) if isinstance(value, list) else str(value))
    Console(width=120).print(table)
    result = size | {"cores": os.cpu_count(), "left alone": straight, "killed": broken, "equal": equal}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if not (equal and straight["flat"]):
        raise SystemExit("memory grew, or the killed run did not end as the other did")


if __name__ == "__main__":
    main()
