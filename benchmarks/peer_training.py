"""Train the peer's model for a comparison of quality: sentence-transformers' own trainer, for a given time on this machine.

    python benchmarks/peer_training.py --loss mnrl --data DIR --minutes 30 --out peers/mnrl
    python benchmarks/peer_training.py --loss triplet --data DIR --minutes 30 --out peers/triplet
    python launcher/evaluate.py --model runs/RUN/model/best --model peers/mnrl --model peers/triplet --data.root DIR

Base model, training pairs, length (unless `--max-length` says otherwise), batch and precision are those of
`configs/arguana.toml`. The peer gets what is known to
serve it: dropout 0 (fused attention on CPUs), batches without duplicates, its trainer's own learning rate, optimizer and
linear decay with a tenth of warm-up. Some steps are timed first; then it trains as many as fit in the time, of which its
mining is a part.

mnrl      MultipleNegativesRankingLoss (in-batch negatives) on (point, counter)
triplet   TripletLoss on (point, counter, negative), negatives by its `mine_hard_negatives` from the base model, at least
          5 % less similar than the counter
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    MultipleNegativesRankingLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from sentence_transformers.util import mine_hard_negatives
from transformers import TrainerCallback

from biencoder.config.load import load_config
from biencoder.data import load_dataset
from biencoder.model.pretrained import locate
from biencoder.training.engine.precision import fast_precision

_TIMED_STEPS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", required=True, choices=["mnrl", "triplet"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=5e-5, help="the trainer's own default")
    parser.add_argument("--max-length", type=int, default=0, help="tokens of a text [default: the recipe's]")
    arguments = parser.parse_args()
    start = time.perf_counter()
    peer = Peer(arguments.loss, arguments.lr, arguments.seed, max_length=arguments.max_length)
    samples = peer.samples(arguments.data)
    peer.train(samples, 3)  # warms up
    timed = time.perf_counter()
    peer.train(samples, _TIMED_STEPS)
    step_s = (time.perf_counter() - timed) / _TIMED_STEPS
    steps = int((60 * arguments.minutes - (timed - start)) / step_s)
    trained = time.perf_counter()
    peer.train(samples, steps).save(str(arguments.out))
    facts = {"loss": peer.loss, "steps": steps, "epochs": steps * peer.batch / len(samples), "samples": len(samples)}
    print(json.dumps(facts | {"minutes": (time.perf_counter() - trained) / 60, "lr": peer.lr, "seed": peer.seed}))


class Peer:
    """sentence-transformers with the settings of configs/arguana.toml."""

    def __init__(self, loss: str, lr: float, seed: int, *, max_length: int = 0) -> None:
        """Args: max_length: in tokens; 0: that of the recipe."""
        config = load_config(file=Path("configs/arguana.toml"))
        self.loss, self.lr, self.seed = loss, lr, seed
        self.precision = fast_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch, self._max_length = config.train.global_batch_size, max_length or config.model.max_length

    def samples(self, root: str) -> Dataset:
        """The training pairs; for `triplet` with mined negatives."""
        dataset = load_dataset(root, clean=True)
        split = dataset.splits["training"]
        columns = {"anchor": split.point_text_P, "positive": split.counter_text_P}
        pairs = Dataset.from_dict({name: [dataset.texts[i] for i in ids] for name, ids in columns.items()})
        if self.loss != "triplet":
            return pairs
        model, margin = self._fresh_model(), 0.05
        return mine_hard_negatives(
            pairs, model, num_negatives=1, relative_margin=margin, use_faiss=True, output_format="triplet", verbose=False
        )

    def train(self, samples: Dataset, steps: int, callbacks: Sequence[TrainerCallback] = ()) -> SentenceTransformer:
        """A new model after so many steps."""
        model, precision = self._fresh_model(), self.precision
        loss: Any = MultipleNegativesRankingLoss(model)
        if self.loss == "triplet":
            loss = TripletLoss(model, distance_metric=TripletDistanceMetric.COSINE, triplet_margin=0.25)
        with tempfile.TemporaryDirectory() as folder:
            arguments = SentenceTransformerTrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=self.batch,
                max_steps=steps,
                learning_rate=self.lr,
                warmup_steps=0.1,  # of all steps
                batch_sampler="no_duplicates",
                use_cpu=not torch.cuda.is_available(),
                bf16=precision == "bf16",
                fp16=precision == "fp16",
                seed=self.seed,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            )
            SentenceTransformerTrainer(
                model=model, args=arguments, train_dataset=samples, loss=loss, callbacks=[*callbacks]
            ).train()
        return model

    def _fresh_model(self) -> SentenceTransformer:
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = SentenceTransformer(locate("minilm"), config_kwargs=dropout)
        model.max_seq_length = self._max_length
        return model


if __name__ == "__main__":
    main()
