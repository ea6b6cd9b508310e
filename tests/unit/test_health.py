"""Each guard on records made for it: raised where its sign begins, not before, once, and again after it was gone."""

import math
from collections.abc import Iterable
from typing import Any

import pytest

from biencoder.config.load import load_config
from biencoder.config.paths import PROJECT_ROOT
from biencoder.tracking.guards import GUARDS, Alert, Guards
from biencoder.tracking.names import accuracy

PLAIN = {
    "train/loss": 1.0,
    "train/loss_triplet": 0.3,
    "train/active_triplets": 0.5,
    "train/grad_norm": 2.0,
    "train/step_s": 1.0,
    "train/data_s": 0.01,
    "train/slowest_rank": 0,
    "train/slowest_ratio": 1.1,
}


def step(number: int, *, epoch: int = 0, **values: Any) -> dict[str, Any]:
    changed = {f"train/{name}": value for name, value in values.items()}
    return {"kind": "step", "step": number, "epoch": epoch, **PLAIN, **changed}


def event(number: int, name: str, detail: str = "") -> dict[str, Any]:
    return {"kind": "event", "step": number, "epoch": 0, "event": name, "detail": detail}


def mine(epoch: int, **values: float) -> dict[str, Any]:
    found = {"spread": 0.9, "effective_rank": 100.0, "near_copies": 0.001} | values
    return {"kind": "mine", "step": 4 * epoch, "epoch": epoch, **{f"mine/{name}": v for name, v in found.items()}}


def evaluation(epoch: int, value: float) -> dict[str, Any]:
    return {"kind": "eval", "step": 4 * epoch, "epoch": epoch, accuracy("validation", "embedding"): value}


def raised(lines: Iterable[dict[str, Any]], *, precision: str = "fp32", **overrides: str) -> list[Alert]:
    config = load_config(overrides={name.replace("__", "."): value for name, value in overrides.items()})
    guards = Guards(config, precision=precision)
    return [alert for line in lines for alert in guards.observe(line)]


def names(alerts: list[Alert]) -> list[str]:
    return [alert.guard for alert in alerts]


def test_plain_records_raise_nothing() -> None:
    lines = [line for e in range(9) for line in (mine(e), *(step(4 * e + i, epoch=e) for i in range(4)))]
    assert raised(lines) == []


@pytest.mark.parametrize(
    ("signs", "almost", "guard"),
    [
        ([step(1), step(2, loss=7.2)], [step(1), step(2, loss=7.1)], "exploding gradients"),
        (
            [*map(step, range(9)), step(9, grad_norm=21)],
            [*map(step, range(9)), step(9, grad_norm=19)],
            "exploding gradients",
        ),
        ([mine(0, spread=0.04)], [mine(0, spread=0.06)], "embedding collapse"),
        (
            [step(i, loss_triplet=1.01, active_triplets=1.0) for i in range(5)],
            [step(i, loss_triplet=1.01, active_triplets=1.0) for i in range(4)],
            "embedding collapse",
        ),
        ([mine(0), mine(1, effective_rank=24)], [mine(0), mine(1, effective_rank=26)], "shrinking embeddings"),
        ([mine(0), mine(1, spread=0.2)], [mine(0), mine(1, spread=0.3)], "shrinking embeddings"),
        (
            [step(i, active_triplets=0.01) for i in range(10)],
            [step(i, active_triplets=0.03) for i in range(10)],
            "active triplets",
        ),
        (
            [step(i, active_triplets=1.0) for i in range(10)],
            [step(i, active_triplets=1.0, loss_triplet=0.9**i) for i in range(10)],
            "active triplets",
        ),
        ([step(i, data_s=0.31) for i in range(3)], [step(i, data_s=0.31 * (i != 1)) for i in range(3)], "data stall"),
        (
            [step(i, slowest_rank=3, slowest_ratio=1.6) for i in range(5)],
            [step(i, slowest_rank=i % 4, slowest_ratio=1.6) for i in range(5)],
            "slow rank",
        ),
        ([mine(0, near_copies=0.021)], [mine(0, near_copies=0.019)], "close negatives"),
        ([event(3, "skipped step", "no finite gradient for the batch of x")], [event(3, "resumed")], "non-finite gradient"),
        ([event(0, "smaller micro-batch", "of 2 triplets")], [event(0, "resumed")], "out of memory"),
    ],
)
def test_a_guard_is_raised_at_its_sign_and_not_before(
    signs: list[dict[str, Any]], almost: list[dict[str, Any]], guard: str
) -> None:
    assert names(raised(almost)) == []
    assert names(raised(signs)) == [guard]


