"""The training loop, top to bottom: `fit` → `run_epoch` → `train_step`.

    every epoch   embed the training texts → mine negatives → (measure retrieval) → one pass over shuffled triplets
    every step    score → loss → backward → update → report

Everything here runs on every rank, in the same order and equally often; what only rank 0 does is inside what it calls.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from biencoder.batch import triplet_batch
from biencoder.config import Config
from biencoder.data import Dataset, Split
from biencoder.distributed import World
from biencoder.embedding import EmbeddedTexts, embed_texts
from biencoder.engine import Engine
from biencoder.evaluation import SplitResult, evaluate_split
from biencoder.loss import LossParts, combined_loss
from biencoder.mining import Mined, Miner
from biencoder.model import TripletBatch, Vectors
from biencoder.rng import stream_seed
from biencoder.sampler import global_batches, rank_share
from biencoder.tokens import TokenizedTexts
from biencoder.tracking import Tracker
from biencoder.tracking.names import Metrics, accuracy, eval_metrics, mine_metrics, step_metrics
from biencoder.tracking.terminal import Terminal


@dataclass(frozen=True, slots=True)
class Run:
    """What a training run works with; built once by the launcher."""

    config: Config
    world: World
    dataset: Dataset
    tokens: TokenizedTexts
    engine: Engine
    tracker: Tracker
    terminal: Terminal
    save: Callable[[str, Metrics], None]
    """Write the model under a name (`best`, `last`) with the metrics that its card quotes. Every rank takes part."""


@dataclass(slots=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    epoch: int = 0
    best: float = -1.0


def steps_per_epoch(dataset: Dataset, config: Config) -> int:
    return len(dataset.splits["training"]) // config.train.global_batch_size


def total_steps(dataset: Dataset, config: Config) -> int:
    """Optimizer steps of the whole run."""
    steps = config.train.epochs * steps_per_epoch(dataset, config)
    return min(steps, config.train.max_steps) if config.train.max_steps else steps


def fit(run: Run) -> Progress:
    """Train to the end. Every rank takes part."""
    progress, last = Progress(), total_steps(run.dataset, run.config)
    training = run.dataset.splits["training"]
    embedded, encode_s = embed_split(run, training)
    evaluate(run, progress, embedded, zero_shot=True)
    miner = Miner(
        training,
        len(run.dataset.texts),
        run.world,
        run.config.mining,
        seed=run.config.run.seed,
        num_epochs=math.ceil(last / steps_per_epoch(run.dataset, run.config)),
    )
    while progress.step < last:
        mined = miner.negatives(progress.epoch, embedded)
        run.tracker.log("mine", step=progress.step, epoch=progress.epoch, metrics=mine_metrics(mined, encode_s))
        run.tracker.event("negatives", step=progress.step, epoch=progress.epoch, detail=mined.digest)
        run_epoch(run, progress, mined, miner, last)
        progress.epoch += 1
        embedded, encode_s = embed_split(run, training)
        if progress.step >= last or progress.epoch % run.config.eval.every_epochs == 0:
            metrics = evaluate(run, progress, embedded)
            keep_best(run, progress, metrics)
    run.save("last", metrics)
    return progress


def run_epoch(run: Run, progress: Progress, mined: Mined, miner: Miner, last: int) -> None:
    """One pass over the shuffled training triplets, or up to the run's last step."""
    train = run.config.train
    batches_SG = global_batches(
        num_samples=len(run.dataset.splits["training"]),
        global_batch_size=train.global_batch_size,
        seed=run.config.run.seed,
        epoch=progress.epoch,
    )[: last - progress.step]
    run.terminal.start(f"epoch {progress.epoch + 1}/{train.epochs}", len(batches_SG))
    window = Window(run.world.device)
    for left, batch_G in zip(reversed(range(len(batches_SG))), batches_SG, strict=True):
        run.world.doing(f"training step {progress.step + 1}")
        parts = train_step(run, micro_batches(run, batch_G, mined), progress.step)
        miner.raise_failure()
        progress.step += 1
        window.add(parts, len(batch_G))
        run.terminal.advance()
        if progress.step % train.log_every == 0 or left == 0:
            report_steps(run, progress, window)  # every rank takes part: means over ranks
    run.terminal.end()


def train_step(run: Run, micro_batches: list[TripletBatch], step: int) -> torch.Tensor:
    """One optimizer step; returns this rank's mean loss parts, on the device and without graph."""
    engine = run.engine
    torch.manual_seed(stream_seed(run.config.run.seed, "dropout", step, run.world.rank))
    parts = []
    for batch in micro_batches:
        scores = engine.score(batch)
        loss = combined_loss(scores, run.config.loss)
        engine.backward(loss.total)
        engine.step()  # updates at the last micro-batch, accumulates before
        parts.append(loss.detached())
    return torch.stack(parts).mean(0)


