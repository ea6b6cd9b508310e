"""Tables: a row is a pair, in the order of the file, whatever its id. What is no table, or no text, is named."""

import csv
import hashlib
import json
import os
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from biencoder.data import Dataset, load_dataset, load_texts
from biencoder.errors import DataError
from tests.conftest import WriteCorpus, numbered_corpus

KINDS = ("jsonl", "csv", "parquet")


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    match file.suffix:
        case ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case ".csv":
            with file.open("w", newline="", encoding="utf-8") as out:
                writer = csv.DictWriter(out, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def load(file: Path, *, clean: bool = True) -> Dataset:
    return load_dataset(str(file), clean=clean, needs_training=False)


def pairs(dataset: Dataset, split: str = "training") -> list[tuple[str, str]]:
    return [(pair.point.text, pair.counter.text) for pair in dataset.splits[split].pairs]


def refusal(path: Path) -> str:
    sentences = []
    for read in (lambda: load(path), lambda: load_texts(str(path), clean=True)):
        with pytest.raises(DataError) as error:
            read()
        sentences.append(str(error.value).replace(f"{path.parent}{os.sep}", ""))
    assert "\n" not in sentences[0]
    assert sentences[0] == sentences[1]
    return sentences[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_a_pair_whatever_its_id(tmp_path: Path, kind: str) -> None:
    ids = [7, 7, 7, 10, 9, 2**60 + 1, 2**60 + 2, None, 7, 7]
    rows = [{"point": f"point {9 - i}", "counter": f"counter {i}", "topic": "t", "id": ids[i]} for i in range(10)]
    dataset = load(write(tmp_path / f"train.{kind}", rows))
    assert pairs(dataset) == [(f"point {9 - i}", f"counter {i}") for i in range(10)]
    names = [pair.point.utterance_id for pair in dataset.splits["training"].pairs]
    assert names == [f"{i + 1:09d}" if ids[i] is None else str(ids[i]) for i in range(10)]
    again = load(write(tmp_path / "again.jsonl", [row | {"id": str(row["id"] or "")} for row in rows]))
    assert dataset.fingerprint == again.fingerprint
    assert dataset.fingerprint != load(write(tmp_path / "other.jsonl", rows[::-1])).fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_one_of_its_texts_takes_none_from_another(tmp_path: Path, kind: str) -> None:
    rows = [
        {"point": "a", "counter": "", "id": 1},
        {"point": "", "counter": "b", "id": 1},
        {"point": "c", "counter": "d", "id": 1},
    ]
    dataset = load(write(tmp_path / f"train.{kind}", rows))
    assert pairs(dataset) == [("c", "d")]
    assert dataset.findings.counts["point without a counter (dropped)"] == 1
    assert dataset.findings.counts["counter without a point (dropped)"] == 1


def test_names_keep_the_text_that_they_have_in_the_file(tmp_path: Path) -> None:
    names = ["1e3", "1.10", "007", "9" * 5000, "true", '"x"', "null", "NaN"]
    lines = [f'{{"point": "p{i}", "counter": "c{i}", "id": {name}}}' for i, name in enumerate(names) if name != "007"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = [pair.point.utterance_id for pair in load(tmp_path / "a.jsonl").splits["training"].pairs]
    assert found == ["1e3", "1.10", "9" * 5000, "true", "x", "000000006", "000000007"]
    rows = [{"point": "p", "counter": f"c{i}", "id": Decimal(f"1.{i}0")} for i in range(2)]
    table = load(write(tmp_path / "a.parquet", rows))
    assert [pair.point.utterance_id for pair in table.splits["training"].pairs] == ["1.00", "1.10"]


def test_groups_are_numbered_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = [("b", "x"), ("a", "y"), ("a", ""), ("b", ""), ("a", "y")]
    rows = [{"point": f"p{i}", "counter": f"c{i}", "domain": d, "topic": t} for i, (d, t) in enumerate(names)]
    split = load(write(tmp_path / "a.jsonl", rows)).splits["training"]
    groups = [split.groups(kind) for kind in ("debates", "themes")]
    assert [group.tolist() for group in groups if group is not None] == [[3, 1, 0, 2, 1], [1, 0, 0, 1, 0]]
    assert split.groups("random") is None


def test_the_fingerprint_tells_where_a_text_ends(tmp_path: Path) -> None:
    one, other = (
        load(write(tmp_path / "a.jsonl", [{"point": point, "counter": counter, "id": "1", "stance": ""}]))
        for point, counter in (("a\0b", "c"), ("a", "b\0c"))
    )
    assert one.fingerprint != other.fingerprint


def test_the_arguana_layout_is_what_it_was() -> None:
    dataset = load_dataset("examples/debates", clean=True)
    assert dataset.fingerprint == "df3b24444b0dac15f6ad64a155ab966f09c7af8dea79462f062d76f77e346592"
    order = hashlib.sha256("\0".join(dataset.texts).encode()).hexdigest()
    assert order == "17709767f0e5ad3be59a8f247be5ee3d747f7fbb24923aa416fb3113cf13a468"


CELLS = [(["a"], "a list"), ({"a": "b"}, "an object"), (5, "a number"), (2.5, "a number"), (True, "true or false")]


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [*(("jsonl", *cell) for cell in CELLS), *(("parquet", *cell) for cell in [*CELLS, (b"a", "bytes")])],
    ids=str,
)
def test_a_cell_that_is_no_text_is_refused(tmp_path: Path, kind: str, value: Any, words: str) -> None:
    fine: dict[str, Any] = {"point": "a", "counter": "b"}
    for key in ("point", "counter", "text"):
        rows = [(fine if key != "text" else {}) | {key: cell} for cell in (None, value)]
        file = write(tmp_path / f"a.{kind}", rows)
        if key == "text":
            with pytest.raises(DataError) as error:
                load_texts(str(file), clean=True)
            assert str(error.value) == f"{file}:2: text is {words}, expected text"
        else:
            assert refusal(file) == f"a.{kind}:2: {key} is {words}, expected text"
    for key in ("id", "topic", "domain", "stance", "split"):
        file = write(tmp_path / f"a.{kind}", [fine | {key: value}])
        if isinstance(value, list | dict | bytes):
            assert refusal(file) == f"a.{kind}:1: {key} is {words}, expected text or a number"


def test_jsonl_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    separators = "\u2028 \u2029 \u0085 \x1c \x0b \x0c"
    row = json.dumps({"point": f"a{separators}b", "counter": "c"}, ensure_ascii=False).replace("\\u001c", "\x7f")
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + f'{row}\r\n\n{row[:-3]}d"}}'.encode())
    dataset = load(tmp_path / "a.jsonl", clean=False)
    assert len(dataset.splits["training"]) == 2
    assert [pair.point.source[-2:] for pair in dataset.splits["training"].pairs] == [":1", ":3"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_is_separated_as_its_header_is(tmp_path: Path, delimiter: str, mark: bytes, end: str) -> None:
    long = "x" * 200_000
    lines = [
        ["id", '"point"', " counter"],
        ["", '"a, b; c\td"', "e"],
        [],
        ["NA", '"two\nlines, ""quoted"""', long],
        ["3", "f", "g"],
    ]
    (tmp_path / "a.csv").write_bytes(mark + end.join(delimiter.join(line) for line in lines).encode())
    split = load(tmp_path / "a.csv").splits["training"]
    assert [(pair.point.text, pair.counter.text) for pair in split.pairs] == [
        ("a, b; c d", "e"),
        ('two\nlines, "quoted"', long),
        ("f", "g"),
    ]
    assert [pair.point.source.rsplit(":")[-1] for pair in split.pairs] == ["2", "4", "6"]
    assert [pair.point.utterance_id for pair in split.pairs] == ["000000001", "NA", "3"]
    (tmp_path / "a.csv").write_bytes(mark + f"text{delimiter}id{end}a{delimiter}1{end}".encode())
    assert load_texts(str(tmp_path / "a.csv"), clean=True)[0] == ("a",)


SURROGATE = '{"point": "a", "counter": "b"}\n{"point": "a\\ud800", "counter": "b"}'


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "a.csv",
            b"point,counter\n\nNight, buses,Empty\n",
            "a.csv:3 has another number of fields (3) than the header has columns (2: point, counter)",
        ),
        ("a.csv", b"point,counter\na,b\nc\n", "a.csv:3 has another number of fields (1) than the header"),
        (
            "a.csv",
            b'point,counter\n"a\nb",c\n"d"e,f\n',
            "a.csv:4 is not valid CSV: ',' expected after '\"'; the row starts",
        ),
        ("a.csv", b'point,counter\na,b\n"a,b\nc,d\n', "a.csv:3 is not valid CSV: unexpected end of data; the row starts"),
        ("a.csv", b"point,counter,point\na,b,c\n", "a.csv:1 has the column point 2 times"),
        ("a.csv", b"", "a.csv lacks the column counter and point; it is empty"),
        ("a.csv", b"point\tcounter;x\na\tb;c\n", "a.csv lacks the column counter; it has point, counter;x"),
        ("a.csv", b"point,counter\na,b\ncaf\xe9,b\n", "a.csv:3 is not UTF-8 text (byte 3 of the line is 0xe9)"),
        ("a.csv", "point,counter\na,b\n".encode("utf-16"), "a.csv:1 is not UTF-8 text (byte 0 of the line is 0xff)"),
        ("a.jsonl", b'{"point": "a"}\n{"point": "caf\xe9"}', "a.jsonl:2 is not UTF-8 text (byte 14 of the line is 0xe9)"),
        ("a.jsonl", SURROGATE.encode(), "a.jsonl:2: point holds half of a surrogate pair"),
        ("a.jsonl", b'{"point": "a", "counter": "b", "topic": "\\udc00"}', "a.jsonl:1: topic holds half of a surrogate"),
        ("a.jsonl", b'{"point": "a", "counter": "b"}\n["a", "b"]', "a.jsonl:2 is not an object with point and counter"),
        ("a.jsonl", b'{"point": "a", "counter": "b", "point": "c"}', "a.jsonl:1 is not valid JSON: it has the key 'point'"),
        ("a.jsonl", b"\n" + b"[" * 200_000, "a.jsonl:2 is not valid JSON: maximum recursion depth exceeded"),
        ("a.jsonl", b'{"point": "a", "counter": "b", "split": null}', "a.jsonl:1: split is '', expected one of dev, test"),
        ("a.parquet", b"PAR1", "a.parquet is not a valid Parquet file: Parquet file size is 4 bytes"),
        ("a.parquet", b"version https://git-lfs", "a.parquet is not a valid Parquet file: Parquet magic bytes not found"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_broken_table_is_named_by_file_and_line(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith(sentence)


def test_parquet_text_that_is_no_utf8_is_named_by_its_row(tmp_path: Path) -> None:
    values = pyarrow.array([b"a", b"caf\xe9"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"point": ["a", "b"], "counter": values}), tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet") == "a.parquet:2: counter is not UTF-8 text (byte 3)"


def test_parquet_ids_and_texts_of_other_encodings(tmp_path: Path) -> None:
    point = pyarrow.array(["a", "b", "a"]).dictionary_encode()
    counter = pyarrow.array(["x", "y", "z"], pyarrow.large_string())
    table = pyarrow.table({"point": point, "counter": counter, "id": pyarrow.array([2**63 - 1, None, 1], pyarrow.int64())})
    parquet.write_table(table, tmp_path / "a.parquet")
    dataset = load(tmp_path / "a.parquet")
    assert pairs(dataset) == [("a", "x"), ("b", "y"), ("a", "z")]
    assert [p.point.utterance_id for p in dataset.splits["training"].pairs] == [str(2**63 - 1), "000000002", "1"]


ROW = '{"point": "a", "counter": "b"}\n'


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["train.jsonl", "test/"], "holds both folders (test/) and tables (train.jsonl); keep one layout there"),
        (["train.jsonl", "dev.jsonl", "val.jsonl"], "holds dev.jsonl, val.jsonl, all of which are the validation split"),
        (["train.jsonl", "train.csv"], "holds train.csv, train.jsonl, all of which are the training split"),
        (["training/", "train/"], "holds train/, training/, all of which are the training split; keep one of them"),
        (["training/", "dev/", "validation/"], "holds dev/, validation/, all of which are the validation split"),
        (["train.jsonl", "TEST.JSONL", "test.jsonl"], "holds TEST.JSONL, test.jsonl, all of which are the test split"),
    ],
    ids=str,
)
def test_nothing_hides_a_split(tmp_path: Path, files: list[str], sentence: str) -> None:
    root = tmp_path / "corpus"
    for name in files:
        (root / name).mkdir(parents=True) if name.endswith("/") else (root / name).parent.mkdir(exist_ok=True)
        if not name.endswith("/"):
            (root / name).write_text(ROW)
    assert sentence in refusal(root)


