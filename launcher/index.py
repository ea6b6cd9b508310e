"""Embed a corpus once, and keep it as an index that search.py answers from.

python launcher/index.py --model runs/RUN/model/best --data.root DIR --out FOLDER
"""

import argparse
import shlex
from collections.abc import Sequence
from functools import partial

from biencoder.config.paths import typed, user_path
from launcher.entry import add_dim, add_precision, as_read, cleans, corpus_parser, heavy_imports, run


def main(argv: Sequence[str]) -> None:
    arguments = parse(argv)
    with heavy_imports():
        from biencoder.data import load_texts
        from biencoder.model.folder import model_sha256
        from biencoder.model.vocabulary import check_corpus
        from biencoder.model.whole_folder import output_folder
        from biencoder.retrieval.saved_index import FACTS, write_index
        from biencoder.retrieval.trained_model import TrainedModel
        from biencoder.tracking.terminal import Terminal
        from biencoder.training.opening import findings_table

    terminal, folder = Terminal(is_main=True), output_folder(arguments.out, FACTS)
    model_folder = user_path(arguments.model).resolve()
    clean = cleans(arguments.clean, [str(model_folder)])
    texts, findings = load_texts(arguments.data_root, clean=clean, **as_read(arguments))
    trusted, dim = arguments.trust_remote_code, arguments.dim
    model = TrainedModel.load(model_folder, precision=arguments.precision, trust_remote_code=trusted, dim=dim)
    check_corpus(texts, model.tokenizer, findings, root=arguments.data_root, name=f"the model in {model_folder}")
    terminal.show(*findings_table(findings))
    with terminal.work(f"embedding in {model.precision}", len(texts)) as advance:
        facts = write_index(
            folder,
            texts,
            kind=arguments.kind,
            clean=clean,
            model=str(model_folder),
            model_sha256=model_sha256(model_folder),
            candidates=partial(model.embed_side, side="candidate", advance=advance),
            queries=partial(model.embed_side, side="query"),
        )
    size = sum(facts.num_bytes.values()) / 2**20
    recall = "" if facts.kind == "flat" else f", finds {100 * facts.recall:.1f} % of the 10 nearest"
    made = f"The {facts.kind} index of {len(texts):,} texts, embedded in {model.precision},"
    terminal.say(f"{made} is in {folder}: {size:,.1f} MiB{recall}.")
    terminal.say(f"Search it: {shlex.join([*typed('search'), '--index', str(folder), 'your argument'])}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = corpus_parser(
        prog="index.py",
        description="Embed a corpus once, and keep it as an index for search.py.",
        example="--model runs/RUN/model/best --data.root examples/debates --out index",
    )
    add_precision(parser)
    add_dim(parser)
    parser.add_argument("--model", required=True, metavar="DIR", help="an exported model, say runs/RUN/model/best")
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="where the index goes; one that is there is replaced"
    )
    parser.add_argument(
        "--kind",
        choices=["flat", "ivf", "hnsw"],
        default="flat",
        help="flat: exact. ivf, hnsw: approximate, for large corpora; what they find of the truly nearest is measured.\n"
        "hnsw takes long to build [default: flat]",
    )
    return parser.parse_args(argv)


def command() -> None:
    run(main)


if __name__ == "__main__":
    command()
