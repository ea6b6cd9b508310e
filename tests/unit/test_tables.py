"""Tables: a row is a pair, in the order of the file, whatever its id. What is no table, or no text, is named."""

import csv
import gzip
import hashlib
import json
import os
import re
import shutil
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from rich.console import Console

from biencoder.data import Dataset, load_dataset, load_texts
from biencoder.errors import ConfigError, DataError
from biencoder.training.opening import findings_table
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


def load(file: Path, *, clean: bool = True, columns: str = "") -> Dataset:
    return load_dataset(str(file), clean=clean, columns=columns, needs_training=False)


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
        ("a.csv", b"", "a.csv lacks the columns point and counter; it is empty"),
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
    for name in ("test.txt", "dev.parquet.gz", "README.md"):
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


PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
SECTIONS = {section.splitlines()[0]: section for section in PAGE.split("\n## ")[1:] if "```bash" in section}


@pytest.mark.parametrize("title", SECTIONS)
def test_every_example_of_the_page_holds_the_same_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    options: list[str] = []
    for kind, name, content in re.findall(r"```(\w+) ?(\S*)\n(.*?)```", SECTIONS[title], re.DOTALL):
        if kind == "bash":
            options = content.split()[1:]
        elif kind == "python":
            if "import datasets" in content:
                pytest.importorskip("datasets")
            exec(content, {})
        else:
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(content)
    given = dict(zip(options[::2], options[1::2], strict=True))
    if title == "Texts alone":
        assert load_texts(given["--data.root"], clean=True)[0] == (
            "Buses are late.",
            "Shops need cars.",
            "It hits the poor.",
        )
    else:
        columns, corpus = given.get("--data.columns", ""), given.get("--data.corpus", "")
        candidates = given.get("--data.candidates", "auto")
        dataset = load_dataset(given["--data.root"], clean=True, columns=columns, corpus=corpus, candidates=candidates)
        assert pairs(dataset) == PAIRS
        over_a_corpus = title in ("Queries over a corpus: a BEIR folder", "Triples by id")
        assert len(dataset.findings.readings) == (3 if over_a_corpus else 1) + bool(corpus)


PAIRS = [("Ban cars.", "Buses are late."), ("Ban cars.", "Shops need cars."), ("Tax sugar.", "It hits the poor.")]


@pytest.mark.parametrize(
    ("point", "counter", "beside", "left_out"),
    [
        ("point", "counter", ("query", "positive", "label", "url"), ["query", "positive", "label", "url"]),
        ("anchor", "positive", ("negative", "negative_1", "negative_12"), []),
        ("query", "positive", ("negatives", "pos_scores"), ["pos_scores"]),
        ("query", "pos", ("neg", "prompt"), ["prompt"]),
        ("query", "answer", (), []),
        ("question", "answer", ("negative1",), ["negative1"]),
        ("question", "context", ("answers",), ["answers"]),
        ("sentence1", "sentence2", ("text",), ["text"]),
    ],
)
def test_names_in_use_are_understood_and_said(
    tmp_path: Path, point: str, counter: str, beside: tuple[str, ...], left_out: list[str]
) -> None:
    rows = [{point: p, counter: c, "id": "7"} | dict.fromkeys(beside, "x") for p, c in PAIRS]
    for kind in ("jsonl", "csv", "tsv", "parquet"):
        file = tmp_path / f"a.{kind}"
        if kind == "tsv":
            file.write_text("\n".join("\t".join(row.values()) for row in [dict(zip(rows[0], rows[0], strict=True)), *rows]))
        else:
            write(file, rows)
        dataset = load(file)
        assert pairs(dataset) == PAIRS
        (reading,) = dataset.findings.readings
        negatives = [name for name in beside if name not in left_out]
        said = {"negatives": ", ".join(negatives)} if negatives else {}
        assert reading.columns == {"point": point, "counter": counter, "id": "id"} | said
        assert (reading.source, reading.rows, sorted(reading.left_out)) == (str(file), 3, sorted(left_out))
        assert dataset.findings.counts.get("given negative (left out)", 0) == 3 * len(negatives)
        assert load_texts(str(file), clean=True)[0] == dataset.texts


