"""The training loop, top to bottom: `fit` → `run_epoch` → `train_step`.

    every epoch   embed the training texts → mine negatives → (measure retrieval) → one pass over shuffled triplets
    every step    score → loss → backward → update → report

Everything here runs on every rank, in the same order and equally often; what only rank 0 does is inside what it calls.
"""

import math
import time
from contextlib import closing, nullcontext

import numpy as np
import numpy.typing as npt
import torch

from biencoder.data import Split
from biencoder.distributed.stop_requests import Agreement
from biencoder.distributed.world import World
from biencoder.errors import ConfigError, Diverged, Stopped
from biencoder.evaluation import SplitResult, evaluate_split
from biencoder.mining import Mined
from biencoder.model.batch import triplet_batch
from biencoder.model.bi_encoder import Scores, TripletBatch
from biencoder.retrieval.embedding import EmbeddedTexts, embed_texts
from biencoder.rng import stream_seed
from biencoder.tracking.names import (
    CLOSEST,
    HARDNESS,
    Metrics,
    examples,
)
from biencoder.training.contrastive import Pull, contrast, targets
from biencoder.training.loss import combined_loss
from biencoder.training.metrics import eval_metrics, mine_metrics, step_metrics
from biencoder.training.prefetch import prefetched
from biencoder.training.recovery.checkpoint import Checkpoint
from biencoder.training.recovery.out_of_memory import out_of_memory
from biencoder.training.recovery.resume import (
    finish_writing,
    load_checkpoint,
    newest_checkpoint,
    report_failure,
    save_checkpoint,
)
from biencoder.training.run import Progress, Run, StepBatch, Unwritten, steps_per_epoch, total_steps
from biencoder.training.sampler import global_batches, shares
from biencoder.training.tables import closest_table, examples_table


def fit(run: Run, progress: Progress) -> None:
    """Train from where `progress` stands to the end. Every rank takes part."""
    last, metrics = total_steps(run.dataset, run.config), Metrics()
    while True:
        if progress.negatives is not None:
            try:
                run_epoch(run, progress, last)
            except Diverged:
                progress = go_back(run, progress)
                continue
        done = progress.step >= last
        measured = done or progress.epoch % run.config.eval.every_epochs == 0
        embedded, encode_s = embed_split(run, run.training) if measured or run.config.mining.negatives else (None, 0.0)
        if measured:
            metrics = evaluate(run, progress, embedded, zero_shot=progress.step == 0)
            keep_best(run, progress, metrics)
        if done or (run.config.eval.patience and progress.evaluations_since_best >= run.config.eval.patience):
            break
        progress.negatives = mine(run, progress, embedded, encode_s)
        del embedded
    run.world.on_main(lambda: finish_writing(run, progress))  # what a start goes on from that is to write the models
    run.models.write_last(metrics)
    write_best(run, progress, last_chance=True)


def run_epoch(run: Run, progress: Progress, last: int) -> None:
    """What is left of one pass over the shuffled training triplets, up to the run's last step."""
    train, num_steps = run.config.train, steps_per_epoch(run.dataset, run.config)
    start, end = progress.epoch * num_steps, (progress.epoch + 1) * num_steps
    assert start <= progress.step <= end
    batches_SG = global_batches(
        num_samples=run.num_samples,
        global_batch_size=train.global_batch_size,
        seed=run.config.run.seed,
        epoch=progress.epoch,
        group_N=run.training.groups(train.batches),
    )[progress.step - start : max(0, last - start)]
    assert progress.negatives is not None
    run.terminal.start(f"epoch {progress.epoch + 1}/{train.epochs}", len(batches_SG))
    progress.window.restart_clock()
    made = prefetched(step_batch(run, batch_G, progress.negatives) for batch_G in batches_SG)
    with run.stop.stepping(), closing(made):
        for batch_G in batches_SG:
            run.world.doing(f"training step {progress.step + 1}")
            with progress.window.batches.running():
                batch = next(made)
            parts = train_step(run, batch, progress.step)
            progress.step += 1
            progress.window.timed_steps += 1
            if not was_skipped(run, progress, batch_G):
                progress.window.add(parts)
            run.terminal.advance()
            if progress.step % train.log_every == 0 or progress.step == end:
                report_steps(run, progress)  # every rank takes part: means over ranks
            save_or_stop(run, progress)
        leave_epoch(run, progress, whole=progress.step == end)
    run.terminal.end()


