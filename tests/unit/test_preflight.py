"""What the checks before a job make of the ranks' facts: whatever is wrong is named with rank and host."""

import dataclasses
import threading
from pathlib import Path

import pytest

import biencoder.training.preflight.checks
from biencoder.config.schema import Config
from biencoder.distributed.world import World
from biencoder.errors import ConfigError
from biencoder.training.engine.memory import GIB
from biencoder.training.preflight.checks import in_time, preflight, raise_failed
from biencoder.training.preflight.judgements import (
    CheckResult,
    Device,
    Memory,
    failures_by_rank,
    judge_bandwidth,
    judge_clocks,
    judge_devices,
    judge_disk,
    judge_equal,
    judge_memory,
    judge_round_trip,
    judge_shared,
    name_ranks,
)

HOSTS = ("a", "a", "b", "b")


def test_ranks_are_named_host_by_host() -> None:
    assert name_ranks([0], HOSTS) == "rank 0 (a)"
    assert name_ranks([3, 0, 2, 1], HOSTS) == "ranks 0-1 (a), ranks 2-3 (b)"
    assert name_ranks([0, 1, 2, 4], ("a",) * 5) == "ranks 0-2, 4 (a)"


def test_a_version_that_differs_is_named_with_rank_and_host() -> None:
    same = {"torch": "2.13.0", "numpy": "2.4.6"}
    assert judge_equal([same] * 4, HOSTS, summary="all the same") == ("ok", "all the same")
    verdict, finding = judge_equal([same, same, same, same | {"torch": "2.9.1"}], HOSTS, summary="")
    assert (verdict, finding) == ("fail", "torch is 2.13.0 on ranks 0-1 (a), rank 2 (b) and 2.9.1 on rank 3 (b)")
    old = same | {"torch": "2.9.1", "numpy": "1.26"}
    verdict, finding = judge_equal([same, same, old, old], HOSTS, summary="")
    assert finding.split("; ") == [
        "torch is 2.13.0 on ranks 0-1 (a) and 2.9.1 on ranks 2-3 (b)",
        "numpy is 2.4.6 on ranks 0-1 (a) and 1.26 on ranks 2-3 (b)",
    ]


def test_failures_name_the_ranks_unless_all_fail_alike() -> None:
    assert failures_by_rank({0: "no data", 1: "no data"}, ("a", "b")) == "no data"
    assert failures_by_rank({1: "no data"}, ("a", "b")) == "rank 1 (b): no data"
    assert failures_by_rank({0: "x", 1: "y"}, ("a", "b")) == "rank 0 (a): x; rank 1 (b): y"


def test_clocks_are_compared_between_hosts() -> None:
    assert judge_clocks([0.0, 0.01], ("a", "a")) == ("ok", "one host, one clock")
    assert judge_clocks([100.0, 100.0, 104.9, 104.9], HOSTS) == ("ok", "at most 4.90 s apart")
    assert judge_clocks([100.0, 100.1, 93.0, 92.9], HOSTS) == ("warn", "a is 7.20 s ahead of b; at most 5 s are fine")


def test_gpus_that_differ_or_stay_unused_are_warned_of() -> None:
    big, small, unused = Device("H100", 80 * GIB), Device("T4", 15 * GIB), Device("CPU", 0, "2.13.0+cpu")
    assert judge_devices([big] * 4, HOSTS) == ("ok", "4 on 2 hosts; ranks 0-1 (a), ranks 2-3 (b): H100 with 80.0 GiB")
    verdict, finding = judge_devices([big, big, small, small], HOSTS)
    assert verdict == "warn"
    assert finding.endswith("ranks 0-1 (a): H100 with 80.0 GiB; ranks 2-3 (b): T4 with 15.0 GiB")
    verdict, finding = judge_devices([unused], ("a",))
    assert (verdict, "rank 0 (a) on a machine with an NVIDIA driver that torch 2.13.0+cpu" in finding) == ("warn", True)


def test_times_are_the_slowest_ranks() -> None:
    assert judge_round_trip([(0.001, 0.002), (0.004, 0.0015)], "nccl") == (
        "ok",
        "training group (nccl) 4.00 ms, control group (gloo) 2.00 ms",
    )
    assert judge_bandwidth([0.1, 0.2], num_bytes=64 * 2**20) == ("ok", "0.34 GB/s (bytes / seconds: 64 MiB in 0.200 s)")