def test_the_data_check_shows_how_a_table_was_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"query": "a", "pos": ["b", "c"], "url": "u", "split": "dev"}])
    console = Console(width=200)
    with console.capture() as capture:
        console.print(*findings_table(load(file).findings))
    said = " ".join(capture.get().split())
    assert f"1 {file} point = query, counter = pos, split url" in said
    shutil.copy(file, tmp_path / "train.jsonl")
    assert load(tmp_path).findings.readings[0].left_out == ("url", "split")  # the file's name decides


def test_lists_of_right_answers_are_pairs_of_one_point(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"query": "a", "pos": ["b", "c", None, ""]},
        {"query": "d", "pos": []},
        {"query": "e", "pos": None},
        {"query": "f", "pos": ["g"]},
    ]
    lists = [load(write(tmp_path / f"a.{kind}", rows)) for kind in ("jsonl", "parquet")]
    for dataset in lists:
        assert pairs(dataset) == [("a", "b"), ("a", "c"), ("f", "g")]
        assert [pair.point.utterance_id for pair in dataset.splits["training"].pairs] == ["000000001"] * 2 + ["000000004"]
        assert dataset.findings.counts["empty counter (dropped)"] == 4
        assert dataset.findings.counts["point without a counter (dropped)"] == 4
    assert pairs(load(write(tmp_path / "b.jsonl", [{"query": "a", "positives": "b"}]))) == [("a", "b")]
    mapped = write(tmp_path / "c.jsonl", [{"q": "a", "good": ["b", "c"]}])
    assert pairs(load(mapped, columns="point=q,counter=good")) == [("a", "b"), ("a", "c")]


def test_columns_of_any_name(tmp_path: Path) -> None:
    rows = [{"title": p, "body": c, "counter": "x", "part": "dev"} for p, c in PAIRS]
    for kind in KINDS:
        file = write(tmp_path / f"a.{kind}", rows)
        dataset = load(file, columns=" point = title, counter=body ,split=part")
        assert pairs(dataset, "validation") == PAIRS
        assert dataset.findings.readings[0].left_out == ("counter",)
        assert pairs(load(file, columns="point=title")) == [(p, "x") for p, _ in PAIRS]
        texts, findings = load_texts(str(file), clean=True, columns="text=body")
        assert texts == tuple(c for _, c in PAIRS)
        assert (findings.readings[0].columns, findings.readings[0].rows) == ({"text": "body"}, 3)