def leave_epoch(run: Run, progress: Progress, *, whole: bool) -> None:
    """Save where the run stands, at an epoch's end or where the run's last step cuts one. Every rank takes part.

    A longer run goes on from there as if nothing had been cut. So a cut epoch is not counted and keeps its negatives, and
    the record of its last steps, which such a run makes at another step, comes after the checkpoint: going on forgets it.
    """
    if whole:
        progress.epoch += 1
        progress.negatives = None
    save_checkpoint(run, progress)
    if not whole and progress.step % run.config.train.log_every:
        report_steps(run, progress)


def train_step(run: Run, batch: StepBatch, step: int) -> torch.Tensor:
    """One optimizer step; returns this rank's mean loss parts, on the device and without graph."""
    engine, config, chunks = run.engine, run.config.loss, batch.micro_batches
    parts = []
    try:
        pulls, scored = contrast_step(run, batch, step)
        for number, chunk in enumerate(chunks):
            scores = scored or score(run, chunk, step, number)
            loss = combined_loss(scores, config, pulls[number], num_chunks=len(chunks))
            engine.backward(loss.total)
            engine.step()  # updates at the last micro-batch, accumulates before
            parts.append(loss.detached())
    except torch.OutOfMemoryError as error:
        raise out_of_memory(run.config, error, world_size=run.world.size) from None
    return torch.stack(parts).mean(0)


def contrast_step(run: Run, batch: StepBatch, step: int) -> tuple[list[Pull | None], Scores | None]:
    """What the contrastive loss wants of each micro-batch, and the scores with their graph where there is only one: of
    several the graphs would not fit, and they are scored once more. Every rank takes part."""
    chunks = batch.micro_batches
    if batch.targets is None:
        return [None] * len(chunks), None
    with nullcontext() if len(chunks) == 1 else torch.no_grad():
        scored = [score(run, chunk, step, number) for number, chunk in enumerate(chunks)]
    pulls = contrast(scored, batch.targets, run.config.loss, run.world)
    return list(pulls), scored[0] if len(chunks) == 1 else None


def score(run: Run, chunk: TripletBatch, step: int, number: int) -> Scores:
    """Score a micro-batch, with the same dropout however often it is done.

    The masks depend on the rank and on the micro-batch's number, so only without dropout do losses not depend on how a
    global batch is spread.
    """
    torch.manual_seed(stream_seed(run.config.run.seed, "dropout", step, run.world.rank, number))
    return run.engine.score(chunk)


def step_batch(run: Run, batch_G: npt.NDArray[np.int64], negative_text_PK: npt.NDArray[np.int64]) -> StepBatch:
    """This rank's share of a global batch, as batches on its device."""
    split, world, model, contrastive = run.training, run.world, run.engine.model, run.config.loss.contrastive_weight > 0
    texts_XG = np.stack([split.point_text_P[batch_G], split.counter_text_P[batch_G], *negative_text_PK[batch_G].T])
    shares_RAM = shares(
        batch_G,
        run.tokens.lengths(texts_XG).sum(axis=0),
        world_size=world.size,
        micro_batch_size=run.config.train.micro_batch(world.size),
    )
    micro_batches = [
        triplet_batch(
            samples_M,
            split,
            negative_text_PK,
            run.tokens,
            one_encoder=model.one_encoder,
            rivals=contrastive,
            pass_cost=run.engine.pass_cost,
            device=world.device,
        )
        for samples_M in shares_RAM[world.rank]
    ]
    if not contrastive:
        return StepBatch(micro_batches, None)
    samples_RS = shares_RAM.reshape(world.size, -1)
    wanted = targets(samples_RS, split, negative_text_PK, run.forbidden, rank=world.rank)
    return StepBatch(micro_batches, wanted.to(world.device))


