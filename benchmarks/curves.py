"""Accuracy over processor time on a corpus of debates: a recipe of ours and losses of sentence-transformers, a core each.

    taskset -c 0 python benchmarks/curves.py ours    --data DIR --out curves/ours.json
    taskset -c 1 python benchmarks/curves.py mnrl    --data DIR --out curves/mnrl.json --seconds 2400
    taskset -c 0 python benchmarks/curves.py triplet --data DIR --out curves/triplet.json --seconds 2400

ours trains configs/arguana.toml, with any setting changed by `--set KEY=VALUE`; mnrl and triplet are those of
benchmarks/peer_training.py. All train on one thread, with the same model, texts, length and batch, in the precision that is
fast here. Time is the processor time of the process from its start, imports, tokenization and mining included, without
evaluations. Weights are kept every `--every` steps and measured afterwards: accuracy@1 of the validation points among all
other points and counters of their split, strict, and with copies of a text as one. docs/curves.py draws the files.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_training import Peer
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from biencoder.config.load import load_config
from biencoder.config.schema import Config
from biencoder.data import Dataset, load_dataset
from biencoder.distributed.join import join
from biencoder.distributed.world import World
from biencoder.evaluation import evaluate_split
from biencoder.model.bi_encoder import Vectors, build_model
from biencoder.model.pretrained import load_pretrained
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.trained_model import TrainedModel
from biencoder.tracking.names import Metrics
from biencoder.training.best_model import BestModel
from biencoder.training.engine.precision import fast_precision
from biencoder.training.evaluator import Evaluator
from biencoder.training.run import train
from biencoder.training.step import Step

CONFIG = Path("configs/arguana.toml")
_TIMED_STEPS = 6

Embed = Callable[[Dataset, Any], EmbeddedTexts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ours", "mnrl", "triplet"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=32, help="steps between two measurements")
    parser.add_argument("--seconds", type=float, default=2400, help="processor time of a peer [default: 2400]")
    parser.add_argument("--max-length", type=int, default=0, help="tokens of a text for a peer [default: the recipe's]")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of ours")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "ours":
            settings = dict(item.split("=", 1) for item in arguments.set)
            facts, seconds, embeds = ours(arguments.data, Path(folder), arguments.every, settings)
        else:
            facts, seconds, embeds = peer(
                arguments.what, arguments.data, Path(folder), arguments.every, arguments.seconds, arguments.max_length
            )
        dataset = load_dataset(arguments.data, clean=True)
        points = []
        for step, embed in embeds.items():
            points.append({"step": step, "seconds": round(seconds[step])} | measure(dataset, embed))
            print(json.dumps(points[-1]), flush=True)
    facts |= {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(facts | {"what": arguments.what, "points": points}, indent=1) + "\n")


def ours(root: str, folder: Path, every: int, settings: dict[str, str]) -> tuple[dict[str, Any], dict[int, float], Any]:
    """Train the recipe without evaluations; seconds until each step that is measured, and what embeds with its weights."""
    seconds: dict[int, float] = {}

    def timed(self: Step, batch: Any, number: int, train: Any = Step.train) -> Any:
        parts = train(self, batch, number)
        seconds[number + 1] = time.process_time()
        return parts

    overrides = {
        **{"data.root": root, "run.dir": str(folder / "run"), "tracking.wandb": "disabled", "tracking.report": "false"},
        **{"checkpoint.every_steps": str(every), "checkpoint.every_minutes": "0", "checkpoint.keep": "1000"},
        **settings,
    }
    config = load_config(file=CONFIG, overrides=overrides)
    without_evaluations(embeds=config.mining.negatives > 0 or config.train.batches == "clusters")
    Step.train = timed  # type: ignore[method-assign]
    with join(config.distributed) as world:
        train(config, world)
    checkpoints = {int(place.name[5:]): place for place in sorted((folder / "run/checkpoints").glob("step-*"))}
    facts = {"settings": settings, "precision": fast_precision(torch.device("cpu"))}
    return facts, seconds, {step: checkpoint_encoder(config, place) for step, place in checkpoints.items()}


def without_evaluations(*, embeds: bool) -> None:
    """The peer's trainer does none either.

    Args:
        embeds: whether training itself needs the vectors of its texts.
    """
    Evaluator.measure = lambda *_, **__: Metrics()  # type: ignore[method-assign]
    BestModel.consider = BestModel.write = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    if not embeds:
        Evaluator.embed = lambda *_, **__: (None, 0.0)  # type: ignore[method-assign]


def checkpoint_encoder(config: Config, place: Path) -> Embed:
    def embed(dataset: Dataset, ids: Any) -> EmbeddedTexts:
        pretrained = load_pretrained(config.model)
        settled = pretrained.settled(config.model)
        model = build_model(settled, pretrained, seed=config.run.seed)
        weights = load_file(place / "model.safetensors")
        for name, parameter in model.named_parameters():  # what towers share has one name
            share = 0.0 if name.startswith("classifier.") else config.train.pretrained_share
            parameter.data.copy_(weights[name].lerp(parameter.data, share))
        return TrainedModel(model.eval(), pretrained.tokenizer, settled, torch.device("cpu")).embed_texts(
            dataset.texts, ids
        )

    return embed


def peer(
    loss: str, root: str, folder: Path, every: int, limit_s: float, max_length: int
) -> tuple[dict[str, Any], dict[int, float], Any]:
    """Train for so many processor seconds, as far as a few steps foretell; as `ours`."""
    own = Peer(loss, lr=5e-5, seed=0, max_length=max_length)
    samples = own.samples(root)
    mined = time.process_time()
    own.train(samples, _TIMED_STEPS)
    spent, seconds = time.process_time() - mined, dict[int, float]()
    away = [spent]  # neither these steps nor the saving of weights counts
    steps = int((limit_s - mined) / (spent / _TIMED_STEPS))

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step % every == 0 or state.global_step == steps:
                now = time.process_time()
                seconds[state.global_step] = now - away[0]
                model.save(str(folder / f"{state.global_step:08d}"))
                away[0] += time.process_time() - now

    own.train(samples, steps, callbacks=[Keep()])
    kept = {int(place.name): place for place in sorted(folder.iterdir())}
    facts = {"samples": len(samples), "epochs": round(steps * own.batch / len(samples), 2), "precision": own.precision}
    return facts, seconds, {step: peer_encoder(place) for step, place in kept.items()}


def peer_encoder(place: Path) -> Embed:
    def embed(dataset: Dataset, ids: Any) -> EmbeddedTexts:
        model = SentenceTransformer(str(place), device="cpu")
        found_ND = torch.from_numpy(model.encode([dataset.texts[i] for i in ids], normalize_embeddings=True))
        return EmbeddedTexts.whole(ids, Vectors(found_ND, found_ND), Vectors(found_ND, found_ND))

    return embed


def measure(dataset: Dataset, embed: Embed) -> dict[str, float]:
    split = dataset.splits["validation"]
    embedded = embed(dataset, np.unique(split.text_ids))
    metrics = evaluate_split(split, embedded, None, top_k=10, world=World.alone()).metrics
    return {name: metrics[f"embedding/accuracy@1{suffix}"] for name, suffix in (("strict", ""), ("copies as one", "_text"))}


if __name__ == "__main__":
    main()