@pytest.mark.parametrize(
    ("columns", "given", "sentence"),
    [
        (
            "query anchor positive",
            "",
            "a.jsonl can be read as point=anchor,counter=positive or point=query,counter=positive;",
        ),
        (
            "question answer context",
            "",
            "can be read as point=question,counter=answer or point=question,counter=context; ch",
        ),
        ("query pos positives", "", "can be read as point=query,counter=positives or point=query,counter=pos; choose one"),
        (
            "title answer context",
            "point=title",
            "can be read as point=title,counter=answer or point=title,counter=context;",
        ),
        (
            "title body",
            "",
            "a.jsonl lacks the columns point and counter; it has title, body; say which columns hold the texts with",
        ),
        (
            "query body",
            "",
            "lacks the columns point and counter; it has query, body; say which columns hold the texts with data.c",
        ),
        (
            "title body",
            "point=title",
            "a.jsonl lacks the column counter; it has title, body; say which columns hold the texts",
        ),
        (
            "title body",
            "point=titel,counter=body",
            "the column of point is titel, but {} has no such column; it has title, body",
        ),
        (
            "title body",
            "topic=x",
            "data.columns says that the column of topic is x, but {} has no such column; it has title, b",
        ),
        (
            "sentence1 sentence2 label",
            "",
            "a.jsonl has the column label beside sentence1 and sentence2: perhaps not every row",
        ),
        ("anchor positive score", "", "drop that column or set data.columns to point=anchor,counter=positive"),
    ],
)
def test_columns_that_fit_nothing_or_too_much_are_refused(tmp_path: Path, columns: str, given: str, sentence: str) -> None:
    file = write(tmp_path / "a.jsonl", [dict.fromkeys(columns.split(), "x")])
    with pytest.raises(DataError) as error:
        load(file, columns=given)
    assert sentence.format(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_score_is_no_reason_to_refuse_columns_that_are_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"anchor": "a", "positive": "b", "score": 1}])
    assert pairs(load(file, columns="point=anchor,counter=positive")) == [("a", "b")]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ("title", "data.columns is 'title', expected role=column, separated by commas, such as point=title,counter=body;"),
        ("points=title", "the roles are point, counter, text, domain, topic, stance, id, split"),
        ("point=", "expected role=column"),
        ("point=a,", "expected role=column"),
        ("point=a,point=b", "which names point twice; name each role and column once"),
        ("point=a,counter=a", "which names a twice"),
    ],
)
def test_data_columns_is_checked(columns: str, sentence: str) -> None:
    for read in (load_dataset, load_texts):
        with pytest.raises(ConfigError) as error:
            read("examples/debates", clean=True, columns=columns)
        assert sentence in str(error.value)
        with pytest.raises(DataError, match="holds folders of debates and no table; leave it out"):
            read("examples/debates", clean=True, columns="point=title")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"query": ["a"], "pos": ["b"]}, "a.jsonl:1: query is a list, expected text"),
        ({"query": "a", "pos": ["b", 3]}, "a.jsonl:1: pos is a number, expected text"),
        ({"query": "a", "pos": [["b"]]}, "a.jsonl:1: pos is a list, expected text"),
        ({"query": "a", "pos": {"b": "c"}}, "a.jsonl:1: pos is an object, expected text"),
        ({"query": "a", "positive": ["b"]}, "a.jsonl:1: positive is a list, expected text"),
        ({"query": "a", "pos": ["b"], "neg": [{}]}, "a.jsonl:1: neg is an object, expected text"),
        ({"query": "a", "pos": ["b"], "negative_1": ["c"]}, "a.jsonl:1: negative_1 is a list, expected text"),
        ({"query": "a", "pos": "['b', 'c']"}, "a.jsonl:1: pos is a list that was written as text; save it as .jsonl or"),
        ({"query": "a", "pos": ["\ud800"]}, "a.jsonl:1: pos holds half of a surrogate pair"),
    ],
    ids=str,
)
def test_cells_of_other_names_are_as_strict(tmp_path: Path, row: dict[str, Any], sentence: str) -> None:
    assert refusal(write(tmp_path / "a.jsonl", [row])).startswith(sentence)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_compressed_tables(tmp_path: Path, kind: str, codec: str) -> None:
    suffix = {"gzip": ".gz", "zstd": ".zst"}[codec]
    rows = [{"point": f"point {i}", "counter": f"counter {i} é", "id": str(i)} for i in range(500)]
    plain = write(tmp_path / f"train.{'csv' if kind == 'tsv' else kind}", rows)
    content = plain.read_bytes().replace(b",", b"\t") if kind == "tsv" else plain.read_bytes()
    file = tmp_path / "in" / f"Train.{kind.upper()}{suffix}"
    file.parent.mkdir()

    def compressed(content: bytes) -> bytes:
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, codec) as stream:
            stream.write(content)
        return bytes(sink.getvalue())

    file.write_bytes(compressed(content))
    dataset = load(file.parent)
    assert dataset.fingerprint == load(plain).fingerprint
    assert load(file).fingerprint == dataset.fingerprint
    whole = file.read_bytes()
    for damaged in (whole[:-3], whole[:20], content):
        file.write_bytes(damaged)
        assert " cannot be read: " in refusal(file)
    file.write_bytes(compressed(content + b"caf\xe9"))
    assert f"{suffix}:{502 - (kind == 'jsonl')} is not UTF-8 text (byte 3 of the line is 0xe9)" in refusal(file)


def test_gzip_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(
        b"".join(gzip.compress(f'{{"point":"a","counter":"{c}"}}\n'.encode()) for c in "bc")
    )
    assert pairs(load(tmp_path / "a.jsonl.gz")) == [("a", "b"), ("a", "c")]
    (tmp_path / "a.gz").write_bytes(b"")
    expected = "is a file of unknown type; expected one of .jsonl, .csv, .tsv (each also .gz or .zst), .parquet"
    assert expected in refusal(tmp_path / "a.gz")