def report_steps(run: Run, progress: Progress) -> None:
    """Log the window's means over steps and ranks, then start a new one. Every rank takes part."""
    window, report = progress.window, run.engine.report()
    timed_steps = window.timed_steps or math.nan  # none, where the sums of a checkpoint are all there is to report
    data_s = window.batches.read()
    busy_s = torch.zeros(run.world.size)  # each rank fills in its own place; the mean over ranks puts them side by side
    busy_s[run.world.rank] = run.world.size * (data_s + report.forward_s)
    mine = torch.cat([window.parts / (window.steps or math.nan), torch.tensor([data_s, *busy_s], device=run.world.device)])
    told, num_parts = run.world.all_reduce_mean(mine).tolist(), len(window.parts)
    metrics = step_metrics(
        told[:num_parts],
        report,
        steps=timed_steps,
        seconds=time.perf_counter() - window.start,
        triplets=timed_steps * run.config.train.global_batch_size,
        data_s=told[num_parts],
        busy_s=told[num_parts + 1 :],
    )
    run.tracker.log("step", step=progress.step, epoch=progress.epoch, metrics=metrics)
    run.terminal.step(progress.step, metrics)
    window.clear()


def mine(run: Run, progress: Progress, embedded: EmbeddedTexts | None, encode_s: float) -> npt.NDArray[np.int64]:
    """The negatives (P, K) of the epoch that begins. Every rank takes part."""
    if run.config.mining.negatives == 0:
        return np.empty((run.num_samples, 0), dtype=np.int64)
    mined = run.miner.negatives(progress.epoch, embedded)
    report_mining(run, progress, mined, encode_s)
    return mined.negative_text_PK


def report_mining(run: Run, progress: Progress, mined: Mined, encode_s: float) -> None:
    at, audit, texts = {"step": progress.step, "epoch": progress.epoch}, mined.audit, run.dataset.texts
    run.tracker.log("mine", **at, metrics=mine_metrics(mined, encode_s))
    run.tracker.event("negatives", **at, detail=mined.digest)
    run.tracker.event("mined from", **at, detail=f"embeddings {audit.fingerprint}, corpus {run.dataset.fingerprint[:16]}")
    run.tracker.histogram(HARDNESS, **at, edges=audit.hardness_edges, counts=audit.hardness_counts)
    run.tracker.table(CLOSEST, **at, **closest_table(audit.closest, run.training, texts))


def save_or_stop(run: Run, progress: Progress) -> None:
    """After a step: a checkpoint if one is due, the end if some rank was asked to stop. Every rank takes part."""
    run.miner.raise_failure()
    if error := run.checkpoints.failed():
        report_failure(run, progress, error)
    limits = run.config.checkpoint
    in_time = limits.every_minutes and time.monotonic() - progress.saved_at > 60 * limits.every_minutes
    agreement = run.stop.agreed(save=bool(in_time))
    # The answer is one step late: a checkpoint made since the ranks wished for one is the one they wished for.
    wished = agreement is Agreement.SAVE and progress.saved_step < progress.step - 1
    if wished or agreement is Agreement.STOP or (limits.every_steps and progress.step % limits.every_steps == 0):
        save_checkpoint(run, progress)
    if agreement is Agreement.STOP:
        run.world.on_main(lambda: finish_writing(run, progress))
        raise Stopped(f"after step {progress.step}, as asked; the same command goes on from there")


def was_skipped(run: Run, progress: Progress, batch_G: npt.NDArray[np.int64]) -> bool:
    """Whether the last step changed nothing because its gradient was not finite; the same on every rank.

    Raises:
        Diverged: too many in a row.
    """
    if run.engine.skipped_steps == progress.skipped_steps:
        progress.skipped_in_a_row = 0
        return False
    progress.skipped_steps = run.engine.skipped_steps
    progress.skipped_in_a_row += 1
    pairs = run.training.pairs
    names = ", ".join(pairs[i].point.source for i in batch_G[:8]) + (" ..." if len(batch_G) > 8 else "")
    detail = f"no finite gradient for the batch of {names}"
    run.tracker.event("skipped step", step=progress.step, epoch=progress.epoch, detail=detail)
    if progress.skipped_in_a_row >= run.config.train.max_skipped:
        raise Diverged
    return True


