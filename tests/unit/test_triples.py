"""Triples in the form of MS MARCO, by text and by id."""

import gzip
from pathlib import Path

import pytest

from biencoder.data import Dataset, load_dataset, load_texts
from biencoder.errors import DataError

BY_TEXT = [
    ("Ban cars.", "Buses are late.", "Cats sleep."),
    ("Ban cars.", "Shops need cars.", "Rain is wet."),
    ("Ban cars.", "Buses are late.", 'A "quoted" text.'),
    ("Tax sugar.", "It hits the poor.", "Cats sleep."),
    ("Tax sugar.", "It hits the poor.", "It hits the poor."),
]
QUERIES = {"10": "Ban cars.", "20": "Tax sugar.", "30": "Nobody answers."}
PASSAGES = {
    "1": "Buses are late.",
    "2": "Shops need cars.",
    "3": "It hits the poor.",
    "4": "Cats sleep.",
    "5": "Rain is wet.",
    "6": 'A "quoted" text.',
    "7": " ",
    "8": "This answers nothing.",
}


def lines(rows: object) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)  # type: ignore[attr-defined]


def write(root: Path, *, triples: str = "", name: str = "qidpidtriples.train.full.tsv", **files: str) -> Path:
    root.mkdir(exist_ok=True)
    id_of = {text: identity for ids in (QUERIES, PASSAGES) for identity, text in ids.items()}
    given = {"collection": lines(PASSAGES.items()), "queries": lines(QUERIES.items())} | files
    for file, text in given.items():
        if text:
            (root / f"{file}.tsv").write_text(text, encoding="utf-8")
    (root / name).write_text(triples or lines([[id_of[text] for text in row] for row in BY_TEXT]), encoding="utf-8")
    return root


def load(root: Path, *, given: bool = True) -> Dataset:
    return load_dataset(str(root), clean=True, given=given)


def pairs(dataset: Dataset) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(pair.point.text, pair.counter.text, pair.negatives) for pair in dataset.splits["training"].pairs]


EXPECTED = [
    ("Ban cars.", "Buses are late.", ("Cats sleep.", 'A "quoted" text.')),
    ("Ban cars.", "Shops need cars.", ("Rain is wet.",)),
    ("Tax sugar.", "It hits the poor.", ("Cats sleep.",)),
]


@pytest.mark.parametrize("name", ["triples.train.small.tsv", "triples.tsv", "triples.tsv.gz"])
def test_lines_of_the_same_pair_are_one_pair_with_several_negatives(tmp_path: Path, name: str) -> None:
    text = "query\tpositive\tnegative\r\n" + lines(BY_TEXT)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    for root in (tmp_path, tmp_path / name):
        dataset = load(root)
        assert pairs(dataset) == EXPECTED
        assert dataset.splits["training"].judgements is None
        assert dataset.findings.counts["given negative that is its point or a right answer to it (dropped)"] == 1
        (reading,) = dataset.findings.readings
        assert (reading.rows, reading.columns) == (5, {"point": "1", "counter": "2", "negatives": "3"})
    assert pairs(load(tmp_path, given=False)) == [(point, counter, ()) for point, counter, _ in EXPECTED]


def test_triples_of_ids_are_queries_over_their_collection(tmp_path: Path) -> None:
    root = write(tmp_path / "a")
    dataset = load(root)
    assert pairs(dataset) == EXPECTED
    split = dataset.splits["training"]
    assert split.judgements
    assert split.judgements.query_P.tolist() == [0, 0, 1]
    assert [dataset.texts[i] for i in split.candidate_text_C] == [text for text in PASSAGES.values() if text.strip()]
    assert split.pairs[1].point.source.endswith("full.tsv:2")
    counts = dataset.findings.counts
    assert counts["passage that answers no query (a candidate only)"] == 4
    assert counts["query without an answer (left out)"] == 1
    assert counts["empty passage (dropped)"] == 1
    assert counts["pair with given negatives"] == 3
    assert len(load_texts(str(root), clean=True)[0]) == 7
    left_out = load(root, given=False)
    assert left_out.findings.counts["given negative (left out)"] == 5
    assert left_out.fingerprint != dataset.fingerprint


def test_splits_stand_in_the_names_of_files(tmp_path: Path) -> None:
    root = write(tmp_path / "a", queries="")
    write(root, name="qidpidtriples.dev.tsv", triples="30\t8\t4\n", queries="")
    for name, some in (("train", ("10", "20")), ("dev", ("30",))):
        (root / f"queries.{name}.tsv").write_text(lines((query, QUERIES[query]) for query in some))
    dataset = load(root)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"training": 3, "validation": 1}
    write(root, name="triples.val.tsv", triples="30\t8\t4\n", queries="")
    with pytest.raises(
        DataError, match=r"holds qidpidtriples\.dev\.tsv and triples\.val\.tsv, both of the validation split"
    ):
        load(root)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"triples": "10\t1\t4\n99\t1\t4\n"}, "full.tsv:2: the query '99' is not in queries.tsv"),
        ({"triples": "10\t99\t4\n"}, "full.tsv:1: the passage '99' is not in collection.tsv"),
        ({"triples": "10\t1\t99\n"}, "full.tsv:1: the passage '99' is not in collection.tsv"),
        (
            {"triples": "10\t1\n"},
            "full.tsv:1 has 2 fields, expected a query, a right and a wrong answer, separated by tabs",
        ),
        ({"queries": "10\tone\n10\ttwo\n"}, "queries.tsv:2: the id '10' stands in "),
        ({"queries": "10\t\n"}, "queries.tsv:1: the query is empty; write its text or remove it and its triples"),
        ({"queries": ""}, "holds collection.tsv, but no queries.tsv with the queries of the triples"),
        ({"collection": "1\tone\n2 two\n"}, "collection.tsv:2 is no id and text, separated by a tab"),
        ({"collection": ""}, "full.tsv:1 holds ids, but collection.tsv is not beside it; put it there, and queries.tsv"),
        ({"collection": "", "triples": "a\tb\tc\n\tb\tc\n"}, "full.tsv:2: the query is empty; write its text or remove"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_sentence_with_file_and_line(tmp_path: Path, files: dict[str, str], sentence: str) -> None:
    root = write(tmp_path / "a", **files)
    with pytest.raises(DataError) as error:
        load(root)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(
        DataError, match=r"data\.columns is set, but data\.root .* holds triples and no table; leave it out"
    ):
        load_dataset(str(root), clean=True, columns="point=a")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    root = write(tmp_path / "a")
    (root / "collection.tsv").write_bytes(b"1\t\xff\n")
    with pytest.raises(DataError, match=r"collection\.tsv:1 is not UTF-8 text \(byte 2 of the line is 0xff\)"):
        load(root)
    (root / "collection.tsv").unlink()
    (root / "collection.tsv.gz").write_bytes(gzip.compress(b"1\tone\n" * 9)[:-12])
    with pytest.raises(DataError, match=r"collection\.tsv\.gz cannot be read: "):
        load(root)