def epochs(losses: list[float], accuracies: list[float]) -> list[dict[str, Any]]:
    """Each epoch's loss, and the accuracy before it and after it."""
    lines = [evaluation(0, accuracies[0])]
    for epoch, (loss, value) in enumerate(zip(losses, accuracies[1:], strict=True)):
        lines += [mine(epoch), step(4 * epoch + 4, epoch=epoch, loss=loss), evaluation(epoch + 1, value)]
    return lines


def test_oscillation_takes_turns_that_are_large_enough() -> None:
    rising = [0.1 * i for i in range(6)]
    assert names(raised(epochs([1.0, 0.8, 1.0, 0.8, 1.0], rising))) == ["oscillation"]
    assert names(raised(epochs([1.0, 0.96, 1.0, 0.96, 1.0], rising))) == []
    assert names(raised(epochs([1.0, 0.9, 0.8, 0.7, 0.6], rising))) == []


def test_no_progress_takes_both_loss_and_accuracy_standing_still() -> None:
    assert names(raised(epochs([1.0, 1.0, 0.99], [0.3, 0.3, 0.302, 0.301]))) == ["no progress"]
    assert names(raised(epochs([1.0, 1.0, 0.99], [0.3, 0.3, 0.31, 0.31]))) == []
    assert names(raised(epochs([1.0, 0.95, 0.9], [0.3, 0.3, 0.3, 0.3]))) == []


def test_overflows_count_only_after_the_loss_scale_was_found() -> None:
    early = [event(number, "skipped step") for number in range(1, 20)]
    late = [event(number, "skipped step") for number in (60, 90, 120)]
    assert names(raised([*early, *late[:2]], precision="fp16")) == []
    assert names(raised([*early, *late], precision="fp16")) == ["fp16 overflow"]
    assert names(raised([late[0], event(90, "skipped step"), event(161, "skipped step")], precision="fp16")) == []


def test_a_sign_that_stays_is_raised_once_and_one_that_comes_back_again() -> None:
    bad, good = [step(i, loss=9.0) for i in range(2, 12)], [step(i) for i in range(12, 40)]
    assert len(raised([step(1), *bad])) == 1
    assert len(raised([step(1), *bad, *good, *bad])) == 2
    assert len(raised([step(1), *bad, *good[:3], *bad])) == 1


def test_numbers_that_are_missing_or_not_finite_raise_nothing() -> None:
    lines = [step(i, loss=None, loss_triplet=None, active_triplets=None, grad_norm="inf") for i in range(30)]
    assert raised([*lines, mine(0, spread=math.nan, near_copies=math.nan), {"kind": "mine", "step": 1, "epoch": 1}]) == []


def test_advice_names_keys_with_values_that_the_configuration_accepts() -> None:
    (alert,) = raised([step(1), step(2, loss=9.0)], train__lr="2e-5", train__clip_norm="0", train__warmup_ratio="0.1")
    assert alert.advice.startswith("train.lr 2e-06 (now 2e-05) or train.clip_norm 1 (now 0); if it stays")
    (alert,) = raised([mine(0, near_copies=0.5)], mining__random_rate="1.0")
    assert alert.advice.endswith("then remove near-duplicates from the corpus")
    (alert,) = raised(
        [step(i, active_triplets=1.0, loss_triplet=0.9**i) for i in range(10)], loss__margin="2.5", model__normalize="true"
    )
    assert "at most 2 apart" in alert.sign
    assert alert.advice == "loss.margin 0.5 (now 2.5) or mining.random_rate 1 (now 0.8)"


def test_the_documentation_lists_every_guard() -> None:
    text = (PROJECT_ROOT / "docs/troubles.md").read_text(encoding="utf-8")
    assert [name for name in GUARDS if f"| {name} |" not in text] == []
