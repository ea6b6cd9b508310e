"""The embedded corpora keep their promises.

The debates: themes, lengths, splits by debate, no text twice.
The handbook: ids, judgements, splits, lengths, and the counts that its README states.
"""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

import pytest

from biencoder.config.load import load_config
from biencoder.config.paths import PROJECT_ROOT
from biencoder.config.schema import SPLITS
from biencoder.data import load_dataset

ROOT = PROJECT_ROOT / "examples" / "debates"
HANDBOOK = PROJECT_ROOT / "examples" / "handbook"
QRELS = ("train", "dev", "test")


def test_the_embedded_corpus() -> None:
    dataset = load_dataset(str(ROOT), clean=True)
    assert not dataset.findings.counts
    pairs = [(split, pair) for split in SPLITS for pair in dataset.splits[split].pairs]
    debates = Counter((split, pair.point.domain, pair.point.topic) for split, pair in pairs)
    assert len(debates) >= 24
    assert len({theme for _, theme, _ in debates}) >= 6
    assert set(debates.values()) == {6}
    assert len({topic for _, _, topic in debates}) == len(debates)
    splits_of_theme: dict[str, Counter[str]] = defaultdict(Counter)
    for split, theme, _ in debates:
        splits_of_theme[theme][split] += 1
    assert all(split_counts == {"training": 4, "validation": 1, "test": 1} for split_counts in splits_of_theme.values())
    for _, pair in pairs:
        for record in (pair.point, pair.counter):
            assert 40 <= len(record.text.split()) <= 90, record.source
            assert record.text.isascii(), record.source


def test_cleaning_changes_none_of_it() -> None:
    clean, raw = (load_dataset(str(ROOT), clean=flag) for flag in (True, False))
    assert clean.fingerprint == raw.fingerprint


def test_it_is_the_default() -> None:
    assert load_config().data.root == load_config(file=Path("configs/quickstart.toml")).data.root == "examples/debates"


@pytest.mark.parametrize("file", sorted(Path("configs").glob("*.toml")), ids=lambda file: file.stem)
def test_the_configurations_hold_together(file: Path) -> None:
    load_config(file=file).check(world_size=1)


def _handbook_lines(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (HANDBOOK / name).read_bytes().decode("utf-8").splitlines()]


def _judgements(split: str) -> list[tuple[str, str, int]]:
    header, *rows = (HANDBOOK / "qrels" / f"{split}.tsv").read_bytes().decode("utf-8").splitlines()
    assert header == "query-id\tcorpus-id\tscore"
    return [(query, passage, int(score)) for query, passage, score in (row.split("\t") for row in rows)]


def _section(passage: str) -> str:
    return passage.rsplit("-", 1)[0]


def test_the_passages_and_questions_of_the_handbook() -> None:
    passages, questions = _handbook_lines("corpus.jsonl"), _handbook_lines("queries.jsonl")
    assert {tuple(passage) for passage in passages} == {("_id", "title", "text")}
    assert {tuple(question) for question in questions} == {("_id", "text")}
    for records, key in (
        (passages, "_id"),
        (passages, "title"),
        (passages, "text"),
        (questions, "_id"),
        (questions, "text"),
    ):
        values = [record[key] for record in records]
        assert all(value and value == value.strip() for value in values)
        assert len({value.casefold() for value in values}) == len(values), key
    for passage in passages:
        assert 30 <= len(passage["text"].split()) <= 90, passage["_id"]
    for question in questions:
        assert 6 <= len(question["text"].split()) <= 20, question["_id"]
    assert sum(path.stat().st_size for path in HANDBOOK.rglob("*") if path.is_file()) < 200_000


def test_the_judgements_of_the_handbook() -> None:
    passages = {passage["_id"] for passage in _handbook_lines("corpus.jsonl")}
    questions = {question["_id"] for question in _handbook_lines("queries.jsonl")}
    rows = {split: _judgements(split) for split in QRELS}
    judgements = [row for split in QRELS for row in rows[split]]
    assert len({(query, passage) for query, passage, _ in judgements}) == len(judgements)
    assert {passage for _, passage, _ in judgements} <= passages
    assert {query for query, _, _ in judgements} == questions
    # Disjoint: every question has one split, as the questions of the splits add up to all.
    assert sum(len({query for query, _, _ in rows[split]}) for split in QRELS) == len(questions)
    scores: dict[str, list[int]] = defaultdict(list)
    for query, _, score in judgements:
        scores[query].append(score)
    # A part of an answer scores 1 beside a full answer of 2; a 2 alone would say nothing.
    assert all(set(of_query) in ({1}, {1, 2}) for of_query in scores.values())
    assert {len(of_query) for of_query in scores.values()} == {1, 2, 3}
    assert len(passages - {passage for _, passage, _ in judgements}) >= len(passages) / 3
    sections = {split: {_section(passage) for _, passage, _ in rows[split]} for split in QRELS}
    assert sections["train"] == sections["dev"] == sections["test"] == {_section(passage) for passage in passages}


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def test_no_title_repeats_its_question() -> None:
    titles = {passage["_id"]: passage["title"] for passage in _handbook_lines("corpus.jsonl")}
    words = {question["_id"]: _words(question["text"]) for question in _handbook_lines("queries.jsonl")}
    for query, passage, _ in (row for split in QRELS for row in _judgements(split)):
        assert not _words(titles[passage]) <= words[query], (query, passage)


def test_the_counts_that_the_readme_of_the_handbook_states() -> None:
    readme = (HANDBOOK / "README.md").read_text(encoding="utf-8")
    rows = [_judgements(split) for split in QRELS]
    rows.append([row for of_split in rows for row in of_split])
    passages_of = [Counter(query for query, _, _ in of_split) for of_split in rows]
    table = {
        "questions": [len(counts) for counts in passages_of],
        "judgements": [len(of_split) for of_split in rows],
        "questions with several right passages": [sum(n > 1 for n in counts.values()) for counts in passages_of],
        "passages that answer a question": [len({passage for _, passage, _ in of_split}) for of_split in rows],
    }
    for name, counts in table.items():
        assert f"| {name} | {' | '.join(map(str, counts))} |" in readme
    passages = _handbook_lines("corpus.jsonl")
    sections = {_section(passage["_id"]) for passage in passages}
    free = len(passages) - table["passages that answer a question"][-1]
    share = round(100 * free / len(passages))
    assert f"There are {len(passages)} passages in {len(sections)} sections; {free} of them ({share} %)" in readme
    assert f"A passage has {_lengths(passages)};" in readme
    assert f"a question has {_lengths(_handbook_lines('queries.jsonl'))}." in readme


def _lengths(records: list[dict[str, str]]) -> str:
    lengths = [len(record["text"].split()) for record in records]
    return f"{min(lengths)} to {max(lengths)} words, {median(lengths):.0f} in the median"


def test_the_passages_that_splits_of_the_handbook_share() -> None:
    readme = (HANDBOOK / "README.md").read_text(encoding="utf-8")
    train, dev, test = ({passage for _, passage, _ in _judgements(split)} for split in QRELS)
    *in_dev, in_test = re.findall(r"`(\w+-\d\d)`", readme.split("Four passages")[1].split("##")[0])
    assert set(in_dev) == train & dev
    assert {in_test} == train & test
