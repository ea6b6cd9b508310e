"""Measure a trained model on every split of a corpus.

python launcher/evaluate.py --model runs/RUN/model/best --data.root DIR
"""

from collections.abc import Sequence
from pathlib import Path

from launcher.entry import model_parser, run


def main(argv: Sequence[str]) -> None:
    parser = model_parser(prog="evaluate.py", description="Measure a trained model on a corpus.")
    parser.add_argument("--model", required=True, metavar="DIR", help="an exported model, say runs/RUN/model/best")
    arguments = parser.parse_args(argv)
    from biencoder.data import load_dataset
    from biencoder.distributed import World
    from biencoder.evaluation import evaluate_split
    from biencoder.inference import Inference
    from biencoder.tracking.names import eval_metrics
    from biencoder.tracking.terminal import Terminal

    terminal = Terminal(is_main=True)
    dataset = load_dataset(arguments.data_root, clean=arguments.clean, needs_training=False)
    model = Inference.load(arguments.model)
    terminal.findings(dataset.findings)
    tokens = model.tokenize(dataset.texts)
    alone = World.alone()
    results = [
        evaluate_split(split, model.embed(tokens, split.text_ids), model.classifier, top_k=arguments.top_k, world=alone)
        for split in dataset.splits.values()
    ]
    terminal.evaluation(Path(arguments.model).name, eval_metrics(results))


def command() -> None:
    run(main)


if __name__ == "__main__":
    command()