def test_a_split_in_a_format_that_is_not_read_is_counted(tmp_path: Path) -> None:
    (tmp_path / "train.JSONL").write_text(ROW)
    for name in ("test.tsv", "dev.jsonl.gz", "README.md"):
        (tmp_path / name).write_text("")
    dataset = load(tmp_path)
    assert dataset.findings.counts["file of a split that is no table (ignored)"] == 2
    assert list(dataset.splits) == ["training"]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("x" * 300, "cannot be read: File name too long"),
        ("zero\0byte", "does not exist"),
        ("~nobody-has-this-name/corpus", "does not exist"),
        ("pipe", "is a file of unknown type"),
        ("pipe.csv", "is not a regular file"),
        ("in/train.jsonl", "is not a regular file"),
        ("in", "train.jsonl is not a regular file"),
        ("file.csv/more", "cannot be read: Not a directory"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("dangling", "x.csv cannot be read: No such file or directory"),
    ],
    ids=lambda text: text[:20],
)
def test_what_cannot_be_read_gets_one_sentence(
    tmp_path: Path, path: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in", "dangling"):
        (tmp_path / name).mkdir()
    for name in ("pipe", "pipe.csv", "in/train.jsonl"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "file.csv").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling/train.csv").symlink_to("x.csv")
    if path == "dangling":
        sentence = "train.csv cannot be read: No such file or directory"
    with pytest.raises(DataError) as error:
        load(Path(path))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_of_debates_that_cannot_be_listed_are_not_left_out(
    write_corpus: WriteCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, scandir = write_corpus(numbered_corpus(training=12)), os.scandir

    def closed(path: Any) -> Any:
        if str(path).endswith("debate-1"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert refusal(root).endswith("training/theme/debate-1 cannot be read: Permission denied")


def test_folders_of_debates_may_be_links_also_in_circles(write_corpus: WriteCorpus, tmp_path: Path) -> None:
    root = write_corpus(numbered_corpus(training=12))
    (root / "training/theme").rename(tmp_path / "elsewhere")
    (root / "training/theme").symlink_to(tmp_path / "elsewhere")
    (root / "training/theme/debate-0/pro/round").symlink_to(root / "training")
    (root / "training/theme/debate-0/pro/pro00a-point.txt").write_bytes(b"\xef\xbb\xbfwith a mark")
    dataset = load(root)
    assert len(dataset.splits["training"]) == 12
    assert dataset.texts[0] == "with a mark"
    assert dataset.findings.counts["folder below those of arguments (ignored)"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_names_and_files_of_debates_that_are_no_text(write_corpus: WriteCorpus) -> None:
    root = write_corpus(numbered_corpus(training=2))
    folder = os.fsencode(root / "training") + b"/th\xe9me/debate/pro"
    os.makedirs(folder)
    with open(folder + b"/pro01a-point.txt", "w") as file:
        file.write("text")
    assert "th\\udce9me/debate/pro' is not UTF-8; rename the folder" in refusal(root)
    os.remove(folder + b"/pro01a-point.txt")
    os.mkfifo(root / "training/theme/debate-0/pro/pro07a-point.txt")
    assert "pro07a-point.txt is not a regular file" in refusal(root)
