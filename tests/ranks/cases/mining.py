"""Mining over several ranks, and in the background."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from biencoder.config.schema import MiningConfig, ModelConfig
from biencoder.data import Forbidden, Split
from biencoder.data.given import Given
from biencoder.distributed.world import World
from biencoder.evaluation import evaluate_split
from biencoder.mining import Miner
from biencoder.model.bi_encoder import PairClassifier, Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from tests.ranks.cases import in_world


def sharded_search(mining: dict[str, Any], out: str, given: bool = False, pooled_is_held: bool = True) -> None:
    """Mine and rank random vectors held in unequal shards (the last rank holds none); rank 0 writes what is found, and what
    one process finds.

    Args:
        given: whether two pairs in three have a given negative.
        pooled_is_held: whether the shards have pooled vectors, which the classifier looks at then; else they are empty.
    """

    def work(ranks: World) -> None:
        rng = np.random.default_rng(5)
        rows = torch.from_numpy(rng.integers(-2, 3, (300, 6)).astype(np.float32))  # small integers: many exact ties
        pooled = torch.from_numpy(rng.standard_normal((300, 8)).astype(np.float32))
        everything = Vectors(rows, pooled)
        pairs: Any = (None,) * 150
        split = Split("training", pairs, np.arange(150), rng.permutation(np.arange(150, 300)))
        if given:
            split = replace(split, given=Given.of([(numbers + 1) % 150 for numbers in np.array_split(np.arange(100), 150)]))
        rows[split.counter_text_P] = rows[:150] + 2 * torch.eye(6)[torch.arange(150) % 6]  # near, so that some are found
        torch.manual_seed(0)
        config = ModelConfig(classifier="residual", classifier_features="both" if pooled_is_held else "embedding")
        classifier = PairClassifier(config, embedding_dim=6, hidden=8)
        torch.nn.init.normal_(cast(Any, classifier.layers[-1]).weight, std=0.1)
        classifier.calibrate(0.1, 1.0, -0.1, 0.1)  # far from saturating the softmax
        holder_M = (rng.random(300) ** 2 * (ranks.size - 1)).astype(np.int32)
        held = np.flatnonzero(holder_M == ranks.rank)
        mine = everything.rows(torch.from_numpy(held))
        mine = mine if pooled_is_held else Vectors(mine.embedding, mine.pooled[:, :0])
        found = {}
        for name, embedded, holders in (
            ("sharded", EmbeddedTexts(held, mine, mine, np.arange(300), holder_M), ranks),
            ("whole", EmbeddedTexts.whole(np.arange(300), everything, everything), World.alone()),
        ):
            near = MiningConfig(random_rate=0.2, placement="sharded", **mining)
            miner = Miner(split, Forbidden.of(split, 300), holders, near, seed=0, num_epochs=1)
            mined = miner.mine(0, embedded)
            result = evaluate_split(split, embedded, classifier, top_k=5, world=holders)
            found[name] = {
                "negatives": mined.negative_text_PK.tolist(),
                "distance": mined.search.nearest_distance,
                "recall": mined.search.recall,
                "audit": asdict(mined.audit),
                "metrics": result.metrics,
                "examples": [asdict(example) for example in result.examples],
            }
        if ranks.rank == ranks.size - 1:
            assert len(held) == 0
            Path(out).write_text(json.dumps(found))

    in_world(work, silence_s=120)


def overlapped_search(out: str) -> None:
    """Three epochs with `mining.overlap` on several ranks, and on one; the last rank writes both."""

    def work(ranks: World) -> None:
        pairs: Any = (None,) * 30
        split = Split("training", pairs, np.arange(30), np.arange(30, 60))
        found: dict[str, list[list[int]]] = {"ranks": [], "alone": []}
        for name, holders in (("ranks", ranks), ("alone", World.alone())):
            mining, forbidden = MiningConfig(overlap=True, random_rate=0.3), Forbidden.of(split, 60)
            miner = Miner(split, forbidden, holders, mining, seed=1, num_epochs=3)
            for epoch in range(3):
                rows = torch.from_numpy(np.random.default_rng(epoch).standard_normal((60, 8), dtype=np.float32))
                embedded = EmbeddedTexts.whole(np.arange(60), Vectors(rows, rows), Vectors(rows, rows))
                mined = miner.mine(epoch, embedded if holders.is_main else None)
                found[name].append([mined.staleness, *mined.negative_text_PK.ravel().tolist()])
        if ranks.rank == ranks.size - 1:
            Path(out).write_text(json.dumps(found))

    in_world(work)
