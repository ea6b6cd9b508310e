"""Find the best counter-arguments in a corpus for arguments from the command line or, one a line, from stdin.

python launcher/search.py --model runs/RUN/model/best --data.root DIR "an argument"
"""

import sys
from collections.abc import Sequence

from launcher.entry import model_parser, run


def main(argv: Sequence[str]) -> None:
    parser = model_parser(prog="search.py", description="Find the best counter-arguments in a corpus.")
    parser.add_argument("--model", required=True, metavar="DIR", help="an exported model, say runs/RUN/model/best")
    parser.add_argument("queries", nargs="*", metavar="ARGUMENT", help="arguments to answer; from stdin if none")
    arguments = parser.parse_args(argv)
    import numpy as np

    from biencoder.data import load_dataset
    from biencoder.inference import Inference
    from biencoder.tracking.terminal import Terminal

    dataset = load_dataset(arguments.data_root, clean=arguments.clean, needs_training=False)
    model = Inference.load(arguments.model)
    corpus = model.embed(model.tokenize(dataset.texts), np.arange(len(dataset.texts)))
    terminal = Terminal(is_main=True)
    queries = arguments.queries or (line.strip() for line in sys.stdin)
    for query in queries:
        if query:
            terminal.found(query, model.search(query, corpus, dataset.texts, top_k=arguments.top_k))


def command() -> None:
    run(main)


if __name__ == "__main__":
    command()
