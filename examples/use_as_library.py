"""The public names in one go: train on the embedded debates, or load a trained model; then encode, rank and mine.

python examples/use_as_library.py                       trains for a minute or two
python examples/use_as_library.py runs/RUN/model/best
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from biencoder import BiencoderError, TrainedModel, load_config, mine, train
from biencoder.data import load_dataset


def main(arguments: Sequence[str]) -> None:
    config = load_config(file=Path("configs/quickstart.toml"), overrides={"train.max_steps": "4", "train.epochs": "1"})
    model = TrainedModel.load(arguments[0] if arguments else train(config) / "model" / "best")
    dataset = load_dataset("examples/debates", clean=model.clean)

    embedding_ND = model.encode(dataset.texts[:5])
    print(f"{len(embedding_ND)} texts became vectors of {embedding_ND.shape[1]} dimensions.")

    (hits,) = model.rank(["Cars should leave the city."], dataset.texts, top_k=3)
    for hit in hits:
        print(f"\nAt distance {hit.distance:.2f}: {hit.text}")

    pairs = dataset.splits["test"].pairs[:8]
    negatives = mine([pair.point.text for pair in pairs], [pair.counter.text for pair in pairs], model)
    print(f"\nHard to tell from {pairs[0].counter.text!r}:\n{negatives[0][0]!r}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BiencoderError as error:
        sys.exit(f"error: {error}")