def go_back(run: Run, progress: Progress) -> Progress:
    """Return to the last checkpoint with half the learning rate. Every rank takes part.

    Raises:
        ConfigError: there is none, or the run has gone back too often.
    """
    step, rollbacks, factor = progress.step, progress.rollbacks + 1, run.engine.lr_factor / 2
    advice = (
        f"the last {progress.skipped_in_a_row} steps before step {step} had no finite gradient; lower train.lr "
        f"({run.config.train.lr:g}), take bf16 instead of fp16, or look at the samples that metrics.jsonl names"
    )

    def newest() -> Checkpoint | None:
        if rollbacks > run.config.train.max_rollbacks:
            raise ConfigError(f"{advice}; the run has gone back {rollbacks - 1} times already")
        finish_writing(run, progress)
        found = newest_checkpoint(run.checkpoints)
        if found is None:
            raise ConfigError(advice)
        return found

    holder: list[Checkpoint | None] = [None]
    run.world.on_main(lambda: holder.__setitem__(0, newest()))
    progress = load_checkpoint(run, holder[0], went_back=True)
    progress.rollbacks, progress.skipped_in_a_row, run.engine.lr_factor = rollbacks, 0, factor
    run.tracker.event(
        "went back",
        step=progress.step,
        epoch=progress.epoch,
        detail=f"from step {step}, with the learning rate x {factor:g}",
    )
    return progress


def embed_split(run: Run, split: Split) -> tuple[EmbeddedTexts | None, float]:
    """The split's texts with the current weights (None where none are held), and the seconds it took. Every rank takes
    part."""
    start = time.perf_counter()
    run.terminal.start(f"embedding the {split.name} split", len(split.text_ids))
    embedded = embed_texts(
        run.engine.encode,
        run.tokens,
        split.text_ids,
        run.world,
        batch_tokens=run.config.eval.batch_tokens_on(run.world.device.type),
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
    trained = not zero_shot and run.config.loss.classification_weight > 0
    classifier = run.engine.classifier_copy() if trained else None
    results: list[SplitResult] = []
    for split in run.dataset.splits.values():
        embedded = training if split.name == "training" else embed_split(run, split)[0]
        run.world.doing(f"evaluating the {split.name} split")

        def rank_all(holders: World, split: Split = split, embedded: EmbeddedTexts | None = embedded) -> SplitResult:
            assert embedded is not None
            vectors = embedded.pooled_cosine() if zero_shot else embedded
            limits = run.config.eval
            return evaluate_split(
                split, vectors, classifier, top_k=limits.top_k, world=holders, max_queries=limits.max_queries
            )

        results.append(run.world.on_holders(rank_all, sharded=run.config.mining.sharded))
    metrics = eval_metrics(results) | {"eval/seconds": time.perf_counter() - start}
    run.tracker.log("eval", step=progress.step, epoch=progress.epoch, metrics=metrics)
    (shown,) = (result for result in results if result.split == run.dataset.deciding_split)
    table = examples_table(shown.examples, run.dataset.texts)
    run.tracker.table(examples(shown.split), step=progress.step, epoch=progress.epoch, **table)
    when = f"epoch {progress.epoch}" if progress.negatives is None else f"step {progress.step}"
    run.terminal.evaluation("zero-shot" if zero_shot else when, metrics)
    return metrics


def keep_best(run: Run, progress: Progress, metrics: Metrics) -> None:
    """Save the model if it is the best so far by `eval.metric`. Every rank takes part.

    A longer run would not have measured where this one ends within an epoch, or between two evaluations: the best model of
    the others is set aside for it.
    """
    if progress.step == 0:
        return  # nothing is trained yet
    write_best(run, progress)
    value = metrics[f"eval/{run.dataset.deciding_split}/{run.config.eval.metric}"]
    progress.evaluations_since_best += 1
    if value > max(progress.best, progress.unwritten.value if progress.unwritten else progress.best):
        regular = progress.negatives is None and progress.epoch % run.config.eval.every_epochs == 0
        progress.evaluations_since_best = 0
        progress.unwritten = Unwritten(value, progress.step, regular)
        run.models.hold(metrics)
        if not write_best(run, progress):
            detail = f"the best model so far ({value:.4f}) could not be written"
            run.tracker.event("model not written", step=progress.step, epoch=progress.epoch, detail=detail)


def write_best(run: Run, progress: Progress, *, last_chance: bool = False) -> bool:
    """Write the best model if it is not written yet; whether it is. Every rank takes part."""
    if best := progress.unwritten:
        if not run.models.write_best(aside=not best.regular, last_chance=last_chance):
            return False
        progress.best, progress.best_step, progress.unwritten = best.value, best.step, None
    return True
