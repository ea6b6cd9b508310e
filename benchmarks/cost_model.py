"""What an epoch costs, part by part, as a function of texts, ranks, batch and encoder, given what a rank does in a second.

    machine, job = TWO_CORES, Job(texts=8000, pairs=4000, ranks=2, batch=8, tokens=128, encoder=MINILM)
    epoch(job, machine)["search"]         # seconds

benchmarks/scaling.py takes the constants from what was measured, and draws the conclusions of docs/scaling.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

AUDITED = 50_000
"""The most negatives whose distances are measured."""
DRAW_S, HASH_S = 2.0e-7, 2.2e-6
"""Of drawing a random negative, and of hashing a text's embedding, by one thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    layers: int
    hidden: int
    dimension: int
    """Of the similarity embedding."""
    parameters: int

    def forward_flops(self, tokens: float) -> float:
        """Of one text: 24 H^2 for each token and layer, and 4 H more for each token it attends to (feed-forward: 4 H)."""
        return self.layers * (24 * self.hidden**2 * tokens + 4 * self.hidden * tokens**2)

    @property
    def vector_bytes(self) -> int:
        """Of a text's embedding and pooled vector, in fp32."""
        return 4 * (self.dimension + self.hidden)


MINILM = Encoder(layers=6, hidden=384, dimension=384, parameters=22_700_000)
BERT_BASE = Encoder(layers=12, hidden=768, dimension=128, parameters=109_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What one rank does in a second, and what passes between ranks. `search_flops` and `rank_pair_s` are those of all its
    cores; what is given for a query, an answer or a byte is one thread's work."""

    train_flops: float
    """Of forward and backward passes."""
    step_s: float
    """Of a step, whatever its batch: optimizer, launching, Python."""
    embed_flops: float
    sum_bytes_per_s: float
    """Of a ring's busiest link, while gradients are summed."""
    sum_latency_s: float
    """Of one hop."""
    message_bytes_per_s: float
    """Into or out of a rank, on the control group (gloo)."""
    search_flops: float
    """Of exact search."""
    search_query_s: float
    """Of a query, whatever the corpus: measuring its neighbours again, and looking up which it may have."""
    audit_pair_s: float
    """Of a negative whose distances are measured."""
    rank_pair_s: float
    """Of evaluation: one candidate of one query."""
    rank_query_s: float
    """Of a query with both rankings and re-ranking, whatever the candidates."""
    merge_s: float
    """Of one text in one rank's answer to a query, where ranks search in parts."""
    checkpoint_bytes_per_s: float
    """Into rank 0's memory; writing goes on in the background."""
    held_bytes: float
    """Of a text in the memory of every rank: where it stands in the mapped file, and its part of a pair."""
    token_bytes: float
    """Of a text's tokens on each machine's disk."""
    start_s: float
    """Of a text at a run's start: reading on every rank, and tokenizing once on each machine."""


TWO_CORES = Machine(
    train_flops=2.18e11,
    step_s=0.226,
    embed_flops=2.25e11,
    sum_bytes_per_s=1.47e9,
    sum_latency_s=1.34e-4,
    message_bytes_per_s=4.91e8,
    search_flops=1.37e11,
    search_query_s=4.62e-5,
    audit_pair_s=1.02e-5,
    rank_pair_s=2.14e-8,
    rank_query_s=1.6e-4,
    merge_s=4.13e-8,
    checkpoint_bytes_per_s=2.2e9,
    held_bytes=165,
    token_bytes=385,
    start_s=1.43e-4,
)
"""All of a machine with two AVX-512 cores as one rank, for MiniLM in bf16; the network is that within the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    texts: int
    """Distinct texts of the training split."""
    pairs: int
    ranks: int
    batch: int
    """Triplets of one rank in a step."""
    tokens: float
    """Of a text, in the mean."""
    encoder: Encoder
    negatives: int = 1
    near_share: float = 0.4
    """Of samples whose negatives are searched for: 1 - mining.random_rate."""
    sharded: bool = False
    """mining.placement."""
    weight_bytes: int = 2
    """Of a weight, and of its gradient, as ranks exchange them."""
    other_texts: int = 0
    """Distinct texts of the splits that are evaluated besides."""
    max_queries: int = 10_000
    """eval.max_queries."""


def epoch(job: Job, machine: Machine) -> dict[str, float]:
    """Seconds of an epoch, part by part, nothing overlapped. Search is exact, and everything is evaluated.

    Where ranks search in parts, every rank sees every query: only what grows with the texts is divided among them.
    """
    N, R, K, encoder = job.texts, job.ranks, job.negatives, job.encoder
    forward = encoder.forward_flops(job.tokens)
    steps, queries = job.pairs / (R * job.batch), job.pairs * job.near_share
    searching = R if job.sharded else 1
    hops = math.ceil(math.log2(R))  # of a broadcast along a tree
    # A query to all, every rank's answers to the one that merges them, the nearest to all: in a ring, or all at once.
    answers_bytes = (4 * encoder.dimension + 2 * 16 * K) * (R - 1) / R
    return {
        "steps": steps * (machine.step_s + job.batch * (2 + K) * 3 * forward / machine.train_flops),
        "gradients": steps * sum_seconds(job.weight_bytes * encoder.parameters, R, machine),
        "embedding": (N + job.other_texts) * forward / (R * machine.embed_flops),
        "vectors": 0.0 if job.sharded else N * encoder.vector_bytes * (R - 1) / R / machine.message_bytes_per_s,
        "search": queries * (machine.search_query_s + 2 * encoder.dimension * N / searching / machine.search_flops),
        "answers": (
            queries * (answers_bytes / machine.message_bytes_per_s + K * machine.merge_s) if job.sharded and R > 1 else 0.0
        ),
        "audit": min(job.pairs * K, AUDITED) * machine.audit_pair_s + job.pairs * K * DRAW_S + N / searching * HASH_S,
        "ids": job.pairs * 8 * K / machine.message_bytes_per_s * hops,
        "evaluation": sum(
            ranking_seconds(min(pairs, job.max_queries), texts, searching, machine)
            for pairs, texts in ((job.pairs, N), (job.other_texts / 2, job.other_texts))
        ),
        "checkpoint": (12 * encoder.parameters + 8 * K * job.pairs) / machine.checkpoint_bytes_per_s,
    }


def ivf_seconds(job: Job, machine: Machine, *, probes: int = 32) -> float:
    """Of building an ivf index over the texts of a holder and searching it, in place of exact search: k-means of ten rounds
    over at most 256 texts for each of 4 sqrt(N) cells, every text's cell, and for each query all cells and some of them
    whole."""
    queries, distance_flops = job.pairs * job.near_share, 2 * job.encoder.dimension
    texts = job.texts / (job.ranks if job.sharded else 1)
    cells = min(4 * math.sqrt(texts), texts / 39)
    build = (10 * min(texts, 256 * cells) + texts) * cells * distance_flops / machine.search_flops
    return build + queries * (
        machine.search_query_s + (cells + probes * texts / cells) * distance_flops / machine.search_flops
    )


def sum_seconds(num_bytes: float, ranks: int, machine: Machine) -> float:
    """Of a sum over the ranks: every rank sends all twice, less its own part, and waits as often as a tree has levels."""
    return 2 * (ranks - 1) / ranks * num_bytes / machine.sum_bytes_per_s + 2 * math.log2(ranks) * machine.sum_latency_s


def ranking_seconds(pairs: float, texts: int, holders: int, machine: Machine) -> float:
    """Of evaluating a split: for every pair's point all texts are ranked twice, strictly and with copies as one. Each
    holder merges the best ten of all holders for its part of the points."""
    merging = 2 * 10 * machine.merge_s if holders > 1 else 0.0
    return pairs * (machine.rank_query_s + 2 * texts / holders * machine.rank_pair_s + merging)


def texts_until(reached: Callable[[int], bool]) -> float:
    """The fewest texts for which it holds, to a percent, given that it then holds for all more; inf: beyond 10^12."""
    low, high = 3.0, 12.0
    if not reached(10**12):
        return math.inf
    while high - low > 0.004:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(round(10**middle)) else (middle, high)
    return 10**high
