"""Searching on all ranks finds what one process finds: negatives, metrics, re-ranking, with ties and an empty shard."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launch import run_ranks

pytestmark = pytest.mark.ranks


def search(tmp_path: Path, what: dict[str, Any], *, ranks: int = 3, **mining: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Args: what: see `cases.mining.sharded_search`."""
    ends, _ = run_ranks("mining.sharded_search", ranks, mining=mining, out=str(tmp_path / "out.json"), **what)
    assert [end.code for end in ends] == [0] * ranks, ends[0].stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    return found["sharded"], found["whole"]


@pytest.mark.parametrize(("index", "pooled_is_held"), [("faiss", True), ("balltree", False)])
def test_exact_indexes_find_the_same_on_shards(tmp_path: Path, index: str, pooled_is_held: bool) -> None:
    sharded, whole = search(tmp_path, {"pooled_is_held": pooled_is_held}, index=index)
    assert sharded["negatives"] == whole["negatives"]
    assert sharded["distance"] == pytest.approx(whole["distance"], rel=1e-12)
    assert sharded["metrics"] == pytest.approx(whole["metrics"], abs=1e-6)
    assert sharded["examples"] == whole["examples"] != []
    for found in (sharded, whole):
        del found["audit"]["figures"]["audit_s"]
    assert sharded["audit"].pop("figures") == pytest.approx(whole["audit"].pop("figures"), rel=1e-6, nan_ok=True)
    assert sharded["audit"] == whole["audit"]
    assert 0 < whole["metrics"]["embedding/accuracy@1"] < whole["metrics"]["embedding/accuracy@5"] < 1
    assert 0 < whole["metrics"]["rerank/accuracy@1"] != whole["metrics"]["embedding/accuracy@1"]


@pytest.mark.parametrize("ranks", [2, 4])
def test_given_negatives_are_the_same_on_any_number_of_ranks(tmp_path: Path, ranks: int) -> None:
    sharded, whole = search(tmp_path, {"given": True}, ranks=ranks, negatives=2)
    assert sharded["negatives"] == whole["negatives"]
    assert [row[0] for row in whole["negatives"][:100]] == [(sample + 1) % 150 for sample in range(100)]
    assert all(row[0] != row[1] for row in whole["negatives"])
    assert sharded["audit"]["closest"] == whole["audit"]["closest"]
    assert sharded["audit"]["fingerprint"] == whole["audit"]["fingerprint"]


def test_an_approximate_index_on_shards_reports_its_recall(tmp_path: Path) -> None:
    sharded, whole = search(tmp_path, {}, faiss_kind="ivf", ivf_probes=10_000)
    assert (sharded["recall"], sharded["negatives"]) == (1.0, whole["negatives"])


def test_overlap_gives_every_rank_what_one_process_gets(tmp_path: Path) -> None:
    ends, _ = run_ranks("mining.overlapped_search", 2, out=str(tmp_path / "out.json"))
    assert [end.code for end in ends] == [0, 0], ends[0].stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    assert [epoch[0] for epoch in found["ranks"]] == [0, 1, 1]
    assert found["ranks"] == found["alone"]
