"""Measure trained models on a corpus.

python launcher/evaluate.py --model runs/RUN/model/best --data.root DIR      every split, as training measures it
python launcher/evaluate.py --model A --model B --baselines --data.root DIR  one split on all tasks, side by side
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biencoder.errors import ConfigError
from launcher.entry import as_read, cleans, heavy_imports, model_parser, run

if TYPE_CHECKING:
    from biencoder.data import Dataset
    from biencoder.data.ids import Ids
    from biencoder.evaluation.comparison import System
    from biencoder.retrieval.embedders import NamedModel
    from biencoder.tracking.terminal import Terminal

_DESCRIPTION = (
    "Measure trained models on a corpus. With --model and --data.root alone: every split, as training measures it.\n"
    "With any of the other options, or several models: one split, on the tasks of the corpus paper, side by side."
)


def main(argv: Sequence[str]) -> None:
    arguments = parse(argv)
    compared = arguments.split or arguments.tasks or arguments.baselines or arguments.zero_shot or arguments.leak_free
    if compared or arguments.out or len(arguments.model) > 1:
        compare(arguments)
    else:
        evaluate(arguments)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    example = "--model runs/RUN/model/best --data.root examples/debates"
    parser = model_parser(prog="evaluate.py", description=_DESCRIPTION, example=example)
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="DIR",
        help="an exported model, say runs/RUN/model/best, or a sentence-transformers folder; may be given several times",
    )
    parser.add_argument("--split", metavar="NAME", help="the split to compare on [default: validation]")
    parser.add_argument(
        "--tasks",
        metavar="NAMES",
        help="all, or some of sdoc,sdc,sdoa,sda,stc,sta,epc,epa (same debate, same theme, entire portal; opposing;\n"
        "counters or arguments) and beir (all splits, distinct texts) [default: all]",
    )
    parser.add_argument("--baselines", action="store_true", help="also BM25, TF-IDF, and what the models were trained from")
    parser.add_argument("--zero-shot", metavar="NAME", help="also this pretrained encoder, in place of those")
    parser.add_argument(
        "--leak-free", action="store_true", help="leave out queries whose debate shares texts with training"
    )
    parser.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep vectors in the user's cache folder, and read those there that a model has made [default: do]",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    arguments = parser.parse_args(argv)
    if not (arguments.model or arguments.baselines or arguments.zero_shot):
        raise ConfigError("nothing to measure: give --model DIR, or --baselines")
    if arguments.out and not arguments.out.parent.is_dir():
        raise ConfigError(f"--out {arguments.out}: the folder {arguments.out.parent} does not exist")
    return arguments


def evaluate(arguments: argparse.Namespace) -> None:
    """One model on every split."""
    with heavy_imports():
        from biencoder.distributed.world import World
        from biencoder.evaluation import evaluate_split
        from biencoder.tracking.terminal import Terminal
        from biencoder.training.evaluation_table import evaluation_table
        from biencoder.training.metrics import eval_metrics
        from biencoder.training.opening import findings_table

    terminal = Terminal(is_main=True)
    clean = cleans(arguments.clean, arguments.model)
    dataset = read_corpus(arguments, clean=clean)
    (model,) = load(arguments, terminal)
    terminal.show(*findings_table(dataset.findings))
    alone = World.alone()
    results = [
        evaluate_split(
            split,
            model.embed_texts(dataset.texts, split.text_ids),
            model.embedder.classifier,
            top_k=arguments.top_k,
            world=alone,
        )
        for split in dataset.splits.values()
    ]
    terminal.show(*evaluation_table([(model.name, eval_metrics(results))]))


def compare(arguments: argparse.Namespace) -> None:
    """Models and baselines on the tasks of one split."""
    with heavy_imports():
        import numpy as np

        from biencoder.evaluation.comparison import Comparison
        from biencoder.evaluation.leaks import leak_free
        from biencoder.evaluation.tables import comparison_table, leak_free_line
        from biencoder.evaluation.tasks import choose_tasks
        from biencoder.tracking.terminal import Terminal
        from biencoder.training.opening import findings_table

    terminal = Terminal(is_main=True)
    clean = cleans(arguments.clean, arguments.model)
    dataset = read_corpus(arguments, clean=clean)
    name = arguments.split or dataset.deciding_split
    if name not in dataset.splits:
        raise ConfigError(f"--split is {name!r}, but {arguments.data_root} has {', '.join(dataset.splits)}")
    split = dataset.splits[name]
    tasks = choose_tasks(arguments.tasks or "all", split)
    terminal.show(*findings_table(dataset.findings))
    whole_corpus = any(task.scope == "everything" for task in tasks)
    text_ids = np.arange(len(dataset.texts)) if whole_corpus else split.text_ids
    systems = make_systems(arguments, dataset.texts, text_ids, terminal)
    left = leak_free(dataset, split) if arguments.leak_free else None
    if left:
        terminal.show(leak_free_line(split.name, left))
    kept_P = left.kept_P if left else np.full(len(split), True)
    announced = announce(systems, terminal)
    comparison = Comparison.of(dataset, split, tasks, announced, top_k=arguments.top_k, kept_P=kept_P)
    terminal.show(comparison_table(comparison))
    if arguments.out:
        corpus = {"root": arguments.data_root, "clean": clean, "fingerprint": dataset.fingerprint}
        write(arguments.out, {"corpus": corpus, "leak_free": left.as_json() if left else None, **comparison.as_json()})
        terminal.say(f"All figures are in {arguments.out}.")


def make_systems(
    arguments: argparse.Namespace, texts: "Sequence[str]", text_ids: "Ids", terminal: "Terminal"
) -> "list[System]":
    """What is compared: the models, and the baselines that were asked for."""
    from biencoder.evaluation.systems import lexical_systems, model_system, zero_shot_systems
    from biencoder.retrieval.embedders import pretrained_model

    models = load(arguments, terminal)
    systems = [model_system(model, texts, text_ids) for model in models]
    if arguments.baselines or arguments.zero_shot:
        load_base = partial(pretrained_model, **embedding(arguments, terminal))
        systems += zero_shot_systems(arguments.zero_shot, models, texts, text_ids, load=load_base)
    if arguments.baselines:
        systems += lexical_systems(texts)
    return systems


def read_corpus(arguments: argparse.Namespace, *, clean: bool) -> "Dataset":
    """The corpus of the command line, which need not have training pairs."""
    from biencoder.data import load_dataset

    return load_dataset(arguments.data_root, clean=clean, needs_training=False, **as_read(arguments))


def load(arguments: argparse.Namespace, terminal: "Terminal") -> "list[NamedModel]":
    """The models of the command line."""
    from biencoder.retrieval.embedders import load_models

    settings = embedding(arguments, terminal)
    return load_models(arguments.model, trust_remote_code=arguments.trust_remote_code, dim=arguments.dim, **settings)


def embedding(arguments: argparse.Namespace, terminal: "Terminal") -> dict[str, Any]:
    """How models embed, and where they say it: keywords of `load_models` and `pretrained_model`."""
    return {"precision": arguments.precision, "cached": arguments.cache, "tell": terminal.say, "work": terminal.work}


def announce(systems: "Sequence[System]", terminal: "Terminal") -> "Iterator[System]":
    """The systems, each named on the terminal before its turn."""
    for system in systems:
        terminal.say(f"{system.name}: {system.about}")
        yield system


def write(file: Path, results: dict[str, Any]) -> None:
    try:
        file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {file} cannot be written: {error.strerror}") from None


def command() -> None:
    run(main)


if __name__ == "__main__":
    command()
