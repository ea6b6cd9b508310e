"""The folder that a run leaves, and the model card.

config.toml      every setting as resolved, readable by --config
run.json         versions, dataset fingerprint, ranks, command, time
metrics.jsonl    one JSON object a line, see tracking/names.py
model/best       the model that was best on validation, model/last the last one (see export.py)
wandb/           the offline run, where W&B was not logged in
"""

import dataclasses
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from biencoder.config import Config
from biencoder.data import Dataset
from biencoder.errors import ConfigError
from biencoder.tracking.names import Metrics, accuracy

_PACKAGES = ("biencoder", "torch", "transformers", "deepspeed", "faiss-cpu", "scikit-learn", "numpy", "wandb")


def create_run_folder(config: Config, dataset: Dataset, *, world_size: int) -> Path:
    """Make `run.dir` and write what the run starts from.

    Raises:
        ConfigError: the folder cannot be made, or holds a run already.
    """
    folder = Path(config.run.dir or time.strftime("runs/%Y%m%d-%H%M%S")).expanduser()
    if (folder / "metrics.jsonl").exists():
        raise ConfigError(f"run.dir {folder} holds a run already; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(tomli_w.dumps(dataclasses.asdict(config)), encoding="utf-8")
        facts = json.dumps(_facts(dataset, world_size), indent=2)
        (folder / "run.json").write_text(facts + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"run.dir {folder} cannot be written: {error.strerror}") from None
    return folder


def model_card(config: Config, dataset: Dataset, metrics: Metrics, *, step: int) -> str:
    """A README for the exported model: what it is, how it was trained, what it scores, how to use it."""
    rows = "\n".join(
        f"| {split} | {len(dataset.splits[split])} | {_percent(metrics, accuracy(split, 'embedding'))} | "
        f"{_percent(metrics, accuracy(split, 'embedding', text=True))} | {_percent(metrics, accuracy(split, 'rerank'))} | "
        f"{metrics[f'eval/{split}/embedding/mrr@10']:.3f} | {metrics[f'eval/{split}/embedding/ndcg@10']:.3f} |"
        for split in dataset.splits
    )
    encode = "encode_query / encode_document" if config.model.separate_weights else "encode"
    distance = (
        "length-1 embeddings, so cosine and Euclidean order agree" if config.model.normalize else "Euclidean distance"
    )
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, counter-argument-retrieval, bi-encoder]
base_model: {config.model.name}
---
# Counter-argument bi-encoder

Encodes an argument so that its best counter-argument is the nearest text. Trained from `{config.model.name}` for {step}
steps of {config.train.global_batch_size} triplets (triplet loss with margin {config.loss.margin} on {distance}, together
with the cross-entropy of a pair classifier), with negatives mined again before every epoch.

| split | points | accuracy@1 | with identical texts as one | re-ranked accuracy@1 | MRR@10 | nDCG@10 |
|---|---|---|---|---|---|---|
{rows}

Each point is ranked against all counters and points of its split but itself. The best checkpoint is chosen on validation.

```python
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("this/folder")
embeddings = model.{encode.split(" / ")[0]}(["an argument", "another text"])
```
Texts are cut at {config.model.max_length} tokens. `classifier.safetensors` holds the pair classifier for re-ranking.

Data: fingerprint `{dataset.fingerprint}`, seed {config.run.seed}, biencoder {version("biencoder")}.
"""


def _percent(metrics: Metrics, name: str) -> str:
    return f"{100 * metrics[name]:.2f} %"


def _facts(dataset: Dataset, world_size: int) -> dict[str, Any]:
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": " ".join(sys.argv),
        "host": platform.node(),
        "ranks": world_size,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "data": {
            "fingerprint": dataset.fingerprint,
            "pairs": {name: len(split) for name, split in dataset.splits.items()},
            "distinct_texts": len(dataset.texts),
            "oddities": dict(dataset.findings.counts),
        },
    }
