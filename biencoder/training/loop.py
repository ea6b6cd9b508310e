"""The training loop, top to bottom: `fit` → `run_epoch` → `Step.train`.

    every epoch   embed the training texts → mine negatives → (measure retrieval) → one pass over shuffled triplets
    every step    score → loss → backward → update → report

Everything here runs on every rank, in the same order and equally often; what only rank 0 does is inside what it calls.

S: steps, G: samples of a global batch.
"""

from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biencoder.data.prefetch import prefetched
from biencoder.distributed.stop_requests import StopRequests
from biencoder.distributed.world import World
from biencoder.errors import Diverged
from biencoder.mining import Clusters, Mined, Miner
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.tracking.names import CLOSEST, CLUSTERS, HARDNESS, Metrics
from biencoder.tracking.terminal import Terminal
from biencoder.tracking.tracker import Tracker
from biencoder.training.best_model import BestModel
from biencoder.training.engine.freed_memory import freed_memory_kept
from biencoder.training.evaluator import Evaluator
from biencoder.training.metrics import mine_metrics, step_note
from biencoder.training.model_folders import ModelFolders
from biencoder.training.plan import Plan
from biencoder.training.progress import Progress
from biencoder.training.recovery.checkpoint import Checkpoint
from biencoder.training.recovery.divergence import Divergence
from biencoder.training.recovery.out_of_memory import raising_out_of_memory
from biencoder.training.recovery.resume import Recovery
from biencoder.training.sampler import global_batches
from biencoder.training.step import Step
from biencoder.training.tables import closest_table
from biencoder.training.window import Window


