"""The cost model on a case computed by hand, the document that quotes it, and the benchmarks' one table."""

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.launch import ROOT


@pytest.fixture(autouse=True)
def _as_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks are scripts that import each other by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def machine() -> Any:
    from cost_model import Machine

    return Machine(
        train_flops=1000,
        step_s=2,
        embed_flops=500,
        sum_bytes_per_s=100,
        sum_latency_s=0.25,
        message_bytes_per_s=64,
        search_flops=100,
        search_query_s=0.5,
        audit_pair_s=0.125,
        rank_pair_s=0.01,
        rank_query_s=0.1,
        merge_s=0.001,
        checkpoint_bytes_per_s=1000,
        held_bytes=1,
        token_bytes=1,
        start_s=1,
    )


def job(**changes: Any) -> Any:
    from cost_model import Encoder, Job

    encoder = Encoder(layers=1, hidden=2, dimension=4, parameters=100)
    common = Job(
        texts=100, pairs=40, ranks=4, batch=5, tokens=1, encoder=encoder, near_share=0.5, sharded=False, other_texts=20
    )
    return replace(common, **changes)


def test_an_epoch_computed_by_hand() -> None:
    from cost_model import epoch

    # A forward pass of one token: 24 * 2^2 + 4 * 2 = 104 operations. 40 / (4 * 5) = 2 steps, of 5 triplets of 3 texts.
    assert epoch(job(), machine()) == pytest.approx(
        {
            "steps": 2 * (2 + 5 * 3 * 3 * 104 / 1000),
            "gradients": 2 * (2 * 3 / 4 * 200 / 100 + 2 * 2 * 0.25),
            "embedding": 120 * 104 / (4 * 500),
            "vectors": 100 * 24 * 3 / 4 / 64,
            "search": 20 * (0.5 + 2 * 4 * 100 / 100),
            "answers": 0,
            "audit": 5 + 40 * 2.0e-7 + 100 * 2.2e-6,
            "ids": 40 * 8 / 64 * 2,
            "evaluation": 40 * (0.1 + 2 * 100 * 0.01) + 10 * (0.1 + 2 * 20 * 0.01),
            "checkpoint": (1200 + 320) / 1000,
        }
    )


def test_sharding_divides_what_grows_with_the_texts_and_adds_answers() -> None:
    from cost_model import epoch

    whole, parts = epoch(job(), machine()), epoch(job(sharded=True), machine())
    assert parts["search"] == pytest.approx(20 * (0.5 + 2 * 4 * 25 / 100))
    assert parts["answers"] == pytest.approx(20 * ((4 * 4 + 2 * 16) * 3 / 4 / 64 + 0.001))
    assert parts["vectors"] == 0
    few = epoch(job(max_queries=7), machine())["evaluation"]
    assert few == pytest.approx(7 * (0.1 + 2 * 100 * 0.01) + 7 * (0.1 + 2 * 20 * 0.01))
    assert parts["evaluation"] == pytest.approx(
        40 * (0.1 + 2 * 25 * 0.01 + 20 * 0.001) + 10 * (0.1 + 2 * 5 * 0.01 + 20 * 0.001)
    )
    assert parts["audit"] == pytest.approx(5 + 40 * 2.0e-7 + 25 * 2.2e-6)
    same = ("steps", "gradients", "embedding", "ids", "checkpoint")
    assert [parts[name] for name in same] == [whole[name] for name in same]


def test_one_rank_sends_nothing() -> None:
    from cost_model import epoch

    for sharded in (False, True):
        alone = epoch(job(ranks=1, sharded=sharded), machine())
        assert [alone[name] for name in ("gradients", "vectors", "answers", "ids")] == [0, 0, 0, 0]


def test_ivf_computed_by_hand() -> None:
    from cost_model import ivf_seconds

    # 160,000 texts in 1,600 cells of 100: k-means sees all of them ten times, then each finds its cell.
    assert ivf_seconds(job(texts=160_000), machine(), probes=2) == pytest.approx(
        11 * 160_000 * 1600 * 8 / 100 + 20 * (0.5 + (1600 + 2 * 100) * 8 / 100)
    )