def test_a_table_in_several_files_is_the_same_table(tmp_path: Path) -> None:
    rows = [{"point": f"point {i}", "counter": f"counter {i}"} for i in range(12)]
    whole = load(write(tmp_path / "train.jsonl", rows))
    for kind in (*KINDS, "jsonl.gz"):
        folder = tmp_path / kind
        folder.mkdir()
        for i in range(12):
            file = write(folder / f"train-{i:05d}-of-00012.{kind.removesuffix('.gz')}", rows[i : i + 1])
            if kind.endswith("gz"):
                file.with_suffix(".jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
                file.unlink()
        if kind == "csv":
            for file in folder.iterdir():
                file.rename(folder / f"{file.stem.upper()}-0123456789abcdef{file.suffix}")
        write(folder / "dev.jsonl", rows[:2])
        dataset = load(folder)
        assert pairs(dataset) == pairs(whole)
        names = [pair.point.name for pair in dataset.splits["training"].pairs]
        assert names == [pair.point.name for pair in whole.splits["training"].pairs]
        assert [(r.source, r.rows) for r in dataset.findings.readings] == [
            ("dev.jsonl", 2),
            (f"train-*-of-00012.{kind}", 12),
        ]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            ["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"],
            "holds 2 of the 3 files train-*-of-00003.jsonl (number 00001 is",
        ),
        (
            ["train-00000-of-99999999.jsonl"],
            "holds 1 of the 99999999 files train-*-of-99999999.jsonl (number 00001 is missing)",
        ),
        (
            ["train-00000-of-00001.jsonl", "train.jsonl"],
            "holds train.jsonl, train-*-of-00001.jsonl, all of which are the training",
        ),
        (
            ["dev-00000-of-00001.jsonl", "val-00000-of-00001.csv"],
            "dev-*-of-00001.jsonl, val-*-of-00001.csv, all of which are the v",
        ),
        (
            ["train-00000-of-00001.jsonl", "train-0-of-00001.jsonl"],
            "holds 2 of the 1 files train-*-of-00001.jsonl; copy all of",
        ),
        (["test-00000-of-00001.jsonl", "train/"], "holds both folders (train/) and tables (test-*-of-00001.jsonl)"),
    ],
    ids=str,
)
def test_files_of_one_table_are_complete(tmp_path: Path, files: list[str], sentence: str) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    for name in files:
        (root / name).mkdir() if name.endswith("/") else (root / name).write_text(ROW)
    assert sentence in refusal(root)