@dataclass(frozen=True, slots=True)
class Trainer:
    """The parts of a run. They do not know of each other but for what they were built with."""

    plan: Plan
    world: World
    step: Step
    miner: Miner
    clusters: Clusters | None
    """If batches are made of them."""
    evaluator: Evaluator
    best: BestModel
    models: ModelFolders
    window: Window
    divergence: Divergence
    recovery: Recovery
    progress: Progress
    stop: StopRequests
    tracker: Tracker
    terminal: Terminal

    def fit(self) -> None:
        """Train from where `progress` stands to the end. Every rank takes part."""
        config, progress, metrics = self.plan.config, self.progress, Metrics()
        while True:
            if self.miner.current is not None:
                try:
                    self.run_epoch(self.miner.current)
                except Diverged:
                    self._go_back()
                    continue
            done = progress.step >= self.plan.last_step
            measured = done or progress.epoch % config.eval.every_epochs == 0
            clusters = self._lacks_clusters
            needed = measured or (config.mining.negatives and self.miner.due(progress.epoch)) or clusters
            pooled = clusters or (measured and self.evaluator.needs_pooled(zero_shot=progress.step == 0))
            embedded, encode_s = self.evaluator.embed(self.step.split, pooled=pooled) if needed else (None, 0.0)
            if measured:
                metrics = self._evaluate(embedded)
            if done or (config.eval.patience and self.best.evaluations_since >= config.eval.patience):
                break
            self._mine(embedded, encode_s)
            del embedded
        self.world.on_main(self.recovery.finish_writing)  # what a start goes on from that is to write the models
        self.models.write_last(metrics)
        self.best.write(last_chance=True)

    def run_epoch(self, negative_text_PK: npt.NDArray[np.int64]) -> None:
        """What is left of one pass over the shuffled training triplets, up to the run's last step."""
        train, progress, window, num_steps = self.plan.config.train, self.progress, self.window, self.plan.epoch_steps
        start, end = progress.epoch * num_steps, (progress.epoch + 1) * num_steps
        assert start <= progress.step <= end
        batches_SG = global_batches(
            num_samples=len(self.step.split),
            global_batch_size=train.global_batch_size,
            seed=self.plan.config.run.seed,
            epoch=progress.epoch,
            group_N=self.clusters.number_P if self.clusters else self.step.split.groups(train.batches),
        )[progress.step - start : max(0, self.plan.last_step - start)]
        window.restart_clock()
        made = prefetched(self.step.batch(batch_G, negative_text_PK) for batch_G in batches_SG)
        shown = self.terminal.work(f"epoch {progress.epoch + 1}/{train.epochs}", len(batches_SG))
        with shown as advance, self.stop.stepping(), freed_memory_kept(self.world.device), closing(made):
            for batch_G in batches_SG:
                self.world.doing(f"training step {progress.step + 1}")
                with window.batches.running():
                    batch = next(made)
                with raising_out_of_memory(self.plan.config, world_size=self.world.size):
                    parts_K = self.step.train(batch, progress.step)
                progress.step += 1
                window.count_step(None if self._was_skipped(batch_G) else parts_K)
                advance(1)
                if progress.step % train.log_every == 0 or progress.step == end:
                    self._report_steps()  # every rank takes part: means over ranks
                self.miner.raise_failure()
                self.recovery.save_or_stop()
            self._leave_epoch(whole=progress.step == end)

    def _leave_epoch(self, *, whole: bool) -> None:
        """Save where the run stands, at an epoch's end or where the run's last step cuts one. Every rank takes part.

        A longer run goes on from there as if nothing had been cut. So a cut epoch is not counted and keeps its negatives,
        and the record of its last steps, which such a run makes at another step, comes after the checkpoint: going on
        forgets it.
        """
        if whole:
            self.progress.epoch += 1
            self.miner.leave_epoch()
        self.recovery.save()
        if not whole and self.progress.step % self.plan.config.train.log_every:
            self._report_steps()

    def _report_steps(self) -> None:
        metrics = self.window.close(self.step.engine.report(), batch_size=self.plan.config.train.global_batch_size)
        self.tracker.log("step", **self.progress.at, metrics=metrics)
        self.terminal.note(f"step {self.progress.step}", step_note(metrics))

    def _was_skipped(self, batch_G: npt.NDArray[np.int64]) -> bool:
        """Whether the last step changed nothing because its gradient was not finite; the same on every rank.

        Raises:
            Diverged: too many in a row.
        """
        if not self.divergence.skipped():
            return False
        self.tracker.event("skipped step", **self.progress.at, detail=self.divergence.describe(batch_G))
        self.divergence.check()
        return True

    def _evaluate(self, embedded: EmbeddedTexts | None) -> Metrics:
        progress, between_epochs = self.progress, self.miner.current is None
        when = f"epoch {progress.epoch}" if between_epochs else f"step {progress.step}"
        zero_shot = progress.step == 0
        when = "zero-shot" if zero_shot else when
        metrics = self.evaluator.measure(progress, embedded, when=when, zero_shot=zero_shot)
        regular = between_epochs and progress.epoch % self.plan.config.eval.every_epochs == 0
        self.best.consider(metrics, **progress.at, regular=regular)
        return metrics

    @property
    def _lacks_clusters(self) -> bool:
        return self.clusters is not None and self.clusters.number_P is None

    def _mine(self, embedded: EmbeddedTexts | None, encode_s: float) -> None:
        """Find the negatives of the epoch that begins, and before the first one the clusters."""
        if self.clusters and self._lacks_clusters:
            with self.terminal.work("clustering the training pairs"):
                self.clusters.find(embedded)
            self.tracker.event(CLUSTERS, **self.progress.at, detail=self.clusters.described)
        if not self.plan.config.mining.negatives:
            self.miner.mine_nothing()
        elif not self.miner.due(self.progress.epoch):
            self.miner.keep()
        else:
            with self.terminal.work(f"mining negatives for epoch {self.progress.epoch + 1}"):
                mined = self.miner.mine(self.progress.epoch, embedded)
            self._report_mining(mined, encode_s)

    def _report_mining(self, mined: Mined, encode_s: float) -> None:
        at, audit, dataset = self.progress.at, mined.audit, self.plan.dataset
        self.tracker.log("mine", **at, metrics=mine_metrics(mined, encode_s))
        self.tracker.event("negatives", **at, detail=mined.digest)
        source = f"embeddings {audit.fingerprint}, corpus {dataset.fingerprint[:16]}"
        self.tracker.event("mined from", **at, detail=source)
        self.tracker.histogram(HARDNESS, **at, edges=audit.hardness_edges, counts=audit.hardness_counts)
        self.tracker.table(CLOSEST, **at, **closest_table(audit.closest, self.step.split, dataset.texts))

    def _go_back(self) -> None:
        """Return to the last checkpoint with half the learning rate.

        Raises:
            PeerError: there is none, or the run has gone back too often.
        """
        divergence, progress, engine = self.divergence, self.progress, self.step.engine
        step, rollbacks, lr_factor = progress.step, divergence.rollbacks + 1, engine.lr_factor / 2

        def newest() -> Checkpoint:
            divergence.check_rollbacks(step)
            self.recovery.finish_writing()
            checkpoint = self.recovery.newest()
            if checkpoint is None:
                raise divergence.advice(step)
            return checkpoint

        self.recovery.load(self.world.keep_on_main(newest), went_back=True)
        divergence.went_back(rollbacks=rollbacks, lr_factor=lr_factor)
        detail = f"from step {step}, with the learning rate x {lr_factor:g}"
        self.tracker.event("went back", **progress.at, detail=detail)
