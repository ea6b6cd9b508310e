"""What an epoch costs as ranks and texts grow: the tables of docs/scaling.md.

    python benchmarks/scaling.py

The model is cost_model.py. Its constants come from benchmarks/results/*.json, which `make bench` writes, or are those of
`TWO_CORES` where there are none. For GPUs, public figures and assumptions take their places (`gpu_machine`): nothing there
is measured.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cost_model import (
    AUDITED,
    BERT_BASE,
    MINILM,
    TWO_CORES,
    Encoder,
    Job,
    Machine,
    epoch,
    ivf_seconds,
    ranking_seconds,
    sum_seconds,
    texts_until,
)

from biencoder.config.schema import Config, MiningConfig, ModelConfig
from biencoder.training.engine.memory import mining_bytes

RESULTS = Path(__file__).parent / "results"
Results = dict[str, Any]


def read_results() -> Results:
    """What `make bench` has left, by name; without what it has not."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}


def line_through(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Slope and intercept, the latter not below 0: no work takes less than nothing."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    return slope, max(0.0, first[1] - slope * first[0])


def measured(results: Results, machine: Machine = TWO_CORES) -> Machine:
    """The machine, with the constants that these results tell, to three digits."""
    if "epoch" in results:
        small, large = (row for row in results["epoch"]["growth"] if row["length"] == 128 and row["batch"] != 16)
        work = [(row["batch"] * 9 * MINILM.forward_flops(row["tokens_per_text"]), row["step_s"]) for row in (small, large)]
        slope, step_s = line_through(*work)
        checkpoint_s = next(iter(results["epoch"]["epochs"].values()))["checkpoint_s"]
        machine = replace(
            machine,
            train_flops=1 / slope,
            step_s=step_s,
            checkpoint_bytes_per_s=12 * MINILM.parameters / checkpoint_s,
        )
    if "encoding" in results:
        row, tokens = results["encoding"]["rows"]["distinct texts"], results["encoding"]["setting"]["tokens_per_text"]
        machine = replace(machine, embed_flops=row["texts"] * MINILM.forward_flops(tokens) / row["ours"])
    if "mining" in results:
        first, second = rows_of(results, "faiss flat")[:2]
        per_text, query_s = line_through(*((row["vectors"], row["search_s"] / row["queries"]) for row in (first, second)))
        largest = rows_of(results, "faiss flat")[-1]
        audit_s = largest["total_s"] - largest["build_s"] - largest["search_s"]
        machine = replace(
            machine,
            search_flops=2 * results["mining"]["dimension"] / per_text,
            search_query_s=query_s,
            audit_pair_s=audit_s / min(largest["vectors"] / 2, AUDITED),
        )
    if "parts" in results:
        parts = results["parts"]
        queries = [(2 * row["texts"], row["seconds"] / (row["texts"] / 2)) for row in parts["evaluation"][:2]]
        rank_pair_s, rank_query_s = line_through(*queries)
        told, corpus = parts["messages"], parts["corpus"][-1]
        machine = replace(
            machine,
            sum_bytes_per_s=parts["gradient_bytes"] / told["sum_s"],
            sum_latency_s=told["small_sum_s"] / 2,
            message_bytes_per_s=parts["message_bytes"] / told["gather_s"],
            rank_pair_s=rank_pair_s,
            rank_query_s=rank_query_s,
            merge_s=parts["merge_s_per_answer"],
            held_bytes=corpus["held_bytes_per_text"],
            token_bytes=corpus["token_bytes_per_text"],
            start_s=(corpus["read_s_per_million"] + corpus["tokenize_s_per_million"]) / 1e6,
        )
    return Machine(**{name: float(f"{value:.3g}") for name, value in asdict(machine).items()})


def rows_of(results: Results, case: str) -> list[dict[str, Any]]:
    rows = (row for row in results["mining"]["rows"] if row["case"] == case and "left_out" not in row)
    return sorted(rows, key=lambda row: int(row["vectors"]))


def predictions(results: Results, machine: Machine) -> Iterator[tuple[str, float, float]]:
    """(what, seconds predicted, seconds measured) of what no constant was taken from."""
    parts = {"epoch": _epoch_predictions, "training": _training_predictions, "mining": _mining_predictions}
    for part, predict in parts.items():
        if part in results:
            yield from predict(results, machine)


def _epoch_predictions(results: Results, machine: Machine) -> Iterator[tuple[str, float, float]]:
    growth = [row for row in results["epoch"]["growth"] if row["batch"] == 16]
    tokens = {row["length"]: row["tokens_per_text"] for row in growth}
    for row in growth:
        job = Job(texts=32, pairs=16, ranks=1, batch=16, tokens=row["tokens_per_text"], encoder=MINILM)
        yield f"a step of 16 triplets, {row['tokens_per_text']:.0f} tokens", epoch(job, machine)["steps"], row["step_s"]
    for name, row in results["epoch"]["epochs"].items():
        if "overlap" in name:
            continue
        job = Job(
            texts=row["texts"],
            pairs=row["pairs"],
            ranks=1,
            batch=16,
            tokens=tokens[128],
            encoder=MINILM,
            other_texts=row["other_texts"],
        )
        parts, what = epoch(job, machine), f"an epoch of {row['pairs']:,} pairs"
        yield f"{what}: embedding", epoch(replace(job, other_texts=0), machine)["embedding"], row["embedding_s"]
        yield f"{what}: all of it", sum(parts.values()), row["epoch_s"]


def _training_predictions(results: Results, machine: Machine) -> Iterator[tuple[str, float, float]]:
    if "triplet" not in results["training"]:
        return
    rows, length = results["training"]["triplet"]["rows"], results["training"]["triplet"]["setting"]["length"]
    weight_bytes = 4 if results["training"]["triplet"]["setting"]["precision"] == "fp32" else 2
    sums_s = sum_seconds(weight_bytes * MINILM.parameters, 2, machine)
    if "ours, 1 core" in rows and "ours, 2 ranks" in rows:
        predicted = rows["ours, 1 core"]["step_s"] / 2 + sums_s
        yield f"a step on two ranks of a core, up to {length} tokens", predicted, rows["ours, 2 ranks"]["step_s"]


def _mining_predictions(results: Results, machine: Machine) -> Iterator[tuple[str, float, float]]:
    one_core = replace(machine, search_flops=machine.search_flops / 2)
    wanted = [("faiss flat", row, 1, machine) for row in rows_of(results, "faiss flat")[2:]]
    wanted += [("faiss flat", row, 2, one_core) for row in rows_of(results, "faiss flat, sharded")]
    wanted += [("faiss ivf", row, 1, machine) for row in rows_of(results, "faiss ivf")]
    for index, row, ranks, each in wanted:
        job = search_job(results, row, ranks=ranks)
        predicted = ivf_search_seconds(job, each) if index == "faiss ivf" else search_seconds(job, each)
        where = "two ranks of a core" if ranks > 1 else "one rank"
        what = f"{index}, {row['queries']:,} queries in {row['vectors']:,} texts, {where}"
        yield what, predicted, row["build_s"] + row["search_s"]
    if "parts" in results:
        for row in results["parts"]["evaluation"][2:]:
            yield (
                f"ranking a split of {row['texts']:,} texts",
                ranking_seconds(row["texts"] / 2, row["texts"], 1, machine),
                row["seconds"],
            )


def search_job(results: Results, row: dict[str, Any], *, ranks: int) -> Job:
    """The search that this row measured."""
    return Job(
        texts=row["vectors"],
        pairs=row["vectors"] // 2,
        ranks=ranks,
        batch=16,
        tokens=128,
        encoder=replace(MINILM, dimension=results["mining"]["dimension"]),
        near_share=row["queries"] / (row["vectors"] / 2),
        sharded=ranks > 1,
    )


# GPUs: public figures and assumptions

PEAK_FLOPS, UTILISATION = 989e12, 0.35
"""H100 SXM, dense bf16 (NVIDIA's data sheet); assumed share of it in training and in embedding."""
NVLINK, INFINIBAND = 450e9, 50e9
"""Bytes per second and direction of a GPU: NVLink 4 within a node, one 400 Gbit/s port each between nodes (data sheets)."""
GPUS_PER_NODE, CORES_PER_RANK, NODE_BYTES = 8, 12, 2e12
"""Assumed: 96 cores of a node, shared out by OMP_NUM_THREADS=12, each as fast as those measured; 2 TB of memory."""
FAISS_GPU_FLOPS = 0.3 * 67e12
"""Exact search where faiss-gpu is installed, assumed: three tenths of the H100's fp32 peak (data sheet)."""


def gpu_machine(ranks: int, host: Machine) -> Machine:
    """A rank with an H100 of its own; what its CPU does is taken from the host that was measured, two cores of it."""
    more_cores = CORES_PER_RANK / 2
    return replace(
        host,
        train_flops=UTILISATION * PEAK_FLOPS,
        embed_flops=UTILISATION * PEAK_FLOPS,
        step_s=0.015,  # assumed
        sum_bytes_per_s=NVLINK if ranks <= GPUS_PER_NODE else INFINIBAND,
        sum_latency_s=1e-5,  # assumed
        message_bytes_per_s=2e9,  # assumed: gloo, over TCP on 25 Gbit/s or more
        search_flops=host.search_flops * more_cores,
        rank_pair_s=host.rank_pair_s / more_cores,
    )


GPU_RANKS, GPU_TEXTS = (8, 64, 512), (10**6, 10**8, 10**9)


def gpu_job(texts: int, ranks: int, *, sharded: bool) -> Job:
    return Job(texts=texts, pairs=texts // 2, ranks=ranks, batch=32, tokens=256, encoder=BERT_BASE, sharded=sharded)


def rank0_bytes(texts: int, encoder: Encoder, *, ranks: int, sharded: bool) -> int:
    """Memory for mining on a rank that holds vectors."""
    mining = MiningConfig(placement="sharded" if sharded else "rank0")
    config = Config(model=ModelConfig(embedding_dim=encoder.dimension), mining=mining)
    return mining_bytes(config, num_texts=texts, hidden=encoder.hidden, world_size=ranks)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.2g} s" if seconds >= 0.01 else "0 s"


def count(texts: float) -> str:
    if math.isinf(texts):
        return "never"
    if texts < 1.01 * 10**3:  # the fewest that were tried
        return "always"
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if texts >= size:
            return f"{texts / size:,.2g} {unit}" if texts < 99.5 * size else f"{texts / size:,.0f} {unit}"
    return f"{texts:.0f}"


def constants_table(machine: Machine) -> str:
    return markdown(("constant", "measured"), [(f"`{name}`", f"{value:.3g}") for name, value in asdict(machine).items()])


def predictions_table(results: Results, machine: Machine) -> str:
    rows = [
        (what, duration(predicted), duration(found), f"{predicted / found:.2f}")
        for what, predicted, found in predictions(results, machine)
    ]
    return markdown(("", "predicted", "measured", "ratio"), rows)


def epochs_table(host: Machine) -> str:
    """Epochs on GPUs: what they take whatever the placement, with vectors to rank 0 where it is not sharded."""
    names = ("steps", "gradients", "embedding", "vectors", "audit", "ids", "checkpoint")
    rows = []
    for texts in GPU_TEXTS:
        for ranks in GPU_RANKS:
            seconds = epoch(gpu_job(texts, ranks, sharded=False), gpu_machine(ranks, host))
            rows.append((count(texts), str(ranks), *(duration(seconds[name]) for name in names)))
    return markdown(("texts", "GPUs", *names), rows)


def choices_table(host: Machine) -> str:
    """Epochs on GPUs: search and evaluation, which placement and index decide about."""
    rows = []
    for texts in GPU_TEXTS:
        for ranks in GPU_RANKS:
            machine = gpu_machine(ranks, host)
            rank0, sharded = (gpu_job(texts, ranks, sharded=placed) for placed in (False, True))
            seconds = (
                *(search_seconds(job, machine) for job in (rank0, sharded)),
                search_seconds(sharded, replace(machine, search_flops=FAISS_GPU_FLOPS)),
                *(ivf_search_seconds(job, machine) for job in (rank0, sharded)),
                *(epoch(job, machine)["evaluation"] for job in (rank0, sharded)),
            )
            rows.append((count(texts), str(ranks), *map(duration, seconds)))
    columns = (
        "texts, GPUs, exact: rank 0, sharded, sharded and faiss-gpu, ivf: rank 0, sharded, evaluation: rank 0, sharded"
    )
    return markdown(columns.split(", "), rows)


def search_seconds(job: Job, machine: Machine) -> float:
    seconds = epoch(job, machine)
    return seconds["search"] + seconds["answers"]


def ivf_search_seconds(job: Job, machine: Machine) -> float:
    return ivf_seconds(job, machine) + epoch(job, machine)["answers"]


def limits_table(host: Machine) -> str:
    """From how many texts on a part takes longer than the steps, or memory is full."""

    def overtakes(seconds_of: Callable[[Job, Machine], float], ranks: int, *, sharded: bool) -> str:
        machine = gpu_machine(ranks, host)

        def reached(texts: int) -> bool:
            job = gpu_job(texts, ranks, sharded=sharded)
            return seconds_of(job, machine) > epoch(job, machine)["steps"]

        return count(texts_until(reached))

    def gpu_search(job: Job, machine: Machine) -> float:
        return search_seconds(job, replace(machine, search_flops=FAISS_GPU_FLOPS))

    def evaluation(job: Job, machine: Machine) -> float:
        return epoch(job, machine)["evaluation"]

    def full(bytes_of: Callable[[int, int], float], ranks: int) -> str:
        return count(texts_until(lambda texts: bytes_of(texts, ranks) > NODE_BYTES))

    def rank0_memory(texts: int, ranks: int) -> float:
        return rank0_bytes(texts, BERT_BASE, ranks=ranks, sharded=False)

    def sharded_memory(texts: int, ranks: int) -> float:
        return GPUS_PER_NODE * rank0_bytes(texts, BERT_BASE, ranks=ranks, sharded=True)

    def corpus_memory(texts: int, ranks: int) -> float:
        return GPUS_PER_NODE * host.held_bytes * texts

    rows: dict[str, Callable[[int], str]] = {
        "exact search on rank 0": lambda ranks: overtakes(search_seconds, ranks, sharded=False),
        "exact search, sharded": lambda ranks: overtakes(search_seconds, ranks, sharded=True),
        "exact search, sharded, faiss-gpu": lambda ranks: overtakes(gpu_search, ranks, sharded=True),
        "ivf on rank 0": lambda ranks: overtakes(ivf_search_seconds, ranks, sharded=False),
        "ivf, sharded": lambda ranks: overtakes(ivf_search_seconds, ranks, sharded=True),
        "evaluation on rank 0": lambda ranks: overtakes(evaluation, ranks, sharded=False),
        "evaluation, sharded": lambda ranks: overtakes(evaluation, ranks, sharded=True),
        "vectors and index in rank 0's memory": lambda ranks: full(rank0_memory, ranks),
        "the same, sharded": lambda ranks: full(sharded_memory, ranks),
        "corpus in the memory of every rank": lambda ranks: full(corpus_memory, ranks),
        "reading and tokenizing takes an hour": lambda ranks: count(3600 / host.start_s),
    }
    columns = ("from so many texts on", *(f"{ranks} GPUs" for ranks in GPU_RANKS))
    return markdown(columns, [(name, *(limit(ranks) for ranks in GPU_RANKS)) for name, limit in rows.items()])


def shares_table(host: Machine) -> str:
    """What grows with the texts as the steps do: its share of them depends on the ranks alone."""
    rows = []
    for part, sharded in (
        ("gradients", False),
        ("embedding", False),
        ("vectors", False),
        ("answers", True),
        ("audit", False),
        ("ids", False),
    ):
        seconds = [epoch(gpu_job(10**8, ranks, sharded=sharded), gpu_machine(ranks, host)) for ranks in GPU_RANKS]
        rows.append((part, *(f"{each[part] / each['steps']:.2g}" for each in seconds)))
    return markdown(("share of the steps", *(f"{ranks} GPUs" for ranks in GPU_RANKS)), rows)


def main() -> None:
    results = read_results()
    machine = measured(results)
    print(f"Constants, from {', '.join(results) or 'TWO_CORES'}:\n\n{constants_table(machine)}\n\n{machine}\n")
    print(f"Predicted and measured:\n\n{predictions_table(results, machine)}\n")
    print(f"Epochs on GPUs (assumptions: see the file):\n\n{epochs_table(machine)}\n\n{choices_table(machine)}\n")
    print(f"Shares:\n\n{shares_table(machine)}\n")
    print(f"Limits:\n\n{limits_table(machine)}")


if __name__ == "__main__":
    main()