def micro_batches(run: Run, batch_G: npt.NDArray[np.int64], mined: Mined) -> list[TripletBatch]:
    """This rank's share of a global batch, as batches on its device."""
    share_AM = rank_share(
        batch_G,
        rank=run.world.rank,
        world_size=run.world.size,
        micro_batch_size=run.config.train.micro_batch(run.world.size),
    )
    return [
        triplet_batch(
            samples_M,
            run.dataset.splits["training"],
            mined.negative_text_P,
            run.tokens,
            shared=run.engine.model.shared,
            device=run.world.device,
        )
        for samples_M in share_AM
    ]


class Window:
    """The steps since the last record: loss parts summed on the device, triplets counted, time taken."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.clear()

    def clear(self) -> None:
        self.parts = torch.zeros(len(LossParts._fields), device=self._device)
        self.steps = self.triplets = 0
        self.start = time.perf_counter()

    def add(self, parts: torch.Tensor, triplets: int) -> None:
        self.parts += parts
        self.steps += 1
        self.triplets += triplets


def report_steps(run: Run, progress: Progress, window: Window) -> None:
    """Log the window's means over steps and ranks, then start a new one. Every rank takes part."""
    parts = run.world.mean(window.parts / window.steps).tolist()
    seconds = time.perf_counter() - window.start
    metrics = step_metrics(parts, run.engine.report(), window.triplets / seconds)
    run.tracker.log("step", step=progress.step, epoch=progress.epoch, metrics=metrics)
    run.terminal.step(progress.step, metrics)
    window.clear()


def embed_split(run: Run, split: Split) -> tuple[EmbeddedTexts | None, float]:
    """The split's texts with the current weights (None where none are held), and the seconds it took. Every rank takes
    part."""
    start = time.perf_counter()
    run.terminal.start(f"embedding the {split.name} split", len(split.text_ids))
    embedded = embed_texts(
        run.engine,
        run.tokens,
        split.text_ids,
        run.world,
        batch_tokens=run.config.eval.batch_tokens,
        sharded=run.config.mining.sharded,
        advance=run.terminal.advance,
    )
    run.terminal.end()
    return embedded, time.perf_counter() - start


def evaluate(run: Run, progress: Progress, training: EmbeddedTexts | None, *, zero_shot: bool = False) -> Metrics:
    """Retrieval accuracy on every split, logged and shown. Every rank takes part.

    Args:
        training: embeddings of the training texts, which mining has made already.
        zero_shot: measure the pretrained encoder itself: cosine of its pooled vectors, no classifier.
    """
    start = time.perf_counter()
    classifier = None if zero_shot else run.engine.classifier_copy()
    results: list[SplitResult] = []
    for split in run.dataset.splits.values():
        embedded = training if split.name == "training" else embed_split(run, split)[0]
        run.world.doing(f"evaluating the {split.name} split")

        def rank_all(holders: World, split: Split = split, embedded: EmbeddedTexts | None = embedded) -> SplitResult:
            assert embedded is not None
            vectors = pooled_cosine(embedded) if zero_shot else embedded
            return evaluate_split(split, vectors, classifier, top_k=run.config.eval.top_k, world=holders)

        results.append(run.world.on_holders(rank_all, sharded=run.config.mining.sharded))
    metrics = eval_metrics(results) | {"eval/seconds": time.perf_counter() - start}
    run.tracker.log("eval", step=progress.step, epoch=progress.epoch, metrics=metrics)
    run.terminal.evaluation("zero-shot" if zero_shot else f"epoch {progress.epoch}", metrics)
    return metrics


def pooled_cosine(embedded: EmbeddedTexts) -> EmbeddedTexts:
    """The pretrained encoder's own geometry: pooled vectors at length 1, whose Euclidean order is that of the cosine."""

    def unit(vectors: Vectors) -> Vectors:
        return Vectors(torch.nn.functional.normalize(vectors.pooled, dim=-1), vectors.pooled)

    return replace(embedded, query=unit(embedded.query), candidate=unit(embedded.candidate))


def keep_best(run: Run, progress: Progress, metrics: Metrics) -> None:
    """Save the model if it is the best so far on validation (on training where there is no validation split)."""
    split = "validation" if "validation" in run.dataset.splits else "training"
    value = metrics[accuracy(split, "embedding")]
    if value > progress.best:
        progress.best = value
        run.save("best", metrics)