def test_debates_in_the_formats_of_others_are_the_same_pairs(tmp_path: Path) -> None:
    debates = load_dataset("examples/debates", clean=True)
    split = debates.splits["training"]
    texts = pairs(debates)
    triplets = [{"anchor": p, "positive": c, "negative": texts[0][1]} for p, c in texts]
    lists = [{"query": p, "pos": [c], "neg": [texts[0][1]]} for p, c in texts]
    for folder, name, rows in (("triplets", "train.jsonl", triplets), ("lists", "train.jsonl", lists)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / name, rows)
    (tmp_path / "shards").mkdir()
    for i in range(3):
        rows = lists[i * len(lists) // 3 : (i + 1) * len(lists) // 3]
        write(tmp_path / "shards" / f"train-{i:05d}-of-00003.parquet", rows)
    for folder in ("triplets", "lists", "shards"):
        table = load(tmp_path / folder).splits["training"]
        assert [(p.point.text, p.counter.text) for p in table.pairs] == texts
        assert table.point_text_P.tolist() == split.point_text_P.tolist()
        assert table.counter_text_P.tolist() == split.counter_text_P.tolist()


def test_files_of_one_table_have_the_same_pairs(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    write(root / "train-00001-of-00002.jsonl", [{"query": "a", "answer": "b"}])
    write(root / "train-00002-of-00002.jsonl", [{"query": "a", "pos": "b", "url": "c"}])
    assert "of-00002.jsonl has pairs of query and answer, but " in refusal(root)
    write(root / "train-00002-of-00002.jsonl", [{"query": "a", "answer": "c", "url": "c"}])
    dataset = load(root)
    assert pairs(dataset) == [("a", "b"), ("a", "c")]
    assert dataset.findings.readings[0].left_out == ("url",)


def save(folder: Path, rows: list[dict[str, Any]], *, files: int = 1, split: str | None = None) -> Path:
    """What `datasets` writes with save_to_disk."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{files:05d}.arrow" for i in range(files)]
    schema = pyarrow.Table.from_pylist(rows).schema
    for i, name in enumerate(names):
        table = pyarrow.Table.from_pylist(rows[i::files], schema)
        with pyarrow.ipc.new_stream(folder / name, schema) as stream:
            stream.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], "_split": split}))
    return folder


def test_saved_datasets(tmp_path: Path) -> None:
    rows = [{"query": p, "pos": [c], "id": i, "emb": [0.5]} for i, (p, c) in enumerate(PAIRS)]
    several = tmp_path / "several"
    for split in ("train", "dev", "holdout"):
        save(several / split, rows)
    (several / "dataset_dict.json").write_text('{"splits": ["train", "dev", "holdout"]}')
    dataset = load(several)
    assert list(dataset.splits) == ["training", "validation"]
    assert pairs(dataset) == pairs(dataset, "validation") == PAIRS
    assert dataset.findings.counts["saved split of another name (ignored)"] == 1
    assert dataset.findings.readings[1].source == "train/"
    assert dataset.findings.readings[1].columns == {"point": "query", "counter": "pos", "id": "id"}
    assert pairs(load(save(tmp_path / "one", rows, files=2))) == [PAIRS[0], PAIRS[2], PAIRS[1]]
    assert list(load(save(tmp_path / "of_a_split", rows, split="test")).splits) == ["test"]
    labelled = [row | {"split": "dev"} for row in rows]
    assert list(load(save(tmp_path / "labelled", labelled, split="train")).splits) == ["validation"]
    assert load_texts(str(save(tmp_path / "texts", [{"text": "a"}, {"text": "b"}])), clean=True)[0] == ("a", "b")


def test_damaged_saved_datasets_are_named(tmp_path: Path) -> None:
    rows = [{"query": p, "pos": c} for p, c in PAIRS]
    root = save(tmp_path / "corpus", rows)
    file, state = root / "data-00000-of-00001.arrow", (root / "state.json").read_text()
    whole = file.read_bytes()
    for content, sentence in (
        (whole[:-8], "corpus/data-00000-of-00001.arrow is cut off: its end is missing; copy it again"),
        (whole[:-100], "corpus/data-00000-of-00001.arrow is not a valid Arrow file: "),
        (b"", "corpus/data-00000-of-00001.arrow is not a valid Arrow file: "),
    ):
        file.write_bytes(content)
        assert refusal(root).startswith(sentence)
    file.write_bytes(whole)
    for text, sentence in (
        ("{", "corpus/state.json is not valid JSON: Expecting"),
        ("[]", "corpus/state.json is not what datasets writes with save_to_disk"),
        ("{}", "corpus/state.json names no data files"),
        (
            state.replace("data-0", "../data-0"),
            "corpus/state.json names ../data-00000-of-00001.arrow, which is not a file in",
        ),
        (state.replace("data-0", "data-1"), "corpus/state.json names data-10000-of-00001.arrow, which is not a file in"),
        (state[:-1] + ', "_indices_data_files": [{}]}', "corpus was saved with indices by an old version"),
    ):
        (root / "state.json").write_text(text)
        assert refusal(root).startswith(sentence)
    (root / "state.json").unlink()
    (root / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert "names the split train, but" in refusal(root)
    (root / "dataset_dict.json").write_text('{"splits": "train"}')
    assert "corpus/dataset_dict.json has no list of splits" in refusal(root)
    save(root / "train", [{"query": "a", "pos": 5}])
    (root / "dataset_dict.json").unlink()
    assert "data-00000-of-00001.arrow:1: pos is a number, expected text" in refusal(root)
