"""Embedding a split with the current weights, and measuring retrieval on every split."""

import time
from dataclasses import dataclass, field
from functools import partial

from biencoder.config.schema import EvalConfig
from biencoder.data import Dataset, Split
from biencoder.data.tokens import TokenizedTexts
from biencoder.distributed.world import World
from biencoder.evaluation import SplitResult, evaluate_split
from biencoder.model.bi_encoder import PairClassifier
from biencoder.model.truncation import FULL, Truncation
from biencoder.model.weight_order import weights_reordered
from biencoder.retrieval.embedding import EmbeddedTexts, embed_texts
from biencoder.tracking.names import AT_SIZE, Metrics, at_size, examples
from biencoder.tracking.terminal import Terminal
from biencoder.tracking.tracker import Tracker
from biencoder.training.engine.engine import Engine
from biencoder.training.evaluation_table import evaluation_table
from biencoder.training.metrics import eval_metrics
from biencoder.training.progress import Progress
from biencoder.training.tables import examples_table


@dataclass(frozen=True, slots=True)
class Evaluator:
    engine: Engine
    dataset: Dataset
    tokens: TokenizedTexts
    world: World
    config: EvalConfig
    tracker: Tracker
    terminal: Terminal
    sharded: bool
    """Whether every rank holds and searches its part of the embeddings."""
    has_classifier: bool
    """Whether a loss trains the pair classifier."""
    truncation: Truncation = FULL
    """The sizes of embeddings that are measured beside the full one."""
    has_projection: bool = False
    """Whether the pretrained model brings its projection along."""
    rows: list[tuple[str, Metrics]] = field(default_factory=list)
    """Name and metrics of every evaluation since this start, oldest first."""

    def needs_pooled(self, *, zero_shot: bool) -> bool:
        """Whether a measurement looks at pooled vectors: for the classifier, or as the pretrained model's own."""
        if zero_shot:
            return not self.has_projection
        return self.has_classifier and self.engine.model.classifier.uses_pooled

    def embed(self, split: Split, *, pooled: bool) -> tuple[EmbeddedTexts | None, float]:
        """The split's texts by the model as it stands (None on ranks that hold none), and the seconds it took. Every rank
        takes part.

        Args:
            pooled: whether pooled vectors are wanted; else they are empty.
        """
        start = time.perf_counter()
        shown = self.terminal.work(f"embedding the {split.name} split", len(split.text_ids))
        with shown as advance, self.engine.interpolated(), weights_reordered(self.engine.model.towers):
            embedded = embed_texts(
                self.engine.encode,
                self.tokens,
                split.text_ids,
                self.world,
                batch_tokens=self.config.batch_tokens_on(self.world.device.type),
                sharded=self.sharded,
                packing=self.engine.packing,
                pooled=pooled,
                advance=advance,
            )
        return embedded, time.perf_counter() - start

    def measure(self, progress: Progress, training: EmbeddedTexts | None, *, when: str, zero_shot: bool = False) -> Metrics:
        """Retrieval accuracy on every split, logged and shown. Every rank takes part.

        Args:
            training: embeddings of the training texts, which mining uses as well.
            when: the name of this evaluation on the terminal.
            zero_shot: measure the pretrained model itself: cosine of its pooled vectors, or of its embeddings if it has a
                projection; no classifier.
        """
        start = time.perf_counter()
        classifier = self.engine.classifier_copy() if self.has_classifier and not zero_shot else None
        splits, decides = self.dataset.splits, self.dataset.deciding_split
        found, calibration = {}, None
        pooled = self.needs_pooled(zero_shot=zero_shot)
        for split in sorted(splits.values(), key=lambda split: split.name != decides):
            embedded = training if split.name == "training" else self.embed(split, pooled=pooled)[0]
            self.world.doing(f"evaluating the {split.name} split")
            found[split.name] = self._rank(split, embedded, classifier, zero_shot=zero_shot)
            if split.name == decides and classifier is not None and (calibration := found[decides].calibration):
                classifier.calibrate(*calibration)
                found[decides] = self._rank(split, embedded, classifier, zero_shot=zero_shot)
        results = [found[name] for name in splits]
        metrics = eval_metrics(results, calibration) | {"eval/seconds": time.perf_counter() - start}
        self.tracker.log("eval", **progress.at, metrics=metrics)
        deciding = found[decides]
        table = examples_table(deciding.examples, self.dataset.texts)
        self.tracker.table(examples(deciding.split), **progress.at, **table)
        self.rows.append((when, metrics))
        self.terminal.show(*evaluation_table(self.rows))
        return metrics

    def _rank(
        self, split: Split, embedded: EmbeddedTexts | None, classifier: PairClassifier | None, *, zero_shot: bool
    ) -> SplitResult:
        def rank_all(holders: World) -> SplitResult:
            assert embedded is not None
            vectors = embedded.cosine(pooled=not self.has_projection) if zero_shot else embedded
            rank_with = partial(
                evaluate_split, split, top_k=self.config.top_k, world=holders, max_queries=self.config.max_queries
            )
            result = rank_with(vectors, classifier)
            for size in self.truncation.sizes:
                unit = zero_shot or self.truncation.normalize
                metrics = rank_with(vectors.truncated(size, normalize=unit), None).metrics
                result.metrics.update({at_size(size, name): metrics[f"embedding/{name}"] for name in AT_SIZE})
            return result

        with self.terminal.work(f"ranking in the {split.name} split"):
            return self.world.on_holders(rank_all, sharded=self.sharded)