def test_a_folder_that_a_rank_does_not_see_is_a_warning_unless_all_write_there() -> None:
    for sharded, blind in ((False, "warn"), (True, "fail")):
        seen = judge_shared([True, True], ("a", "b"), folder=Path("/x"), sharded=sharded)
        assert seen == ("ok", "/x is seen by all ranks")
        verdict, finding = judge_shared([True, False], ("a", "b"), folder=Path("/x"), sharded=sharded)
        assert (verdict, "not seen by rank 1 (b)" in finding) == (blind, True)


def test_memory_is_weighed_where_it_is_needed() -> None:
    roomy, small = Memory(10 * GIB, None), Memory(3 * GIB, None)
    need = {"state": 2 * GIB, "offloaded": 0, "mining": 4 * GIB}
    assert judge_memory([roomy, small], ("a", "b"), **need, sharded=False)[0] == "ok"  # rank 1 does not mine
    for memories, sharded, who in (([small, roomy], False, "rank 0 (a)"), ([roomy, small], True, "rank 1 (b)")):
        verdict, finding = judge_memory(memories, ("a", "b"), **need, sharded=sharded)
        assert (verdict, finding.split("; ")[-1]) == ("warn", f"tight on {who}")
    refused = dataclasses.replace(roomy, refusal="mining takes 99 GiB")
    assert judge_memory([refused, roomy], ("a", "b"), **need, sharded=False) == ("fail", "rank 0 (a): mining takes 99 GiB")


def test_on_gpus_the_model_is_weighed_against_the_gpu() -> None:
    need = {"state": 6 * GIB, "mining": 4 * GIB}
    fits, full = Memory(5 * GIB, 8 * GIB), Memory(5 * GIB, 5 * GIB)
    assert judge_memory([fits, fits], ("a", "b"), **need, offloaded=0, sharded=False)[0] == "ok"
    verdict, finding = judge_memory([fits, full], ("a", "b"), **need, offloaded=0, sharded=False)
    assert (verdict, finding.split("; ")[-1]) == ("warn", "the GPU is too small on rank 1 (b)")
    verdict, finding = judge_memory([fits, fits], ("a", "b"), **need, offloaded=2 * GIB, sharded=False)
    assert (verdict, finding.split("; ")[-1]) == ("warn", "tight on rank 0 (a)")  # it mines besides
    assert "weights and optimizer 2.0 on each rank's host and 6.0 on each GPU, where 8.0 are free" in finding


def test_a_look_that_gets_stuck_is_left_behind() -> None:
    forever = threading.Event()
    with pytest.raises(ConfigError, match=r"^no end after 0\.05 s; is a file server"):
        in_time(forever.wait, 0.05)
    forever.set()
    assert in_time(lambda: 3, 10) == 3

    def refused() -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        in_time(refused, 10)


def test_the_disk_must_hold_one_checkpoint_and_should_hold_all() -> None:
    parameters = GIB // 4  # 3 GiB a checkpoint, 1 GiB a model
    verdicts = [judge_disk(Path("/x"), free * GIB, num_parameters=parameters, keep=2)[0] for free in (4, 6, 14)]
    assert verdicts == ["fail", "warn", "ok"]


def test_the_failed_checks_are_one_error() -> None:
    fine, warned = CheckResult("data", "ok", "24 pairs"), CheckResult("clocks", "warn", "7 s")
    raise_failed([fine, warned])
    with pytest.raises(ConfigError, match=r"^2 of 4 checks failed: model \(none\); disk \(full\)$"):
        raise_failed([fine, CheckResult("model", "fail", "none"), warned, CheckResult("disk", "fail", "full")])


def test_an_exception_in_a_check_is_its_row_and_the_others_follow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ImportError("libgomp.so.1: cannot open")

    monkeypatch.setattr(biencoder.training.preflight.checks, "_versions", broken)
    monkeypatch.setattr(biencoder.training.preflight.checks, "read_model", broken)
    monkeypatch.chdir(tmp_path)
    rows = {row.name: row for row in preflight(Config(), World.alone())}
    assert [name for name, row in rows.items() if row.verdict == "fail"] == ["versions", "model"]
    assert rows["versions"].finding == "ImportError: libgomp.so.1: cannot open"
    assert (rows["data"].verdict, rows["memory"].verdict) == ("ok", "warn")
    assert not list(tmp_path.iterdir())
