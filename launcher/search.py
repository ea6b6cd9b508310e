"""Find the best counter-arguments for arguments from the command line or, one a line, from stdin.

python launcher/search.py --model runs/RUN/model/best --data.root DIR "an argument"
python launcher/search.py --index FOLDER "an argument"      what launcher/index.py has written: no corpus is read
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from biencoder.config.paths import user_path
from biencoder.errors import ConfigError, DataError, ModelError
from launcher.entry import as_read, cleans, heavy_imports, model_parser, run

if TYPE_CHECKING:
    from biencoder.retrieval.saved_index import SearchIndex
    from biencoder.retrieval.trained_model import TrainedModel
    from biencoder.tracking.terminal import Terminal


def main(argv: Sequence[str]) -> None:
    arguments = parse(argv)
    with heavy_imports():
        from biencoder.evaluation.tables import hits_table
        from biencoder.tracking.terminal import Terminal

    terminal = Terminal(is_main=True)
    model, index = saved(arguments) if arguments.index else made_now(arguments, terminal)
    if arguments.rerank and model.classifier is None:
        raise ConfigError("--rerank wants a pair classifier, and the model has none: its loss had no weight in training")
    helps, probable = model.reranking or (False, True)
    rerank = arguments.rerank if arguments.rerank is not None else model.has_classifier and helps
    terminal.say(f"The model computes in {model.precision}.")
    queries = arguments_of(arguments.queries) if arguments.queries else lines_of(sys.stdin.buffer)
    for query in queries:
        if query:
            hits = model.search(query, index, top_k=arguments.top_k, rerank=rerank)
            terminal.show(hits_table(query, hits, probabilities=rerank or probable))


def lines_of(stream: BinaryIO) -> Iterator[str]:
    """The lines of a UTF-8 text, without the blanks around them; it may begin with a byte-order mark.

    Raises:
        DataError: a line is no UTF-8 text.
    """
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"line {number} of stdin is no UTF-8 text (byte {error.start + 1}); convert it") from None


def arguments_of(queries: Sequence[str]) -> Iterator[str]:
    """Queries from the command line.

    Raises:
        DataError: one is no UTF-8 text: Python then gives its bytes as lone surrogates.
    """
    for number, query in enumerate(queries, 1):
        if any("\ud800" <= character <= "\udfff" for character in query):
            raise DataError(f"argument {number} is no UTF-8 text: {query!a}; convert it")
        yield query


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = model_parser(
        prog="search.py",
        description="Find the best counter-arguments in a corpus.",
        example="--model runs/RUN/model/best --data.root examples/debates 'Cars should leave the city.'",
    )
    parser.add_argument("--model", metavar="DIR", help="an exported model; with --index, if it is not where it was")
    parser.add_argument(
        "--index", metavar="FOLDER", help="answer from this index; with --data.root, if it is of that corpus"
    )
    parser.add_argument(
        "--rerank",
        action=argparse.BooleanOptionalAction,
        help="show the nearest in the order of the pair classifier's probability, or of their distance [default: of "
        "probability if that was better on validation]",
    )
    parser.add_argument("queries", nargs="*", metavar="ARGUMENT", help="arguments to answer; from stdin if none")
    default_root = parser.get_default("data_root")
    parser.set_defaults(data_root=None)
    arguments = parser.parse_args(argv)
    if not arguments.index:
        if not arguments.model:
            raise ConfigError("nothing to search with: give --model and --data.root, or --index")
        arguments.data_root = arguments.data_root or default_root
    return arguments


def made_now(arguments: argparse.Namespace, terminal: "Terminal") -> "tuple[TrainedModel, SearchIndex]":
    """Embed the whole corpus."""
    from biencoder.data import load_texts
    from biencoder.model.vocabulary import check_corpus
    from biencoder.retrieval.saved_index import SearchIndex

    clean = cleans(arguments.clean, [arguments.model])
    texts, findings = load_texts(arguments.data_root, clean=clean, **as_read(arguments))
    model = load(arguments, arguments.model, arguments.dim)
    check_corpus(texts, model.tokenizer, findings, root=arguments.data_root, name=f"the model in {arguments.model}")
    with terminal.work("embedding the corpus", len(texts)) as advance:
        vectors = model.embed_side(texts, "candidate", advance=advance)
    return model, SearchIndex.in_memory(texts, vectors, clean=clean)


def saved(arguments: argparse.Namespace) -> "tuple[TrainedModel, SearchIndex]":
    """Map a saved index, once it is certain that it is of this model, and of this corpus if one was given."""
    from biencoder.data import load_texts
    from biencoder.model.folder import model_sha256
    from biencoder.retrieval.saved_index import check_texts, open_index, read_facts

    folder = user_path(arguments.index)
    facts = read_facts(folder)
    if arguments.clean not in (None, facts.clean):
        taken = "cleaned texts" if facts.clean else "texts as they stand"
        raise ConfigError(f"the index in {folder} is of {taken}, and queries are taken alike; make another, or say nothing")
    if arguments.data_root:
        texts, _ = load_texts(arguments.data_root, clean=facts.clean, **as_read(arguments))
        check_texts(folder, facts, texts)
    model_folder = user_path(arguments.model or facts.model)
    if not model_folder.is_dir():
        raise ModelError(f"{model_folder}, the model of the index in {folder}, is not there; say where it is with --model")
    index = open_index(folder, facts, model_sha256=model_sha256(model_folder))
    dim = index.embedding_ND.shape[1]
    if arguments.dim not in (0, dim):
        raise ConfigError(f"the index in {folder} is of {dim} dimensions, and so are queries; make another, or say nothing")
    return load(arguments, model_folder, dim), index


def load(arguments: argparse.Namespace, folder: "str | Path", dim: int) -> "TrainedModel":
    from biencoder.retrieval.trained_model import TrainedModel

    trusted = arguments.trust_remote_code
    return TrainedModel.load(folder, precision=arguments.precision, trust_remote_code=trusted, dim=dim)


def command() -> None:
    run(main)


if __name__ == "__main__":
    command()
