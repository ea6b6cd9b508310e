"""A corpus with what large ones hold somewhere: a huge text, a text that stands everywhere, a question with hundreds of
answers, and a debate that is half of it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import records, run, small_run, train

pytestmark = pytest.mark.e2e
WORDS = ["fox", "dog", "taxes", "votes", "quick", "lazy", "brown", "argues"]
MEGABYTE = " ".join(WORDS * 25_000)


def rows(kind: str, size: int) -> Iterator[dict[str, str]]:
    def text(number: int, side: str) -> str:
        return f"{WORDS[number % 8]} {WORDS[number // 8 % 8]} {side} {kind} {number}"

    for number in range(size):
        yield {"query": text(number, "point"), "positive": text(number, "counter"), "topic": "half"}
        answer, debate = text(size + number, "counter"), f"debate {number // 6}"
        if number < size // 3:
            yield {"query": f"what {kind}?", "positive": answer, "topic": "one question"}
        elif number < 2 * size // 3:
            yield {"query": text(size + number, "point"), "positive": "yes", "topic": debate}
        else:
            yield {"query": text(size + number, "point"), "positive": answer, "topic": debate}
    yield {"query": f"{MEGABYTE} {kind}", "positive": f"short {kind}", "topic": "long"}
    yield {"query": f"long {kind}?", "positive": f"{kind} {MEGABYTE}", "topic": "long"}


def test_a_corpus_with_a_long_tail_is_trained_on_measured_and_searched(tiny_bert: Path, tmp_path: Path) -> None:
    corpus, run_dir = tmp_path / "corpus", tmp_path / "run"
    corpus.mkdir()
    for file, size in (("train", 300), ("validation", 60)):
        (corpus / f"{file}.jsonl").write_text("\n".join(map(json.dumps, rows(file, size))))
    settings = {"loss__contrastive_weight": 1.0, "mining__negatives": 2, "mining__focus": "other_debates"}
    settings |= {"mining__exclude_near_duplicates": "true", "train__batches": "debates", "train__max_steps": 4}
    settings |= {"train__global_batch_size": 64, "tracking__report": "true", "model__classifier": "residual"}
    done = train(*small_run(tiny_bert, corpus, run_dir, **settings))
    assert done.returncode == 0, done.stderr
    (mined,) = records(run_dir, "mine")
    assert mined["mine/forbidden"] == 0
    assert mined["mine/shortfalls"] == 0  # half of the corpus is in other debates than the large one
    last = records(run_dir, "eval")[-1]
    assert last["eval/validation/queries"] == 122
    # The long texts are cut where they are shown.
    assert max(map(len, (run_dir / "metrics.jsonl").read_text().splitlines())) < 20_000
    assert (run_dir / "report.html").stat().st_size < 8e6
    model = ["--model", str(run_dir / "model" / "best"), "--data.root", str(corpus)]
    found = run([sys.executable, "launcher/search.py", *model, "--top-k", "400", MEGABYTE[:100_000]])
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert "more characters" in found.stdout
    assert len(found.stdout) < 200_000
