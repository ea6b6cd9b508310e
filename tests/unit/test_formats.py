"""The embedded corpora in the forms of other programs: the same pairs, and the same negatives of the first epoch.

Triples cannot carry line breaks, which the debates have, so only the handbook is written as such.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from biencoder.config.schema import MiningConfig
from biencoder.data import Dataset, Forbidden, load_dataset
from biencoder.distributed.world import World
from biencoder.mining import Miner
from biencoder.retrieval.trained_model import TrainedModel
from tests.models import export

NAMES = {"training": "train", "validation": "dev", "test": "test"}
Texts = dict[str, list[tuple[str, str]]]


@pytest.fixture(scope="module")
def model(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    folder = tmp_path_factory.mktemp("model")
    export(tiny_bert, folder)
    return TrainedModel.load(str(folder))


def texts_of(dataset: Dataset) -> Texts:
    return {name: [(pair.point.text, pair.counter.text) for pair in split.pairs] for name, split in dataset.splits.items()}


def negatives(dataset: Dataset, model: TrainedModel, **mining: Any) -> list[list[str]]:
    """Those of the first epoch: half of them near, half random."""
    split, config = dataset.splits["training"], MiningConfig(negatives=3, random_rate=0.5, **mining)
    miner = Miner(split, Forbidden.of(split, len(dataset.texts)), World.alone(), config, seed=3, num_epochs=1)
    mined = miner.mine(0, model.embed_texts(dataset.texts, split.text_ids))
    assert mined.search.nearest_share or mining
    return [[dataset.texts[text] for text in row] for row in mined.negative_text_PK]


def jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def wrong(pairs: list[tuple[str, str]]) -> list[list[str]]:
    """Two given negatives of each pair: the counters of the next two."""
    return [[pairs[(number + step) % len(pairs)][1] for step in (1, 2)] for number in range(len(pairs))]


def triplets(root: Path, texts: Texts) -> None:
    for split, pairs in texts.items():
        rows = zip(pairs, wrong(pairs), strict=True)
        names = ("anchor", "positive", "negative_1", "negative_2")
        jsonl(root / f"{NAMES[split]}.jsonl", [dict(zip(names, (*pair, *others), strict=True)) for pair, others in rows])


def lists(root: Path, texts: Texts) -> None:
    for split, pairs in texts.items():
        rows = zip(pairs, wrong(pairs), strict=True)
        jsonl(root / f"{NAMES[split]}.jsonl", [{"query": p, "pos": [c], "neg": others} for (p, c), others in rows])


def shards(root: Path, texts: Texts) -> None:
    root.mkdir()
    for split, pairs in texts.items():
        rows = [{"point": p, "counter": c, "negatives": n} for (p, c), n in zip(pairs, wrong(pairs), strict=True)]
        for number in range(3):
            part = rows[number * len(rows) // 3 : (number + 1) * len(rows) // 3]
            table = pyarrow.Table.from_pylist(part)
            parquet.write_table(table, root / f"{NAMES[split]}-{number:05d}-of-00003.parquet")


@pytest.mark.parametrize("write", [triplets, lists, shards], ids=lambda write: write.__name__)
def test_debates_in_other_forms_have_the_same_pairs_and_negatives(
    tmp_path: Path, model: TrainedModel, write: Callable[[Path, Texts], None]
) -> None:
    folder = load_dataset("examples/debates", clean=True)
    texts = texts_of(folder)
    write(tmp_path / "corpus", texts)
    left_out, used = (load_dataset(str(tmp_path / "corpus"), clean=True, given=given) for given in (False, True))
    assert texts_of(left_out) == texts_of(used) == texts
    assert left_out.texts == used.texts == folder.texts  # the given negatives are counters of other pairs
    expected = negatives(folder, model)
    assert negatives(left_out, model) == expected
    found = negatives(used, model)
    assert [row[:2] for row in found] == wrong(texts["training"])
    assert all(len(set(row)) == 3 for row in found)
    assert negatives(used, model, given="only") == [[*row, row[0]] for row in wrong(texts["training"])]


def test_debates_as_queries_over_a_corpus_have_the_same_pairs_and_negatives(tmp_path: Path, model: TrainedModel) -> None:
    """The folder's candidates are the points and counters of one split, so here they are the passages of that split."""
    folder = load_dataset("examples/debates", clean=True)
    pairs = texts_of(folder)["training"]
    passages = [f"p{number}" for number in range(2 * len(pairs))]
    texts = [point for point, _ in pairs] + [counter for _, counter in pairs]
    queries = [f"q{number}" for number in range(len(pairs))]
    root = tmp_path / "beir"
    jsonl(root / "corpus.jsonl", [{"_id": i, "title": "", "text": text} for i, text in zip(passages, texts, strict=True)])
    jsonl(root / "queries.jsonl", [{"_id": i, "text": text} for i, (text, _) in zip(queries, pairs, strict=True)])
    (root / "qrels").mkdir()
    rows = "".join(f"{query}\t{passage}\t1\n" for query, passage in zip(queries, passages[len(pairs) :], strict=True))
    (root / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows, encoding="utf-8")
    beir = load_dataset(str(root), clean=True)
    assert texts_of(beir) == {"training": pairs}
    assert negatives(beir, model) == negatives(folder, model)


def test_a_handbook_as_triples_of_ids_has_the_same_pairs_and_negatives(tmp_path: Path, model: TrainedModel) -> None:
    folder = load_dataset("examples/handbook", clean=True)
    split = folder.splits["training"]
    passages = {passage: str(place) for place, passage in enumerate(split.corpus_text_C)}
    (tmp_path / "collection.tsv").write_text("".join(f"{i}\t{folder.texts[p]}\n" for p, i in passages.items()))
    queries = dict.fromkeys(split.point_text_P)
    (tmp_path / "queries.tsv").write_text("".join(f"{q}\t{folder.texts[q]}\n" for q in queries))
    other = dict(zip(passages, np.roll(list(passages), 1), strict=True))
    lines = [
        f"{query}\t{passages[answer]}\t{passages[other[answer]]}\n"
        for query, answer in zip(split.point_text_P, split.counter_text_P, strict=True)
    ]
    (tmp_path / "qidpidtriples.train.tsv").write_text("".join(lines))
    left_out, used = (load_dataset(str(tmp_path), clean=True, given=given) for given in (False, True))
    assert texts_of(left_out)["training"] == texts_of(used)["training"] == texts_of(folder)["training"]
    assert negatives(left_out, model) == negatives(folder, model)
    given = used.splits["training"].given
    assert given
    first = negatives(used, model)
    assert [[used.texts[i]] for i in given.text_X] == [first[pair][:1] for pair in given.pair_X]
    assert len(given.text_X) == len(split)