def test_the_least_number_of_texts_is_found() -> None:
    from cost_model import texts_until

    assert texts_until(lambda texts: texts >= 3_000_000) == pytest.approx(3_000_000, rel=0.01)
    assert texts_until(lambda texts: False) == math.inf


def test_constants_come_back_from_the_results_that_they_would_give() -> None:
    """Results as a machine with these constants would leave them."""
    from cost_model import MINILM, Job, epoch, ranking_seconds
    from scaling import measured

    told = machine()

    def growth(length: int, batch: int) -> dict[str, float]:
        job = Job(texts=100, pairs=batch, ranks=1, batch=batch, tokens=length - 9, encoder=MINILM)
        return {"length": length, "batch": batch, "tokens_per_text": length - 9, "step_s": epoch(job, told)["steps"]}

    def flat(size: int) -> dict[str, Any]:
        build_s, search_s = 3.0, 5000 * (told.search_query_s + 2 * 128 * size / told.search_flops)
        total_s = build_s + search_s + size / 2 * told.audit_pair_s
        seconds = {"build_s": build_s, "search_s": search_s, "total_s": total_s}
        return {"case": "faiss flat", "vectors": size, "queries": 5000} | seconds

    found = measured(
        {
            "epoch": {
                "growth": [growth(128, 16), growth(256, 16), growth(128, 8), growth(128, 32)],
                "epochs": {"1/1": {"checkpoint_s": 12 * MINILM.parameters / told.checkpoint_bytes_per_s}},
            },
            "encoding": {
                "rows": {"distinct texts": {"texts": 10, "ours": 10 * MINILM.forward_flops(50) / told.embed_flops}},
                "setting": {"tokens_per_text": 50},
            },
            "mining": {
                "dimension": 128,
                "rows": [flat(5000), flat(50_000), {"case": "faiss ivf", "vectors": 5000, "left_out": True}],
            },
            "parts": {
                "evaluation": [{"texts": n, "seconds": ranking_seconds(n / 2, n, 1, told)} for n in (5000, 20_000)],
                "gradient_bytes": 90,
                "message_bytes": 640,
                "messages": {"sum_s": 90 / told.sum_bytes_per_s, "small_sum_s": 2 * told.sum_latency_s, "gather_s": 10},
                "merge_s_per_answer": told.merge_s,
                "corpus": [
                    {
                        "held_bytes_per_text": 1,
                        "token_bytes_per_text": 1,
                        "read_s_per_million": 4e5,
                        "tokenize_s_per_million": 6e5,
                    }
                ],
            },
        }
    )
    assert found == told


def test_exponents_are_those_of_the_powers_that_made_the_values() -> None:
    from growth import exponents_table

    bounded = {str(size): {"answers": 5e6 * (size - 1) / size} for size in (2, 4, 8)}
    corpus = [
        {"texts": n, "held_bytes_per_text": 7, "read_s_per_million": n, "token_bytes_per_text": 7, "order_s": n**0.5}
        for n in (100, 10_000)
    ]
    evaluation = [{"texts": n, "seconds": n**2} for n in (100, 10_000)]
    copies = [{"texts": n, "seconds": n**1.5} for n in (100, 10_000)]
    rows = exponents_table(
        {"traffic": bounded, "parts": {"corpus": corpus, "copies": copies, "evaluation": evaluation}},
        replace(machine(), rank_query_s=0),
    ).splitlines()[2:]
    found = {row.split("|")[1].strip(): [float(cell) for cell in row.split("|")[3:5]] for row in rows}
    assert found["memory of the corpus on a rank, by texts"] == [1, 1]
    assert found["reading, by texts"] == [2, 1]
    assert found["order of an epoch, by texts"] == [0.5, 1]
    assert found["finding near-duplicates, by texts"] == [1.5, 1]
    assert found["ranking a split, every second text a query, by texts"] == [2, 2]
    measured, modelled = found["bytes that a rank sends, answers, by ranks"]
    assert measured == modelled == pytest.approx(0.4, abs=0.01)  # 1/2, 3/4, 7/8


def test_the_document_holds_the_tables_that_the_model_makes() -> None:
    import cost_model
    import scaling

    document, host = (ROOT / "docs" / "scaling.md").read_text(), cost_model.TWO_CORES
    tables = (
        scaling.constants_table,
        scaling.epochs_table,
        scaling.choices_table,
        scaling.shares_table,
        scaling.limits_table,
    )
    for table in tables:
        assert table(host) in document, f"docs/scaling.md lacks {table.__name__}: copy it from benchmarks/scaling.py"


def test_the_table_says_whether_what_was_asked_for_was_found() -> None:
    from bench import mining_rows

    flat = {"case": "faiss flat", "vectors": 50_000, "queries": 5000, "build_s": 0.5, "search_s": 1.5, "total_s": 4.0}
    tree = {"case": "balltree", "vectors": 50_000, "build_s": 1.0, "search_s": 239.0, "total_s": 250.0}
    tree |= {"queries": 5000, "against_flat": [120.0, 110.0, 130.0], "recall": 1.0, "measured_queries": 500}
    peer = {"case": "peer faiss", "vectors": 50_000, "total_s": 8.0, "queries": 5000, "against_flat": [2.0, 1.9, 2.1]}

    def rows(*, same_ids: bool) -> dict[str, Any]:
        results = {"dimension": 128, "rows": [flat, tree | {"same_ids": same_ids}, peer]}
        return {row.what: row for row in mining_rows(results)}

    found = rows(same_ids=True)
    assert found["faiss flat against balltree"].met is True
    assert (found["faiss flat against balltree"].ours, found["faiss flat against balltree"].other) == ("2 s", "240 s")
    assert found["faiss flat against peer faiss"].met is False
    assert (found["faiss flat against peer faiss"].ours, found["faiss flat against peer faiss"].other) == ("4 s", "8 s")
    assert rows(same_ids=False)["faiss flat against balltree"].met is False


def test_steps_on_a_gpu_go_on_past_one_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import gpu
    import gpu_steps

    assert list(gpu.BOUNDS_S) == list(gpu_steps.STEPS)
    ends = {
        "inputs": (0, 'noise\n{"texts": 3}', ""),
        "attention": (1, "", "Traceback\n  a line\nRuntimeError: no | kernel\n"),
        "waits": (0, '{"kernels": [5, 6], "ms": 0.123456}', "a warning"),
    }
    asked: list[tuple[str, float]] = []

    def run(command: list[str], *, timeout: float, **more: Any) -> subprocess.CompletedProcess[str]:
        asked.append((command[2], timeout))
        if command[2] == "packed":
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, *ends[command[2]])

    monkeypatch.setattr(subprocess, "run", run)
    out = tmp_path / "results" / "gpu.json"
    gpu.run_all("a card", [*ends, "packed"], out, dry_run=False)
    found = json.loads(out.read_text())["steps"]
    assert [name for name, _ in asked] == list(found) == [*ends, "packed"]
    assert all(timeout <= gpu.BOUNDS_S[name] for name, timeout in asked)
    assert found["inputs"]["found"] == {"texts": 3}
    assert found["attention"]["error"] == "RuntimeError: no | kernel (exit code 1)"
    assert found["packed"]["error"] == "not done after 70 s"
    table = out.with_suffix(".md").read_text()
    assert "**failed**: RuntimeError: no / kernel (exit code 1) |" in table
    assert "kernels: [5, 6]; ms: 0.123 |" in table


def test_without_a_gpu_the_steps_say_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import gpu

    monkeypatch.setattr("sys.argv", ["gpu.py"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpu.main()
    assert "PyTorch sees none here" in capsys.readouterr().out
